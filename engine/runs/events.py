"""Events: what a run says, one JSON object a line, append-only, tailed by byte offset.

A worker appends, any number of readers tail. A torn last line (the writer died, or is writing) is ignored
until its newline arrives. After a resume steps may repeat: each event carries its attempt, and the last
attempt wins. Numbers that JSON lacks are written as the strings "NaN", "Infinity" and "-Infinity" and read
back as floats: a loss that is not finite is news, and must not crash the writer.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ..errors import WhetError
from ..findings import Finding
from .clock import RunClock
from .files import private_file

EVENT_VERSION = 1

Phase = Literal["wait", "load", "data", "train", "eval", "sample", "merge", "export", "smoke", "push"]


class EventBase(BaseModel):
    """What every event carries; ``seq`` and ``time`` are filled in by :class:`EventLog`."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    v: int = EVENT_VERSION
    seq: int = 0
    time: float = 0.0
    attempt: int = 1


FAST_PATH = "fast path: "
"""Begins the detail of the load phase that says what of the model runs fused."""


class PhaseEvent(EventBase):
    """The run entered a phase, or moved within it (``done`` of ``total`` units)."""

    type: Literal["phase"] = "phase"
    phase: Phase
    detail: str = ""
    done: float | None = None
    total: float | None = None


class StepEvent(EventBase):
    """One optimizer step. ``loss`` is the mean over the step's supervised tokens, in nats."""

    type: Literal["step"] = "step"
    step: int
    total_steps: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int = Field(description="Tokens of this step, padding excluded.")
    supervised_tokens: int
    seconds: float
    memory_bytes: int = Field(description="Peak bytes allocated on the GPU, resident set size on a CPU.")
    metrics: dict[str, float] = Field(
        default_factory=dict, description="What the method measures beside the loss, e.g. reward."
    )


class EvalEvent(EventBase):
    """Held-out loss over all supervised tokens, in nats."""

    type: Literal["eval"] = "eval"
    step: int
    loss: float
    supervised_tokens: int
    seconds: float
    best: bool
    metrics: dict[str, float] = Field(
        default_factory=dict, description="What the method measures beside the loss, e.g. ndcg@10."
    )


class SampleEvent(EventBase):
    """The same prompt answered at an evaluation (step 0 is the base model)."""

    type: Literal["sample"] = "sample"
    step: int
    prompt: str
    answer: str
    stopped: bool = Field(description="The model ended its turn by itself.")
    rewards: dict[str, float] = Field(
        default_factory=dict, description="Of an answer that was trained on: each reward, and their sum."
    )


class FindingEvent(EventBase):
    type: Literal["finding"] = "finding"
    finding: Finding


class CheckpointEvent(EventBase):
    """A checkpoint was finished: from here on a resume can begin there."""

    type: Literal["checkpoint"] = "checkpoint"
    step: int
    path: str
    bytes: int
    seconds: float
    best: bool = Field(default=False, description="It holds the lowest held-out loss so far.")


class ExportEvent(EventBase):
    """An artefact was written: ``kind`` adapter, merged, gguf, modelfile, card; or proven: ``smoke``; or a
    file of it is in a repository: ``push``."""

    type: Literal["export"] = "export"
    kind: str
    path: str
    bytes: int = 0
    detail: dict[str, Any] = Field(default_factory=dict)


class ErrorEvent(EventBase):
    """The run failed: the parts of a WhetError. The traceback is in worker.log."""

    type: Literal["error"] = "error"
    code: str
    message: str
    hint: str = ""


class DoneEvent(EventBase):
    """The worker ended by its own decision: ``finished`` or ``stopped`` (resumable)."""

    type: Literal["done"] = "done"
    status: Literal["finished", "stopped"]
    summary: dict[str, Any] = Field(default_factory=dict)


Event = Annotated[
    PhaseEvent
    | StepEvent
    | EvalEvent
    | SampleEvent
    | FindingEvent
    | CheckpointEvent
    | ExportEvent
    | ErrorEvent
    | DoneEvent,
    Field(discriminator="type"),
]
EVENT = TypeAdapter[Event](Event)


