"""Each proof passes on a healthy file and fails on the fault it is there for.

The model is a tiny one overfitted on a few conversations, so that it stops by itself and its distributions
are sharp.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.exported import learnt_model, learnt_rows
from support.gguf_faults import DROP, rewrite
from support.tiny_models import build_tiny_model

from whet.engine.data.chat_templates import TEMPLATES, find
from whet.engine.data.chat_templates.renderer import Renderer
from whet.engine.errors import WhetError
from whet.engine.export import smoke, smoke_reference
from whet.engine.export.gguf.convert import convert
from whet.engine.export.gguf.llama import UNASKED
from whet.engine.export.gguf.quantize import quantize
from whet.engine.export.smoke import Baseline, prove, reference_of, smoke_test, type_of
from whet.engine.export.smoke_cases import cases_for
from whet.engine.export.smoke_judge import gate_for
from whet.engine.export.verdict import Proof, Verdict, load_verdict


@pytest.fixture(scope="module")
def trained() -> Path:
    """A tiny model that has learnt a few conversations by heart."""
    return learnt_model()


@pytest.fixture(scope="module")
def held_out() -> list[dict[str, Any]]:
    return learnt_rows()


@pytest.fixture(scope="module")
def baseline(trained: Path, held_out: list[dict[str, Any]]) -> Iterator[Baseline]:
    with reference_of(trained, held_out) as measured:
        yield measured


@pytest.fixture(scope="module")
def healthy(trained: Path) -> Path:
    return convert(trained, trained.parent / "model-f16.gguf", "f16")


@pytest.fixture(scope="module")
def healthy_verdict(healthy: Path, baseline: Baseline) -> Verdict:
    return prove(healthy, baseline)


def proof(verdict: Verdict, name: str) -> Proof:
    return next(one for one in verdict.proofs if one.name == name)


def test_the_healthy_file_passes_all(healthy: Path, healthy_verdict: Verdict) -> None:
    assert {one.name: one.status for one in healthy_verdict.proofs} == dict.fromkeys(
        ["vocabulary", "template", "bos", "stops", "configuration", "logits", "answers"], "pass"
    )
    assert healthy_verdict.status == "pass" and healthy_verdict.file_type == "f16"
    evidence = proof(healthy_verdict, "answers").evidence
    assert evidence["held_out"] == 4 and evidence["stopped"]["transformers"] == 4
    assert evidence["stopped"]["llama.cpp"] == 4
    assert proof(healthy_verdict, "template").evidence["trained_rows"]["compared"] == 4
    kept = load_verdict(healthy)
    assert kept is not None and kept.model_copy(update={"crc32": {}}) == healthy_verdict


@pytest.mark.parametrize("kind", ["q8_0", "q6_k"])
def test_quantised_files_are_held_against_the_f16(
    kind: str, healthy: Path, baseline: Baseline, healthy_verdict: Verdict
) -> None:
    verdict = prove(quantize(healthy, healthy.with_name(f"model-{kind}.gguf"), kind).path, baseline)
    logits = proof(verdict, "logits")
    assert logits.evidence["against"] == "f16" and 0 < logits.evidence["mean"] < gate_for(kind)
    assert verdict.status == "pass" and verdict.file_type == kind == type_of(Path(verdict.gguf))


def swapped(name: str, data: np.ndarray) -> np.ndarray:
    return data[::-1].copy() if name == "blk.0.ffn_up.weight" else data


def drop_token(path: Path) -> list[str]:
    """The token list with one frequent merged token misspelt: as if it had been dropped."""
    from gguf import GGUFReader

    tokens = list(GGUFReader(path).fields["tokenizer.ggml.tokens"].contents())
    tokens[tokens.index("Ġthe")] = "ĠthZe"
    return tokens


OTHER_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
TWICE = (
    "{{ bos_token }}{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content }}"
    "<|turn_end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@pytest.mark.parametrize(
    ("fault", "changes", "failing"),
    [
        ("another template", {"tokenizer.chat_template": OTHER_TEMPLATE}, "template"),
        ("another template", {"tokenizer.chat_template": OTHER_TEMPLATE}, "answers"),
        ("no template", {"tokenizer.chat_template": DROP}, "template"),
        ("the template writes BOS twice", {"tokenizer.chat_template": TWICE}, "bos"),
        ("BOS is not added", {"tokenizer.ggml.add_bos_token": False}, "bos"),
        ("the end of turn does not end", {"tokenizer.ggml.eot_token_id": DROP, "eos": 0}, "stops"),
        ("another epsilon", {"llama.attention.layer_norm_rms_epsilon": 1e-5}, "configuration"),
        ("another rotary base", {"llama.rope.freq_base": 500000.0}, "configuration"),
    ],
)
def test_a_planted_fault_fails_its_proof(
    fault: str, changes: dict[str, Any], failing: str, healthy: Path, baseline: Baseline, tmp_path: Path
) -> None:
    changes = dict(changes)
    if "eos" in changes:
        # The list of ends is llama.cpp's: by id in the metadata, and by some well-known names.
        del changes["eos"]
        changes["tokenizer.ggml.eos_token_id"] = 0
    broken = rewrite(healthy, tmp_path / "broken.gguf", changes)
    verdict = prove(broken, baseline)
    found = proof(verdict, failing)
    assert verdict.status == found.status == "fail", (fault, found)
    assert found.fix and found.evidence


def test_a_file_that_adds_bos_where_training_did_not(tmp_path: Path) -> None:
    model = build_tiny_model(tmp_path / "model", "qwen2")
    healthy = convert(model, tmp_path / "model.gguf", "f16")
    broken = rewrite(healthy, tmp_path / "broken.gguf", {"tokenizer.ggml.add_bos_token": True})
    with reference_of(model) as measured:
        assert proof(prove(healthy, measured), "bos").status == "pass"
        assert proof(prove(broken, measured), "bos").status == "fail"


def test_a_template_of_no_end_is_refused_and_not_waited_for(
    healthy: Path, baseline: Baseline, tmp_path: Path
) -> None:
    """Whoever made the file wrote it, and 20 million characters are still few enough to be made without."""
    changes = {"tokenizer.chat_template": "{{ 'a' * 20000000 }}"}
    verdict = prove(rewrite(healthy, tmp_path / "costly.gguf", changes), baseline)
    found = proof(verdict, "template")
    assert found.status == "fail" and len(found.evidence["differing"]) == len(found.evidence["cases"])
    assert "not rendered to its end" in found.evidence["example"]["llama.cpp"]["error"]
    crash = proof(verdict, "llama.cpp")
    assert crash.evidence["code"] == "template.costly" and crash.evidence["step"] == "answers"


@pytest.mark.parametrize("source", ["{{ 'a' * 20000000 }}", "{{ 'a' * (20000000 if messages|length > 1) }}"])
def test_a_trained_folders_template_of_no_end_is_no_reference(
    source: str,
    trained: Path,
    held_out: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second one renders some conversations: it is no refusal of the others. Measured in this process."""
    monkeypatch.setattr(
        smoke, "run_native", lambda module, request, **_: smoke_reference.main(request, lambda *_: None)
    )
    folder = shutil.copytree(trained, tmp_path / "costly")
    (folder / "chat_template.jinja").write_text(source, encoding="utf-8")
    with pytest.raises(WhetError, match="not rendered to its end") as caught, reference_of(folder, held_out):
        pass
    assert caught.value.code == "template.costly"


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_file_s_template_is_rendered_as_llama_cpp_python_does(name: str) -> None:
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    source = find(name).source
    ours = Renderer(source, "<s>", "</s>")
    for case in cases_for(source):
        messages, prompt, kwargs = case["messages"], case["add_generation_prompt"], case["kwargs"]
        theirs = Jinja2ChatFormatter(source, "</s>", "<s>", prompt)
        try:
            wanted = theirs(messages=messages, **kwargs).prompt
        except ValueError as refused:
            with pytest.raises(WhetError, match=re.escape(str(refused))):
                ours.render_as_given(messages, prompt, None, UNASKED | kwargs)
            continue
        assert ours.render_as_given(messages, prompt, None, UNASKED | kwargs) == wanted


