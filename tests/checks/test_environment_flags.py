"""Environment flags: the table is complete, misspellings are found, right names are left alone."""

from __future__ import annotations

import time

import pytest
from support.fake_surroundings import gpu, look_at, versions
from support.plan_inputs import machine

from whet.engine.checks import env_flags
from whet.engine.checks.env_flag_table import ALIASES, EXACT_NAMES, FLAGS, KNOWN_BESIDE
from whet.engine.checks.env_flags import (
    conflicts,
    edit_distance,
    explain_flags,
    flag_of,
    is_secret,
    right_name,
    seen_flags,
)
from whet.engine.redaction import Redactor
from whet.engine.settings import OWN_FLAGS, settings
from whet.engine.surroundings.facts import Surroundings

HERE = machine(versions=versions())
WITH_GPU = machine(gpu(), versions=versions())

NAMED = [
    "CUDA_VISIBLE_DEVICES",
    "CUDA_LAUNCH_BLOCKING",
    "CUDA_DEVICE_ORDER",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF",
    "TORCH_COMPILE_DISABLE",
    "TORCHINDUCTOR_FX_GRAPH_CACHE",
    "TRITON_INTERPRET",
    "TRITON_CACHE_DIR",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "HF_TOKEN",
    "HF_HUB_DISABLE_XET",
    "HF_HUB_ENABLE_HF_TRANSFER",
    "HF_DATASETS_OFFLINE",
    "TRANSFORMERS_CACHE",
    "TRANSFORMERS_OFFLINE",
    "TOKENIZERS_PARALLELISM",
    "OMP_NUM_THREADS",
    "BNB_CUDA_VERSION",
    "LD_LIBRARY_PATH",
    "NCCL_DEBUG",
    "ACCELERATE_MIXED_PRECISION",
    "WANDB_MODE",
    "LLAMA_CPP_LIB_PATH",
    "NO_COLOR",
    "TERM",
    "LANG",
    "WHET_HOME",
    "WHET_LOG",
    "WHET_KERNELS",
    "WHET_CPU_RANKS",
    "WHET_OFFLINE",
    "WHET_LOW_BANDWIDTH",
    "WHET_FILES_WITHIN",
    "WHET_ASSISTANT",
    "WHET_ASSISTANT_MODEL",
    "WHET_ASSISTANT_KEY",
]

UNSLOTH = [
    "UNSLOTH_COMPILE_DISABLE",
    "UNSLOTH_DISABLE_FAST_GENERATION",
    "UNSLOTH_VLLM_STANDBY",
    "UNSLOTH_STABLE_DOWNLOADS",
    "UNSLOTH_RETURN_LOGITS",
    "UNSLOTH_CE_LOSS_TARGET_GB",
    "UNSLOTH_CE_LOSS_N_CHUNKS",
    "UNSLOTH_TILED_MLP",
    "UNSLOTH_FORCE_FLOAT32",
    "UNSLOTH_DISABLE_AUTO_PADDING_FREE",
    "UNSLOTH_MOE_BACKEND",
    "UNSLOTH_LLAMA_CPP_PATH",
    "UNSLOTH_ALLOW_CPU",
    "UNSLOTH_USE_MODELSCOPE",
    "UNSLOTH_DISABLE_STATISTICS",
]


@pytest.mark.parametrize("name", [*NAMED, *UNSLOTH])
def test_each_flag_is_known_with_reader_and_effect(name: str) -> None:
    (report,) = explain_flags(seen_flags({name: "1"}), gpu=False)
    assert report.name == name and report.reader != "nobody" and report.effect
    assert "{" not in report.effect


@pytest.mark.parametrize("name", UNSLOTH)
def test_unsloths_flags_are_answered_with_whets_way(name: str) -> None:
    flag = flag_of(name)
    assert flag is not None and flag.name == name and len(flag.advice) > 20
    (finding,) = look_at(Surroundings(flags={name: "1"}), HERE)
    assert (finding.id, finding.severity) == ("E12", "note")
    assert finding.fix is not None and flag.advice in finding.fix.text


