"""Every planted fault fails the step that is there for it; the healthy files of the same models fail none."""

from __future__ import annotations

from pathlib import Path

import pytest
from export.gguf_faults_planted import FAULTS, HEALTHY_TYPES, GGUFFault
from support.proven_models import proven

from whet.engine.export.smoke import prove


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_named_step_catches_it(fault: GGUFFault, tmp_path: Path) -> None:
    failed = fault.failing(fault, tmp_path)
    assert fault.caught_by in failed, f"failed instead: {failed}"


@pytest.mark.parametrize("kind", HEALTHY_TYPES)
@pytest.mark.parametrize("model", sorted({fault.model for fault in FAULTS}))
def test_healthy_files_raise_no_alarm(model: str, kind: str) -> None:
    one = proven(model)
    verdict = prove(one.gguf(kind), one.baseline, keep=False)
    assert verdict.failures() == []
