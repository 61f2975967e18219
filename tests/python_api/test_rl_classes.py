"""Scripts that learn from rewards run with only their import lines changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.scored import decided_model

from whet.engine import FastLanguageModel, GRPOConfig, GRPOTrainer, PatchFastRL, RLOOConfig, RLOOTrainer
from whet.engine.errors import WhetError
from whet.engine.python_api import rl_classes
from whet.engine.python_api.notes import WhetNote

FLOW = Path(__file__).with_name("grpo_flow.txt")
ROOT = Path(__file__).parents[2]
IMPORTS = {
    "from unsloth import FastLanguageModel": "from whet.engine import FastLanguageModel",
    "from trl import GRPOConfig, GRPOTrainer": "from whet.engine import GRPOConfig, GRPOTrainer",
}
REPORT = """
import json
logs = [entry for entry in trainer.state.log_history if "reward" in entry]
prompts, *_ = trainer._tokenize_prompts([row["prompt"] for row in dataset])
report = {
    "rewards": [entry["rewards/letters/mean"] for entry in logs],
    "answered": [entry["rewards/check_answer/mean"] for entry in logs],
    "longest_prompt": max(map(len, prompts)),
}
open("report.json", "w").write(json.dumps(report))
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return decided_model(tmp_path_factory.mktemp("model") / "llama")


def test_the_seeds_script_learns_with_its_imports_changed(tiny: Path, tmp_path: Path) -> None:
    script = FLOW.read_text(encoding="utf-8")
    for theirs, ours in IMPORTS.items():
        assert theirs in script
        script = script.replace(theirs, ours)
    (tmp_path / "script.py").write_text(script.replace("MODEL", str(tiny)) + REPORT, encoding="utf-8")
    env = {
        **os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
        "HF_DATASETS_CACHE": str(tmp_path / "datasets"),
    }  # fmt: skip
    command = [sys.executable, "-P", "script.py"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "vLLM is not installed" in done.stderr
    assert "slower" not in done.stderr  # answers were written on the fast path
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["longest_prompt"] == 8
    assert len(report["rewards"]) == len(report["answered"]) == 8
    assert sum(report["rewards"][-3:]) / 3 > sum(report["rewards"][:3]) / 3 + 0.1


def test_functions_are_called_with_what_they_name_and_their_answers_checked(
    tiny: Path, tmp_path: Path
) -> None:
    called: list[tuple[int, int]] = []

    def one(completions: list[str], trainer_state: Any, **kwargs: Any) -> list[float | None]:
        called.append((trainer_state.global_step, len(completions)))
        return [0.5, None, *[0.0] * (len(completions) - 2)]

    def wrong(completions: list[str], **kwargs: Any) -> list[float]:
        return [0.0]

    trainer = trainer_of(tiny, tmp_path, GRPOTrainer, GRPOConfig, functions=[one], max_steps=1)
    trainer.train()
    assert called == [(0, 4)]
    trainer = trainer_of(tiny, tmp_path, RLOOTrainer, RLOOConfig, functions=[one, wrong])
    with pytest.raises(WhetError, match="wrong returned 1 values for 4 completions"):
        trainer.train()


def trainer_of(
    tiny: Path, folder: Path, kind: Any, config: Any, functions: list[Any] | None = None, **more: Any
) -> Any:
    model, tokenizer = FastLanguageModel.from_pretrained(str(tiny), max_seq_length=64, load_in_4bit=False)
    model = FastLanguageModel.get_peft_model(model, r=4, lora_alpha=8)

    def short(completions: list[str], **kwargs: Any) -> list[float]:
        return [-float(len(text)) for text in completions]

    settings: dict[str, Any] = {
        "output_dir": str(folder), "max_steps": 2, "per_device_train_batch_size": 4, "num_generations": 4,
        "max_completion_length": 6, "report_to": "none", "logging_steps": 1, "save_strategy": "no",
        "learning_rate": 1e-2,
    }  # fmt: skip
    rows = [{"prompt": f"the river {number}"} for number in range(6)]
    return kind(
        model,
        functions or short,
        args=config(**settings | more),
        train_dataset=rows,
        processing_class=tokenizer,
    )


@pytest.mark.parametrize(("kind", "config"), [(GRPOTrainer, GRPOConfig), (RLOOTrainer, RLOOConfig)])
def test_a_reference_is_the_adapter_switched_off(
    tiny: Path, tmp_path: Path, kind: Any, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda **said: sent.append(said))
    trainer = trainer_of(tiny, tmp_path, kind, config, beta=0.1, max_prompt_length=3)
    assert list(trainer.model.peft_config) == ["default"] and trainer.max_prompt_length == 3
    trainer.train()
    kl = [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]
    assert kl[0] == pytest.approx(0, abs=1e-6) and abs(kl[1]) > 1e-6
    assert sent == []


def test_what_cannot_be_is_refused_and_what_has_no_effect_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PatchFastRL("GRPO", FastLanguageModel)
    monkeypatch.setattr(rl_classes, "has_vllm", lambda: False)
    with pytest.raises(WhetError, match="pip install vllm") as refused:
        GRPOConfig(str(tmp_path), use_vllm=True)
    assert refused.value.code == "python_api.vllm"
    with pytest.raises(WhetError, match="num_generations"):
        GRPOConfig(str(tmp_path), num_generation=4)
    with pytest.warns(WhetNote, match="vllm_sampling_params"):
        config = GRPOConfig(str(tmp_path), vllm_sampling_params=object(), warmup_ratio=0.1, loss_type="dapo")
    assert (config.warmup_steps, config.loss_type, config.max_prompt_length) == (0.1, "dapo", None)


def test_groups_that_do_not_divide_are_refused_and_the_order_of_arguments_is_trls(
    tiny: Path, tmp_path: Path
) -> None:
    config = GRPOConfig(str(tmp_path), per_device_train_batch_size=8, num_generations=4, report_to="none")
    rows = [{"prompt": "a"}] * 8
    with pytest.raises(WhetError, match="num_generations=3") as refused:
        GRPOTrainer(str(tiny), lambda completions, **more: [0.0] * 8, config, rows, num_generations=3)
    assert refused.value.code == "python_api.groups"
    trainer = GRPOTrainer(str(tiny), lambda completions, **more: [0.0] * 8, config, rows, num_generations=2)
    assert (trainer.num_generations, config.num_generations, len(trainer.train_dataset)) == (2, 4, 8)