def test_the_commands_that_answer_unsloths_flags() -> None:
    def command(name: str) -> str | None:
        flag = flag_of(name)
        return flag.command if flag is not None else None

    assert command("UNSLOTH_COMPILE_DISABLE") == "export WHET_KERNELS=reference"
    assert command("UNSLOTH_DISABLE_FAST_GENERATION") == "export WHET_KERNELS=reference"
    assert command("UNSLOTH_STABLE_DOWNLOADS") == "export HF_HUB_DISABLE_XET=1"
    assert flag_of("UNSLOTH_SOMETHING_NEW") is not None


@pytest.mark.parametrize(
    "wrong, right",
    [
        ("UNSLOTH_COMPILE_DISABLED", "UNSLOTH_COMPILE_DISABLE"),
        ("UNSLOT_STABLE_DOWNLOADS", "UNSLOTH_STABLE_DOWNLOADS"),
        ("UNSLOTH_VLM_STANDBY", "UNSLOTH_VLLM_STANDBY"),
    ],
)
def test_a_misspelt_flag_of_unsloths_is_answered_like_the_right_one(wrong: str, right: str) -> None:
    meant = flag_of(right)
    assert meant is not None and flag_of(wrong) == meant and right_name(wrong) is None
    (finding,) = look_at(Surroundings(flags=seen_flags({wrong: "1"})), HERE)
    assert finding.severity == "note" and finding.fix is not None and finding.fix.text == meant.advice


def test_an_unknown_name_of_hugging_faces_is_not_said_to_be_read() -> None:
    (report,) = explain_flags(seen_flags({"HF_NO_SUCH_THING": "1"}), gpu=False)
    assert report.reader == "nobody whet knows of"


def test_a_value_that_means_nothing_does_not_stop_the_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_KERNELS", "refernce")
    monkeypatch.setenv("WHET_LOG", "loud")
    assert (settings().kernels, settings().log_level) == ("reference", "warning")
    wrong = conflicts(seen_flags({"WHET_KERNELS": "refernce", "WHET_LOG": "loud"}), gpu=False)
    assert "counts as reference" in wrong["WHET_KERNELS"] and "counts as warning" in wrong["WHET_LOG"]


def test_whets_own_flags_are_the_settings() -> None:
    assert {flag.name for flag in OWN_FLAGS} == {name for name in EXACT_NAMES if name.startswith("WHET_")}
    assert {flag.name.removeprefix("WHET_").lower() for flag in OWN_FLAGS} == {
        "home", "log", "kernels", "cpu_ranks", "offline", "low_bandwidth", "files_within", "assistant",
        "assistant_model", "assistant_key",
    }  # fmt: skip
    assert len(vars(settings())) == len(OWN_FLAGS)


def test_the_assistants_key_is_a_secret() -> None:
    key = "c0ffee00c0ffee00"
    assert key not in str(seen_flags({"WHET_ASSISTANT_KEY": key, "WHET_ASSISTENT_KEY": key}))
    assert key not in Redactor({"WHET_ASSISTANT_KEY": key}).text(f"401 for {key}")


@pytest.mark.parametrize(
    "wrong, right",
    [
        ("WHET_OFLINE", "WHET_OFFLINE"),
        ("WEHT_HOME", "WHET_HOME"),
        ("WHET_KERNEL", "WHET_KERNELS"),
        ("whet_home", "WHET_HOME"),
        ("WHET_LOW_BANDWITH", "WHET_LOW_BANDWIDTH"),
        ("HF_HUB_OFLINE", "HF_HUB_OFFLINE"),
        ("HF_TOKE", "HF_TOKEN"),
        ("HF_TOKENS", "HF_TOKEN"),
        ("HF_HUB_DISABLE_XTE", "HF_HUB_DISABLE_XET"),
        ("HUGGINGFACE_TOKEN", "HF_TOKEN"),
        ("CUDA_VISIBLE_DEVICE", "CUDA_VISIBLE_DEVICES"),
        ("CUDA_VISBLE_DEVICES", "CUDA_VISIBLE_DEVICES"),
        ("PYTORCH_CUDA_ALLOC_CONFIG", "PYTORCH_CUDA_ALLOC_CONF"),
        ("TOKENIZER_PARALLELISM", "TOKENIZERS_PARALLELISM"),
        ("TRITON_CACHEDIR", "TRITON_CACHE_DIR"),
        ("HF_HOM", "HF_HOME"),
        ("HF_DISABLE_XET", "HF_HUB_DISABLE_XET"),
        ("LLAMA_CPP_LIB", "LLAMA_CPP_LIB_PATH"),
        ("WHET_LOG_LEVEL", "WHET_LOG"),
        ("WANBD_PROJECT", "WANDB_PROJECT"),
        ("ACCELERTE_MIXED_PRECISION", "ACCELERATE_MIXED_PRECISION"),
        ("TORCHINDUCTR_MAX_AUTOTUNE", "TORCHINDUCTOR_MAX_AUTOTUNE"),
    ],
)
def test_misspellings(wrong: str, right: str) -> None:
    assert right_name(wrong) == right
    (finding,) = look_at(Surroundings(flags=seen_flags({wrong: "1"})), HERE)
    assert (finding.id, finding.severity) == ("E12", "warning")
    assert finding.fix is not None and right in (finding.fix.command or "")


