"""Who waits for a process that works alone waits as long as it takes; a lost one is not taken for memory."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, cast

import pytest
from torch import distributed

from whet.engine.methods.memory_errors import out_of_memory_said
from whet.engine.parallel import collectives
from whet.engine.parallel.process_group import WAITING_SECONDS
from whet.engine.runs.context import RunContext


@pytest.mark.parametrize(("seconds", "limit"), [(None, WAITING_SECONDS), (7.0, 7.0)])
def test_the_limit_is_said_each_time(
    monkeypatch: pytest.MonkeyPatch, seconds: float | None, limit: float
) -> None:
    """The barrier would take 30 minutes for its own, whatever the group was made with."""
    limits: list[timedelta] = []

    def barrier(group: Any, timeout: timedelta) -> None:
        limits.append(timeout)

    monkeypatch.setattr(collectives, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "monitored_barrier", barrier)
    collectives.wait_for_all(seconds)
    assert limits == [timedelta(seconds=limit)]


def test_a_lost_process_is_not_memory_that_ran_out() -> None:
    """NCCL says it in a class of its own, which is a RuntimeError as torch's out of memory is."""
    lost = distributed.DistBackendError("NCCL communicator was aborted on rank 0.")
    with pytest.raises(distributed.DistBackendError) as seen, out_of_memory_said(cast(RunContext, None)):
        raise lost
    assert seen.value is lost