class EventLog:
    """The writing end; one per run, held by its worker. Safe to use from several threads.

    Opening cuts off what a previous writer's death left behind the last whole event, so that the file stays
    one object a line; sequence numbers go on from there.
    """

    def __init__(self, path: Path, attempt: int) -> None:
        self.attempt = attempt
        self._fd = private_file(path, os.O_RDWR)
        self._lock = threading.Lock()
        self.seq, last, self._end = _last_whole_event(self._fd)
        self._clock = RunClock(not_before=last)
        os.ftruncate(self._fd, self._end)

    def append(self, event: Event) -> Event:
        """Write one event with its sequence number, time and attempt; returns what was written.

        Raises OSError when the disk is full; the file is then as before.
        """
        with self._lock:
            stamp = {"seq": self.seq + 1, "time": self._clock.now(), "attempt": self.attempt}
            stamped = event.model_copy(update=stamp)
            line = stamped.model_dump_json().encode() + b"\n"
            try:
                written = 0
                while written < len(line):  # a nearly full disk takes a part, and refuses only then
                    written += os.pwrite(self._fd, line[written:], self._end + written)
            except OSError:
                os.ftruncate(self._fd, self._end)
                raise
            self._end += len(line)
            self.seq += 1
        return stamped

    def close(self) -> None:
        """Make all events survive a power cut, and close."""
        with self._lock:
            os.fsync(self._fd)
            os.close(self._fd)


def read_events(path: Path, offset: int = 0, most: int = -1) -> tuple[list[Event], int]:
    """Events from byte ``offset`` on, and the offset to continue from; with ``most``, so many bytes at once.

    A torn end (half a line, or the zeros a power cut leaves) is left for later: the next writer cuts it off.
    A damaged line with whole ones behind it is left out.
    Raises WhetError ``run.event_unknown`` for a whole line that is not an event this version knows.
    """
    if not path.exists():
        return [], offset
    with open(path, "rb") as file:
        file.seek(offset)
        data = file.read(most)
        data += b"" if data.endswith(b"\n") else file.readline()
    events: list[Event] = []
    for line in data[: data.rfind(b"\n") + 1].splitlines(keepends=True):
        try:
            events.append(_event(line))
        except ValidationError as error:
            if not _is_json_object(line):
                if not _goes_on(path, offset + len(line)):
                    break
                offset += len(line)  # damaged on the disk: what was said behind it stands
                continue
            raise WhetError(
                "run.event_unknown",
                f"{path} holds at byte {offset} an event this whet cannot read: {line[:120]!r}.",
                "It was probably written by a newer whet; update this one.",
            ) from error
        offset += len(line)
    return events, offset


def _goes_on(path: Path, offset: int) -> bool:
    """Whether a whole line comes from byte ``offset`` on."""
    with open(path, "rb") as file:
        file.seek(offset)
        return any(line.endswith(b"\n") and _is_json_object(line) for line in file)


@lru_cache(maxsize=8192)
def _event(line: bytes) -> Event:
    """One line as the event it is; who looks at a run again and again reads only what is new to it."""
    return EVENT.validate_json(line)


def _last_whole_event(fd: int) -> tuple[int, float, int]:
    """Sequence number and time of the last whole event in a file, and the byte behind it."""
    size = os.fstat(fd).st_size
    window = 64 << 10
    while True:
        start = max(0, size - window)
        data = os.pread(fd, size - start, start)
        lines = data.splitlines(keepends=True)
        end = size
        # The first line of a window may be cut by its beginning, unless the window begins the file.
        for line in reversed(lines if start == 0 else lines[1:]):
            if line.endswith(b"\n") and _is_json_object(line):
                said = json.loads(line)
                seq, when = said.get("seq"), said.get("time")
                return (
                    seq if isinstance(seq, int) else 0,
                    when if isinstance(when, int | float) else 0.0,
                    end,
                )
            end -= len(line)
        if start == 0:
            return 0, 0.0, 0
        window *= 4


def _is_json_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def last_attempt(events: list[Event]) -> Iterator[Event]:
    """Drop what a later attempt did again or made void, so that the loss curve has one value a step.

    An attempt that resumed at step ``n`` voids all steps, evaluations and samples of earlier attempts from
    ``n`` on.
    """
    resumed_at: dict[int, int] = {}
    for event in events:
        if isinstance(event, StepEvent):
            resumed_at[event.attempt] = min(event.step, resumed_at.get(event.attempt, event.step))
    newest: dict[tuple[str, int, str], int] = {}
    for event in events:
        if isinstance(event, StepEvent | EvalEvent | SampleEvent):
            newest[_key(event)] = event.attempt
    for event in events:
        if isinstance(event, StepEvent | EvalEvent | SampleEvent):
            void = any(a > event.attempt and step <= event.step for a, step in resumed_at.items())
            if void or newest[_key(event)] != event.attempt:
                continue
        yield event


def _key(event: StepEvent | EvalEvent | SampleEvent) -> tuple[str, int, str]:
    return event.type, event.step, event.prompt if isinstance(event, SampleEvent) else ""
