"""Runs in several processes of this machine, all by one driver that pays for the imports once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DRIVER = Path(__file__).with_name("rank_driver.py")
TESTS = DRIVER.parents[1]
CLOSE = 1e-5


def drive(
    folder: Path,
    runs: dict[str, tuple[dict[str, Any], list[Any]]],
    *,
    prepared: bool = False,
    seconds: float = 240.0,
) -> dict[str, Any]:
    """What each of ``runs``, a recipe and its attempts by name, saw; see :mod:`support.rank_driver`.

    Args:
        folder: for whet's home, and the driver's ``ranks.log``.
        runs: in their order.
        prepared: as on GPUs, with ranks that import by themselves.
        seconds: at most; what was said until then is in the failure.
    """
    log = folder / "ranks.log"
    with open(log, "w", encoding="utf-8") as said:
        try:
            done = subprocess.run(
                [sys.executable, "-P", str(DRIVER), *["--prepared"][:prepared]],
                input=json.dumps(
                    {name: {"recipe": recipe, "attempts": tries} for name, (recipe, tries) in runs.items()}
                ),
                env=_environment(folder),
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            pytest.fail(f"not done in {seconds:g} s\n{_end_of(log)}")
    assert done.returncode == 0, _end_of(log)
    report: dict[str, Any] = json.loads(done.stdout)
    for name, run in report.items():
        assert all(code == 0 for codes in run["codes"] for code in codes), f"{name}\n{_end_of(log)}"
    return report


def _environment(folder: Path) -> dict[str, str]:
    paths = [f"{TESTS.parent / 'src'}", f"{TESTS}", *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "WHET_HOME": str(folder / "home"),
        "PYTHONPATH": ":".join(paths),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _end_of(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-6000:]


def assert_alike(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Losses, gradient norms and counts of every step, and what held-out rows measured, to 1e-5 in fp32."""
    assert len(one["steps"]) == len(other["steps"]) > 0
    for (step, *numbers), (step2, *numbers2) in zip(one["steps"], other["steps"], strict=True):
        assert step == step2
        assert numbers2 == pytest.approx(numbers, rel=CLOSE), f"step {step}"
    assert len(one["evals"]) == len(other["evals"]) > 0
    for (step, loss, tokens, metrics), (step2, loss2, tokens2, metrics2) in zip(
        one["evals"], other["evals"], strict=True
    ):
        assert (step, tokens) == (step2, tokens2)
        assert loss2 == pytest.approx(loss, rel=CLOSE), f"held-out rows at step {step}"
        assert metrics2 == pytest.approx(metrics, rel=CLOSE, abs=CLOSE), f"held-out rows at step {step}"
