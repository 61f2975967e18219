"""The targets' proofs pass what is right and name what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_adapters import train_at_random
from support.tiny_models import build_tiny_model

from whet.engine.errors import WhetError
from whet.engine.export.gguf.convert import convert
from whet.engine.export.smoke import Baseline, prove
from whet.engine.export.smoke_cases import Limits
from whet.engine.export.targets import reload_process
from whet.engine.export.targets.adapter_gguf import write_adapter_gguf
from whet.engine.export.targets.adapter_proof import judge_adapter, prove_adapter
from whet.engine.export.targets.four_bit import write_four_bit
from whet.engine.export.targets.fp8 import write_fp8
from whet.engine.export.targets.reload_proof import Format, judge_reload, prove_reload
from whet.engine.export.verdict import Proof, Verdict, load_verdict

WRITERS = {"nf4": write_four_bit, "fp8": write_fp8}
TEXTS = [
    "The quick brown fox jumps over the lazy dog, again and again.",
    "def add(a, b):\n    return a + b\n",
]
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("wide") / "model", wide=True, dtype="bfloat16")


def reload(source: Path, written: Path, kind: Format) -> Proof:
    """The proof, measured in this process."""
    request = {
        "format": kind, "model": str(source), "written": str(written), "texts": TEXTS, "rows": [],
        "positions": 64, "share": 0.5,
    }  # fmt: skip
    return judge_reload(reload_process.main(request, lambda done, total: None), kind)


def kept(proven: Path) -> Verdict | None:
    """The verdict beside what was proven, without the sums that were made when it was written."""
    verdict = load_verdict(proven)
    return verdict and verdict.model_copy(update={"crc32": {}})


def test_a_folder_in_few_bits_is_proven(source: Path, tmp_path: Path) -> None:
    write_fp8(source, tmp_path / "fp8")
    verdict = prove_reload(source, tmp_path / "fp8", "fp8")
    proof = verdict.proofs[0]
    assert (verdict.status, proof.name, verdict.file_type) == ("pass", "reload", "fp8")
    assert 0 < proof.evidence["mean"] < 0.05 and proof.evidence["wrong"] == []
    assert kept(tmp_path / "fp8") == verdict


def scaled(tensors: dict[str, torch.Tensor], kind: str) -> None:
    """One layer larger by half."""
    name = f"{UP}_scale" if kind == "fp8" else f"{UP}.nested_absmax"
    tensors[name] = tensors[name] * 1.5


def swapped(tensors: dict[str, torch.Tensor], kind: str) -> None:
    """Two layers' weights the wrong way round, with all that belongs to them."""
    other = UP.replace("layers.1", "layers.0")
    for name in [name for name in tensors if name.startswith(UP)]:
        mate = name.replace(UP, other)
        tensors[name], tensors[mate] = tensors[mate], tensors[name]


@pytest.mark.parametrize("kind", ["nf4", "fp8"])
@pytest.mark.parametrize("fault", [scaled, swapped])
def test_a_wrong_weight_is_named(source: Path, tmp_path: Path, kind: Format, fault: Any) -> None:
    WRITERS[kind](source, tmp_path / "out")
    right = reload(source, tmp_path / "out", kind)
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    fault(tensors, kind)
    save_file(tensors, file, metadata={"format": "pt"})
    wrong = reload(source, tmp_path / "out", kind)
    assert right.evidence["wrong"] == [] and right.status in ("pass", "warn")
    assert wrong.status == "fail" and UP in wrong.evidence["wrong"] and "whet export" in wrong.fix


def test_a_costly_rounding_is_said() -> None:
    measured = {"wrong": [], "mean": 0.4, "max": 2.0, "same_top": 0.6, "positions": 100}
    assert judge_reload(measured, "nf4").status == "warn"
    assert judge_reload({**measured, "mean": 0.01}, "nf4").status == "pass"
    assert judge_reload({**measured, "mean": float("nan")}, "nf4").status == "fail"


def test_without_its_reader_fp8_is_unproven(
    monkeypatch: pytest.MonkeyPatch, source: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(reload_process, "find_spec", lambda name: None)
    proof = reload(source, tmp_path, "fp8")
    assert proof.status == "warn" and "pip install compressed-tensors" in proof.fix


def test_an_adapter_file_is_proven_and_a_wrong_alpha_seen(tmp_path: Path) -> None:
    base = build_tiny_model(tmp_path / "base", "mistral")
    adapter = train_at_random(base, tmp_path / "adapter", use_rslora=True)
    gguf = convert(base, tmp_path / "base.gguf", "f16")
    write_adapter_gguf(adapter, base, tmp_path / "right.gguf")
    verdict = prove_adapter(base, gguf, adapter, tmp_path / "right.gguf")
    assert (verdict.status, verdict.proofs[0].name) == ("pass", "adapter")
    assert verdict.proofs[0].evidence["mean"] < 1e-5 < 1e-2 < verdict.proofs[0].evidence["moved"]
    assert kept(tmp_path / "right.gguf") == verdict
    nothing = Baseline(tmp_path, {"side": "smoke"}, Limits())
    with pytest.raises(WhetError, match="lays it over a model") as refusal:
        prove(tmp_path / "right.gguf", nothing)  # as if it were a model; its verdict stays
    assert refusal.value.code == "smoke.adapter" and kept(tmp_path / "right.gguf") == verdict

    config = adapter / "adapter_config.json"
    right = config.read_text()
    config.write_text(json.dumps(json.loads(right) | {"use_rslora": False}))
    write_adapter_gguf(adapter, base, tmp_path / "wrong.gguf")
    config.write_text(right)
    verdict = prove_adapter(base, gguf, adapter, tmp_path / "wrong.gguf")
    assert verdict.status == "fail" and verdict.proofs[0].evidence["mean"] > 1e-2


def test_an_adapter_that_hardly_changes_anything_cannot_be_told() -> None:
    measured = {"mean": 2e-6, "max": 1e-5, "moved": 5e-6, "positions": 100}
    assert judge_adapter(measured).status == "warn"
    assert judge_adapter({**measured, "moved": 1e-3}).status == "pass"
