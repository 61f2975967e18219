"""The end-to-end benchmark at a size a CPU runs in seconds, and its arithmetic."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "end_to_end.py"
NAMES = ("models", "rows", "report", "measuring", "stacks", "whet_stack", "encoder_stacks")


@pytest.fixture(scope="module")
def parts() -> Iterator[Any]:
    """The benchmark's modules; they are scripts beside one another, no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.with_name("training")))
        found = {name: importlib.import_module(name) for name in NAMES}
        spec = importlib.util.spec_from_file_location("end_to_end", SCRIPT)
        assert spec is not None and spec.loader is not None
        found["end_to_end"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found["end_to_end"])
        yield SimpleNamespace(**found)
        for name in NAMES:
            del sys.modules[name]


@pytest.fixture(scope="module")
def folder(parts: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("models") / "tiny"
    parts.models.make("tiny", path)
    return path


@pytest.fixture(scope="module")
def row(parts: Any, folder: Path) -> Any:
    """The tiny row, shortened."""
    row = parts.rows.ROWS["tiny"]
    short = {"steps": 4, "warm": 2, "length": 24, "batch": 2, "accumulation": 2}
    jobs = {label: replace(job, device="cpu", folder=str(folder), **short) for label, job in row.jobs.items()}
    return replace(row, jobs=jobs)


def driver(*words: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", str(SCRIPT), *words, "--device", "cpu"],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_the_tiny_row_trains_the_same_model_in_both_stacks(parts: Any, row: Any) -> None:
    results = {label: parts.stacks.run(job, time.time()) for label, job in row.jobs.items()}
    hf, whet = results["hf"], results["whet"]
    assert len(hf.losses) == len(whet.losses) == 4
    assert whet.losses == pytest.approx(hf.losses, rel=2e-5)
    assert "attention 2/2, mlp 2/2, loss 1/1" in whet.note
    assert whet.predicted_peak is not None
    assert whet.rate > 0 and whet.mean_rate > 0
    text = parts.report.table(row, row.jobs, results)
    ratio = f"{whet.rate / hf.rate:.2f}"
    assert f"| {ratio}× |" in text
    assert f"tokens/s of whet at least 1× that of hf: {ratio}, " in text


def test_the_tiny_encoder_trains_the_same_model_in_both_stacks(parts: Any, tmp_path: Path) -> None:
    row, folder = parts.rows.ROWS["tiny-encoder"], tmp_path / "encoder"
    parts.models.make("tiny-encoder", folder)
    jobs = {label: replace(job, device="cpu", folder=str(folder)) for label, job in row.jobs.items()}
    results = {label: parts.encoder_stacks.run(job, time.time()) for label, job in jobs.items()}
    st, whet = results["st"], results["whet"]
    assert len(st.losses) == len(whet.losses) == 6
    assert whet.losses == pytest.approx(st.losses, rel=2e-4)
    assert "batches on the fast path" in whet.note
    text = parts.report.table(row, jobs, results)
    assert "| pairs/s |" in text and "pairs/s of whet at least 1× that of st: " in text


def test_an_uneven_row_counts_the_tokens_of_the_measured_steps(parts: Any) -> None:
    job = parts.rows.Job("hf", "tiny", batch=1, accumulation=2, length=100, lengths="chat", steps=3, warm=1)
    lengths = [len(ids) for ids in parts.models.token_rows("tiny", 6, 100, "chat")]
    assert len(set(lengths)) > 1
    result = parts.rows.Result()
    parts.stacks._rates(job, [10.0, 12.0, 13.0], result)
    assert result.mean_rate == pytest.approx(sum(lengths[2:]) / 3)
    assert result.rate == pytest.approx((sum(lengths[2:4]) / 2 + sum(lengths[4:])) / 2)


@pytest.mark.parametrize(
    ("value", "bound", "over", "said"),
    [
        ("rate", 1.6, ("slow",), "2.00, met"),
        ("rate", 1.6, ("slow", "fast"), "1.25, not met"),
        ("rate", 1.6, ("slow", "absent"), "2.00, met, without absent"),
        ("rate", 1.6, ("absent",), "not measured (absent)"),
        ("peak", 5.0, (), "4.50, met"),
        ("peak", 1.0, ("slow",), "1.50, not met"),
        ("eighth", 0.5, ("slow",), "0.40, met"),
        ("eighth", 0.5, ("fast",), "not measured"),
    ],
)
def test_targets(parts: Any, value: str, bound: float, over: tuple[str, ...], said: str) -> None:
    result = parts.rows.Result
    results = {
        "whet": result(rate=200, peak=4.5, eighth=20),
        "slow": result(rate=100, peak=3, eighth=50),
        "fast": result(rate=160, peak=9),
    }
    target = parts.rows.Target(value, "whet", bound, over)
    assert target.check(results, "rate").endswith(f": {said}")


def test_rows_say_only_what_their_own_runs_can_show(parts: Any) -> None:
    for name, row in parts.rows.ROWS.items():
        labels = list(row.jobs)
        assert row.base in labels, name
        for target in row.targets:
            assert {target.of, *target.over} <= set(labels), name
        for label, job in row.jobs.items():
            assert job.stack in parts.rows.STACKS and 0 < job.warm < job.steps
            assert job.cap_of is None or labels.index(job.cap_of) < labels.index(label), name


@pytest.mark.skipif(importlib.util.find_spec("unsloth") is not None, reason="unsloth is installed")
def test_what_is_not_there_is_said_in_its_row(folder: Path, tmp_path: Path) -> None:
    words = (
        "8b-nf4",
        "--model",
        "tiny",
        "--stacks",
        "unsloth,whet in unsloth's",
        "--folder",
        str(folder.parent),
    )
    done = driver(*words, "--out", str(tmp_path / "found"))
    assert done.returncode == 0, done.stderr
    assert "| unsloth is not installed |" in done.stdout
    assert "| unsloth was not measured in this call |" in done.stdout
    (written,) = (tmp_path / "found").iterdir()
    assert written.read_text(encoding="utf-8").strip() == done.stdout.strip()


def test_a_stack_that_fails_or_takes_too_long_says_so(
    parts: Any, row: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = parts.end_to_end.run_job(replace(row.jobs["hf"], stack="nothing"), 60)
    assert broken.error == "ended with code 1: KeyError: 'nothing'"
    assert "Traceback" in capsys.readouterr().err
    late = parts.end_to_end.run_job(row.jobs["hf"], 0.05)
    assert late.error == "not done after 0 s"


@pytest.mark.parametrize(
    ("stack", "missing", "code"), [("whet", False, 1), ("whet", True, 0), ("hf", False, 0)]
)
def test_only_a_failure_of_ours_fails_the_call(
    parts: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, stack: str, missing: bool, code: int
) -> None:
    monkeypatch.setattr(
        parts.end_to_end, "run_job", lambda *_: parts.rows.Result(error="no", missing=missing)
    )
    words = ["tiny", "--stacks", stack, "--device", "cpu", "--folder", str(folder.parent)]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words])
    assert parts.end_to_end.main() == code
