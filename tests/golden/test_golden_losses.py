"""The demo's first twenty losses are those that were committed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.demo_losses import GOLDEN, STEPS, first_losses


def test_first_losses_of_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 0.5 %: other processors and versions of torch round differently, and steps carry that on."""
    monkeypatch.setenv("WHET_HOME", str(tmp_path))
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))["losses"]
    losses = first_losses()
    assert len(golden) == STEPS
    assert losses == pytest.approx(golden, rel=5e-3)
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])  # and the demo learns