def test_a_permuted_tensor_fails_and_spoils_what_is_made_from_it(
    healthy: Path, trained: Path, held_out: list[dict[str, Any]], tmp_path: Path
) -> None:
    broken = rewrite(healthy, tmp_path / "broken-f16.gguf", tensors=swapped)
    derived = quantize(broken, tmp_path / "broken-q8_0.gguf", "q8_0").path
    with reference_of(trained, held_out) as measured:
        first = proof(prove(broken, measured), "logits")
        assert first.status == "fail" and first.evidence["mean"] > 10 * gate_for("f16")
        second = proof(prove(derived, measured), "logits")
    # The quantised file is near its f16: the verdict must not forget that this one is wrong.
    assert second.evidence["mean"] < gate_for("q8_0")
    assert second.status == "fail" and "f16" in second.summary


def test_a_dropped_token_fails_the_vocabulary(healthy: Path, baseline: Baseline, tmp_path: Path) -> None:
    changes = {"tokenizer.ggml.tokens": drop_token(healthy)}
    verdict = prove(rewrite(healthy, tmp_path / "broken.gguf", changes), baseline)
    failed = [one.name for one in verdict.proofs if one.status == "fail"]
    # llama.cpp may refuse such a file, or read it and tokenise differently: both are findings.
    assert failed and failed[0] in ("vocabulary", "llama.cpp")


