"""What a rank other than 0 leaves in the run's directory: its log, and one small file on how it ended."""

from __future__ import annotations

import signal
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import WhetError
from ..findings import Finding
from .failures import describe_failure, lost_contact
from .files import write_atomic
from .log import read_log
from .store import RunDir, RunError

TAIL_LINES, TAIL_WIDTH = 3, 160
"""Of a dead rank's log, in the run's error."""
BEGUN = "---"
"""Begins the line that each attempt begins its log with."""


class RankReport(BaseModel):
    """How a rank's job ended; a rank that was killed has none."""

    model_config = ConfigDict(frozen=True)

    status: Literal["ended", "failed"]
    error: RunError | None = None
    consequence: bool = False
    """It failed because another rank was gone: that one's end is the cause."""
    finding: Finding | None = None
    """What it failed of, where a check's or the planner's finding says what to do about it."""


class RankError(WhetError):
    """How another rank ended, as the run's error.

    Args:
        code, message, hint: see :class:`WhetError`.
        finding: what that rank found, for rank 0 to say.
    """

    def __init__(self, code: str, message: str, hint: str = "", finding: Finding | None = None) -> None:
        super().__init__(code, message, hint)
        self.finding = finding


def rank_log(run: RunDir, rank: int) -> Path:
    """What libraries print in that rank, and its traceback."""
    return run.path / f"worker-rank{rank}.log"


def report_end(
    run: RunDir, rank: int, error: BaseException | None = None, finding: Finding | None = None
) -> None:
    """Write the report of a rank whose job is over; a full disk may refuse it, and the log says enough.

    ``finding`` is the last error that the job found; it belongs to an error whose text repeats its title.
    """
    report = RankReport(status="ended")
    if error is not None:
        described = describe_failure(error, run.path, rank_log(run, rank).name)
        report = RankReport(
            status="failed",
            error=RunError(**described.as_dict()),
            consequence=lost_contact(error),
            finding=finding if finding is not None and finding.title in described.message else None,
        )
    with suppress(OSError):
        write_atomic(_file(run, rank), report.model_dump_json().encode())


def forget_report(run: RunDir, rank: int) -> None:
    """Remove what an earlier attempt left."""
    _file(run, rank).unlink(missing_ok=True)


def read_report(run: RunDir, rank: int) -> RankReport | None:
    """The report of a rank; None while there is none, and for one that cannot be read."""
    try:
        return RankReport.model_validate_json(_file(run, rank).read_bytes())
    except (OSError, ValidationError):
        return None


def failure_of(rank: int, report: RankReport) -> RankError:
    """A rank's own error as the run's, with what it found."""
    error = report.error or RunError(code="run.crashed", message="It failed.")
    found = report.finding
    if found is not None:
        told = {"title": f"Rank {rank}: {found.title}", "evidence": {**found.evidence, "rank": rank}}
        found = found.model_copy(update=told)
    return RankError(error.code, f"Rank {rank}: {error.message}", error.hint, found)


def death_of(run: RunDir, rank: int, code: int) -> WhetError:
    """The run's error when a rank ended with exit status ``code`` (minus a signal's number) and no report."""
    how = f"was killed by {_signal_name(-code)}" if code < 0 else f"ended with exit status {code}"
    log = rank_log(run, rank)
    lines = [line.strip()[:TAIL_WIDTH] for line in read_log(log, TAIL_LINES).lines]
    tail = [line for line in lines if line and not line.startswith(BEGUN)]
    said = f" Its last lines: {' | '.join(tail)}" if tail else ""
    memory = (
        "SIGKILL is mostly the kernel's, out of memory (see `dmesg`). " if -code == signal.SIGKILL else ""
    )
    return WhetError(
        "run.rank_died",
        f"Rank {rank} {how} in the middle of the run.{said}",
        f"{memory}Its log is {log}. Finished checkpoints are untouched; `whet resume {run.id}` goes on.",
    )


def silence_of(run: RunDir, ranks: int, error: BaseException) -> WhetError:
    """The run's error when rank 0 lost contact and no other rank says that it is the cause.

    Those without a report were killed, with their machine maybe.
    """
    broken = broken_exchange(run, ranks, str(error))
    if broken is not None:
        return broken
    silent = _silent(run, ranks)
    names = f"rank{'s' if len(silent) > 1 else ''} {', '.join(map(str, silent))}"
    return WhetError(
        "run.rank_died",
        f"Contact was lost with {names} in the middle of the run: {_first_line(str(error))}",
        f"Its log is {rank_log(run, silent[0])}, where it wrote one. Finished checkpoints are untouched; "
        f"`whet resume {run.id}` goes on.",
    )


def broken_exchange(run: RunDir, ranks: int, said: str) -> WhetError | None:
    """The run's error where each rank lost contact and none died; None where one has not said how it ended.

    Args:
        run: of rank 0.
        ranks: processes of the run.
        said: what an exchange ended with.
    """
    if _silent(run, ranks):
        return None
    return WhetError(
        "run.exchange_failed",
        f"The ranks could not exchange their numbers, and none of them died: {_first_line(said)}",
        "`whet doctor` shows how the GPUs are joined, the size of /dev/shm and NCCL's switches; with "
        f"NCCL_DEBUG=INFO in the environment NCCL says more. Then `whet resume {run.id}` goes on.",
    )


def _silent(run: RunDir, ranks: int) -> list[int]:
    return [rank for rank in range(1, ranks) if read_report(run, rank) is None]


def _first_line(text: str) -> str:
    return next(iter(text.strip().splitlines()), "no reason was given")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _file(run: RunDir, rank: int) -> Path:
    return rank_log(run, rank).with_suffix(".json")
