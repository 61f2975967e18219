"""Quantised files load and stay near; failures name their reason; crashes are errors like others."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
from support.gguf_logits import Array, kl, llama_log_probs
from support.tiny_models import build_tiny_model

from whet.engine.errors import WhetError
from whet.engine.export.gguf.convert import convert
from whet.engine.export.gguf.native import run_native
from whet.engine.export.gguf.quantize import quantize
from whet.engine.export.gguf.types import GGUF_TYPES, check_types, find_type

IDS = np.random.default_rng(1).integers(0, 390, 64).tolist()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    return convert(build_tiny_model(folder / "model", "llama", wide=True), folder / "model.f16.gguf", "f16")


@pytest.fixture(scope="module")
def reference(source: Path) -> Array:
    return llama_log_probs(source, IDS)


# Random weights have no redundancy, so they lose more than trained ones: these gates only catch broken files,
# whose divergence is that of unrelated models, above 1.
@pytest.mark.parametrize(
    ("kind", "gate"), [("q8_0", 0.01), ("q6_k", 0.05), ("q5_k_m", 0.12), ("q4_k_m", 0.35)]
)
def test_quantised_files_stay_near(
    tmp_path: Path, source: Path, reference: Array, kind: str, gate: float
) -> None:
    seen: list[tuple[float, float]] = []
    report = quantize(source, tmp_path / "q.gguf", kind, progress=lambda *at: seen.append(at))
    assert 0 < kl(reference, llama_log_probs(report.path, IDS)) < gate
    assert report.bytes == report.path.stat().st_size < source.stat().st_size
    assert report.fallbacks == 0
    assert find_type(kind).name.split("_")[0] in next(iter(report.tensor_types))
    assert seen and seen[-1][0] == seen[-1][1]
    assert list(tmp_path.iterdir()) == [report.path]


def test_rows_that_do_not_divide_are_reported(tmp_path: Path) -> None:
    narrow = convert(build_tiny_model(tmp_path / "model", "llama"), tmp_path / "n.gguf", "f16")
    report = quantize(narrow, tmp_path / "q.gguf", "q4_k_m")
    assert report.fallbacks > 0
    assert "q4_k" not in report.tensor_types


@pytest.mark.parametrize(
    "kind", sorted(kind.name for kind in GGUF_TYPES.values() if not kind.needs_importance)
)
def test_every_listed_type_is_written(tmp_path: Path, source: Path, kind: str) -> None:
    report = quantize(source, tmp_path / "q.gguf", kind)
    # Small models keep proportionally more in the larger types of the mix.
    size = source.stat().st_size * find_type(kind).bits_per_weight / 16
    assert 0.6 * size < report.bytes < 1.7 * size


def test_the_reason_of_a_failure_is_llama_cpps(tmp_path: Path, source: Path) -> None:
    torn = tmp_path / "torn.gguf"
    torn.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    with pytest.raises(WhetError, match="could not quantise") as caught:
        quantize(torn, tmp_path / "q.gguf", "q8_0")
    assert caught.value.code == "gguf.quantize_failed"
    assert "tensor" in caught.value.message or "file" in caught.value.message.rpartition("q8_0")[2]
    assert list(tmp_path.iterdir()) == [torn]


def test_a_missing_source(tmp_path: Path) -> None:
    with pytest.raises(WhetError) as caught:
        quantize(tmp_path / "none.gguf", tmp_path / "q.gguf", "q8_0")
    assert caught.value.code == "gguf.source_missing"


def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> str:
    (tmp_path / "native_stub.py").write_text(body)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    return "native_stub"


def test_a_crash_names_the_rebuild(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "import os, sys; print('at ldtilecfg', file=sys.stderr, flush=True); os.kill(os.getpid(), 11)"
    with pytest.raises(WhetError, match="at ldtilecfg") as caught:
        run_native(module(tmp_path, monkeypatch, body), {})
    assert caught.value.code == "gguf.native_crash" and signal.Signals(11).name in caught.value.message
    assert "GGML_NATIVE=OFF" in caught.value.hint


def test_a_crash_after_the_answer_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "import os; print('{\"result\": {}}', flush=True); os.kill(os.getpid(), 11)"
    with pytest.raises(WhetError) as caught:
        run_native(module(tmp_path, monkeypatch, body), {})
    assert caught.value.code == "gguf.native_crash"


def test_a_kill_is_told_as_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WhetError) as caught:
        run_native(module(tmp_path, monkeypatch, "import os; os.kill(os.getpid(), 9)"), {})
    assert "memory" in caught.value.hint


def test_an_exit_without_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WhetError, match="exit code 3") as caught:
        run_native(module(tmp_path, monkeypatch, "raise SystemExit(3)"), {})
    assert caught.value.code == "gguf.native_failed"


@pytest.mark.parametrize(("name", "near"), [("q4_km", "q4_k_m"), ("q8", "q8_0"), ("fp16", "f16")])
def test_unknown_types_name_the_nearest(name: str, near: str) -> None:
    with pytest.raises(WhetError) as caught:
        find_type(name)
    assert caught.value.code == "gguf.unknown_type" and near in caught.value.hint


def test_names_are_forgiving_and_unique() -> None:
    assert [kind.name for kind in check_types(["Q4_K_M", "q4-k-m", "F16"])] == ["q4_k_m", "f16"]