def test_another_template_than_training_had(
    trained: Path, healthy: Path, held_out: list[dict[str, Any]]
) -> None:
    changed = [{**row, "input_ids": [*row["input_ids"][:3], 5, *row["input_ids"][4:]]} for row in held_out]
    verdict = smoke_test(healthy, trained, held_out=changed)
    assert proof(verdict, "template").status == "fail"
    assert proof(verdict, "template").evidence["trained_rows"]["differing"] == 4


def test_the_digest_of_the_template_travels(trained: Path, tmp_path: Path) -> None:
    import hashlib

    from whet.engine.data.chat_templates import find
    from whet.engine.data.chat_templates.renderer import strip_generation_tags

    source = find("chatml").source
    file = tmp_path / "template_digest"
    assert smoke.template_as_trained(tmp_path, "x") is None
    file.write_text(hashlib.blake2b(source.encode(), digest_size=16).hexdigest() + "\n")
    assert smoke.template_as_trained(tmp_path, strip_generation_tags(source)) is True
    assert smoke.template_as_trained(tmp_path, "another") is False


def test_a_broken_file_is_a_finding(healthy: Path, baseline: Baseline, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(healthy.read_bytes()[:-200_000])
    verdict = prove(cut, baseline, keep=False)
    assert verdict.status == "fail" and proof(verdict, "llama.cpp").fix
    with pytest.raises(WhetError) as error:
        prove(tmp_path / "none.gguf", baseline)
    assert error.value.code == "smoke.no_gguf"


def test_a_native_crash_is_a_finding_that_keeps_what_was_seen(
    healthy: Path, baseline: Baseline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The process dies by SIGSEGV in the middle, as a badly built llama.cpp does."""
    (tmp_path / "crashing.py").write_text(
        "import os, signal\n"
        "from whet.engine.export import smoke_process\n"
        "smoke_process.Measurement.logits = lambda self: os.kill(os.getpid(), signal.SIGSEGV)\n"
        "main = smoke_process.main\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(smoke.__file__).parents[3]}:{_path()}")
    real = smoke.run_native
    monkeypatch.setattr(smoke, "run_native", lambda module, request, *rest: real("crashing", request))
    verdict = prove(healthy, baseline, keep=False)
    assert verdict.status == "fail"
    assert [one.name for one in verdict.proofs] == [
        *("vocabulary", "template", "bos", "stops", "configuration", "llama.cpp")
    ]
    crash = verdict.proofs[-1]
    assert "SIGSEGV" in crash.summary and crash.evidence["step"] == "logits" and crash.fix


def _path() -> str:
    import os

    return os.environ.get("PYTHONPATH", "")


@pytest.mark.slow  # half a minute: `make slow`; test_jobs.py starts the same processes
def test_export_and_smoke_as_processes(trained: Path, held_out: list[dict[str, Any]], tmp_path: Path) -> None:
    section = {"gguf": ["q8_0"], "merged": False, "smoke_test": True}
    asked = {"action": "export", "trained": str(trained), "out": str(tmp_path / "out"), "section": section}
    code, events = run_process({**asked, "name": "tiny", "held_out": held_out})
    assert code == 0, events[-1]
    kinds = [event["kind"] for event in events if event["type"] == "export"]
    assert kinds == ["gguf", "smoke", "modelfile", "card"]
    assert {"export", "smoke"} <= {event["phase"] for event in events if event["type"] == "phase"}
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert names == ["Modelfile", "README.md", "tiny-q8_0.gguf", "tiny-q8_0.verdict.json"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "**`tiny-q8_0.gguf`: pass**" in card and "- torch " in card
    gguf = tmp_path / "out" / "tiny-q8_0.gguf"
    broken = rewrite(gguf, tmp_path / "broken.gguf", {"tokenizer.chat_template": DROP})
    code, events = run_process({"action": "smoke", "gguf": str(broken), "reference": str(trained)})
    assert code == 3 and events[-2]["detail"]["status"] == "fail"
    finding = events[-1]["finding"]
    assert finding["id"] == "X03" and finding["evidence"]["cause"] == "chat template"
    code, events = run_process({"action": "smoke", "gguf": str(broken), "reference": str(tmp_path)})
    assert code == 1 and events[-1]["type"] == "error" and events[-1]["code"] == "export.no_model"


def run_process(request: dict[str, Any]) -> tuple[int, list[dict[str, Any]]]:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "whet.engine.export.export_process"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]