@pytest.mark.parametrize(
    "name",
    [
        *NAMED, *sorted(KNOWN_BESIDE), "PATH", "HOME", "USER", "SHELL", "EDITOR", "LANGUAGE", "LC_ALL",
        "LC_TIME", "TERMINFO", "COLORTERM", "TERM_PROGRAM", "CUDA_HOME", "DYLD_LIBRARY_PATH", "LIBRARY_PATH",
        "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "HF_XET_CACHE", "NCCL_P2P_DISABLE", "WANDB_PROJECT",
        "PYTHONPATH", "VIRTUAL_ENV", "CONDA_PREFIX", "SSH_CONNECTION", "XDG_CACHE_HOME", "HTTP_PROXY",
        "no_proxy", "TORCH_HOME", "GOMP_SPINCOUNT", "NVIDIA_VISIBLE_DEVICES", "TRITON_HOME",
        "TRANSFORMERS_VERBOSITY", "_WHET_COMPLETE", "JAVA_HOME",
    ],
)  # fmt: skip
def test_right_and_foreign_names_are_no_misspelling(name: str) -> None:
    assert right_name(name) is None


def test_a_usual_environment_raises_nothing() -> None:
    usual = {
        "HOME": "/home/anna", "PATH": "/usr/bin", "LANG": "de_DE.UTF-8", "TERM": "xterm-256color",
        "HF_HOME": "/data/hf", "HF_TOKEN": "hf_aaaaaaaaaaaa", "CUDA_VISIBLE_DEVICES": "0,1",
        "OMP_NUM_THREADS": "8", "TOKENIZERS_PARALLELISM": "false", "NCCL_DEBUG": "WARN",
        "PYTORCH_ALLOC_CONF": "expandable_segments:True", "WANDB_API_KEY": "0" * 40,
        "WHET_HOME": "/data/whet",
        "LD_LIBRARY_PATH": "/usr/local/cuda/lib64", "WHET_KERNELS": "triton", "HF_HUB_DISABLE_XET": "1",
    }  # fmt: skip
    assert look_at(Surroundings(flags=seen_flags(usual)), WITH_GPU) == []


@pytest.mark.parametrize(
    "flags, gpu, at_odds",
    [
        ({"PYTORCH_ALLOC_CONF": "a", "PYTORCH_CUDA_ALLOC_CONF": "b"}, False, "PYTORCH_CUDA_ALLOC_CONF"),
        ({"PYTORCH_ALLOC_CONF": "a", "PYTORCH_CUDA_ALLOC_CONF": "a"}, False, None),
        ({"HF_HUB_CACHE": "/a", "HUGGINGFACE_HUB_CACHE": "/b"}, False, "HUGGINGFACE_HUB_CACHE"),
        ({"HF_TOKEN": "set", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}, False, "HF_HUB_DISABLE_IMPLICIT_TOKEN"),
        ({"HF_TOKEN": "set", "HUGGING_FACE_HUB_TOKEN": "set"}, False, "HUGGING_FACE_HUB_TOKEN"),
        ({"HF_HUB_DISABLE_XET": "1", "HF_XET_HIGH_PERFORMANCE": "1"}, False, "HF_XET_HIGH_PERFORMANCE"),
        ({"HF_HUB_DISABLE_XET": "0", "HF_XET_HIGH_PERFORMANCE": "1"}, False, None),
        ({"WHET_OFFLINE": "0", "HF_HUB_OFFLINE": "1"}, False, "WHET_OFFLINE"),
        ({"TRITON_INTERPRET": "1"}, True, "TRITON_INTERPRET"),
        ({"TRITON_INTERPRET": "1"}, False, None),
        ({"CUDA_LAUNCH_BLOCKING": "1"}, True, "CUDA_LAUNCH_BLOCKING"),
        ({"CUDA_LAUNCH_BLOCKING": "0"}, True, None),
        ({"HF_HUB_OFFLINE": "ture"}, False, "HF_HUB_OFFLINE"),
        ({"WHET_LOG": "loud"}, False, "WHET_LOG"),
        ({"WHET_LOG": "debug"}, False, None),
    ],
)
def test_conflicts(flags: dict[str, str], gpu: bool, at_odds: str | None) -> None:
    assert list(conflicts(flags, gpu)) == ([] if at_odds is None else [at_odds])
    shown = {report.name: report.conflict for report in explain_flags(flags, gpu)}
    assert [name for name, conflict in shown.items() if conflict] == ([] if at_odds is None else [at_odds])


def test_old_names_are_notes_unless_nobody_reads_them() -> None:
    def severity(**flags: str) -> list[str]:
        return [finding.severity for finding in look_at(Surroundings(flags=flags), HERE)]

    assert severity(PYTORCH_CUDA_ALLOC_CONF="expandable_segments:True") == ["note"]
    assert severity(TRANSFORMERS_CACHE="/disk") == ["warning"]  # downloads go elsewhere than was meant
    assert severity(HF_HUB_ENABLE_HF_TRANSFER="1") == ["note"]
    assert severity(TRANSFORMERS_CACHE="/disk", HF_HOME="/disk") == []


def test_secrets_have_no_value() -> None:
    secret = {
        "HF_TOKEN": "x" * 20,
        "WANDB_API_KEY": "y" * 20,
        "HUGGINGFACE_TOKEN": "z" * 20,
        "HF_TOKNE": "w" * 20,
    }
    shown = seen_flags(secret)
    assert set(shown) == set(secret) and set(shown.values()) == {"set"}
    text = " ".join(finding.model_dump_json() for finding in look_at(Surroundings(flags=shown), HERE))
    assert not any(letter * 20 in text for letter in "xyzw")
    assert is_secret("HF_TOKNE") and is_secret("WANDB_API_KYE") and is_secret("hf_token")
    assert not is_secret("TOKENIZERS_PARALLELISM") and not is_secret("HF_TOKEN_PATH")


def test_a_switch_shows_what_it_does_now() -> None:
    def effect(name: str, value: str) -> str:
        return explain_flags({name: value}, gpu=False)[0].effect

    assert effect("HF_HUB_OFFLINE", "1") != effect("HF_HUB_OFFLINE", "0")
    assert effect("CUDA_VISIBLE_DEVICES", "") == effect("CUDA_VISIBLE_DEVICES", "-1") == "all GPUs are hidden"
    assert "0,1" in effect("CUDA_VISIBLE_DEVICES", "0,1")
    assert "plain-torch" in effect("WHET_KERNELS", "reference")


@pytest.mark.parametrize(
    "a, b, distance",
    [("abc", "abc", 0), ("abc", "abd", 1), ("abc", "acb", 1), ("abc", "ab", 1), ("abcd", "badc", 2)],
)
def test_edit_distance(a: str, b: str, distance: int) -> None:
    assert edit_distance(a, b) == edit_distance(b, a) == distance


def test_table_is_sound() -> None:
    names = [flag.name for flag in FLAGS]
    assert len(names) == len(set(names))
    assert set(ALIASES.values()) <= set(EXACT_NAMES)
    assert not set(ALIASES) & set(EXACT_NAMES) and not KNOWN_BESIDE & set(EXACT_NAMES)
    assert all(flag.instead in EXACT_NAMES for flag in FLAGS if flag.instead)


def test_a_large_environment_takes_no_time() -> None:
    environment = {f"SOME_VARIABLE_NUMBER_{number}_OF_MANY": "x" for number in range(300)}
    env_flags._nearest.cache_clear()
    started = time.process_time()
    assert seen_flags(environment) == {}
    assert time.process_time() - started < 0.1
