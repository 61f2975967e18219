"""Events: what a run says, one JSON object a line, append-only, tailed by byte offset.

A worker appends, any number of readers tail. A torn last line (the writer died, or is writing) is ignored until
its newline arrives. After a resume steps may repeat: each event carries its attempt, and the last attempt wins.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from ..findings import Finding

EVENT_VERSION = 1

Phase = Literal["load", "data", "train", "eval", "sample", "merge", "export", "smoke"]


class EventBase(BaseModel):
    """What every event carries; ``seq`` and ``time`` are filled in by :class:`EventLog`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    v: int = EVENT_VERSION
    seq: int = 0
    time: float = 0.0
    attempt: int = 1


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


class EvalEvent(EventBase):
    """Held-out loss over all supervised tokens, in nats."""

    type: Literal["eval"] = "eval"
    step: int
    loss: float
    supervised_tokens: int
    seconds: float
    best: bool


class SampleEvent(EventBase):
    """The same prompt answered at an evaluation (step 0 is the base model)."""

    type: Literal["sample"] = "sample"
    step: int
    prompt: str
    answer: str
    stopped: bool = Field(description="The model ended its turn by itself.")


class FindingEvent(EventBase):
    type: Literal["finding"] = "finding"
    finding: Finding


class CheckpointEvent(EventBase):
    type: Literal["checkpoint"] = "checkpoint"
    step: int
    path: str
    bytes: int
    seconds: float


class ExportEvent(EventBase):
    """An artefact was written: ``kind`` adapter, merged, gguf, modelfile, card; or proven: ``smoke``."""

    type: Literal["export"] = "export"
    kind: str
    path: str
    bytes: int = 0
    detail: dict[str, Any] = Field(default_factory=dict)


class ErrorEvent(EventBase):
    """The run failed. ``code``, ``message`` and ``hint`` are a WhetError's; the traceback is in worker.log."""

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
    """The writing end; one per run, held by its worker.

    A previous writer's torn last line is cut off on opening, so that the file stays one object a line.
    """

    def __init__(self, path: Path, attempt: int) -> None:
        self.attempt = attempt
        self._file = open(path, "a+b")  # noqa: SIM115  (kept open for the worker's life)
        self.seq = self._repair()

    def _repair(self) -> int:
        self._file.seek(0)
        data = self._file.read()
        whole = data.rfind(b"\n") + 1
        self._file.truncate(whole)
        return data.count(b"\n", 0, whole)

    def append(self, event: Event) -> Event:
        """Write one event with its sequence number, time and attempt; returns what was written."""
        self.seq += 1
        stamped = event.model_copy(update={"seq": self.seq, "time": time.time(), "attempt": self.attempt})
        line = json.dumps(stamped.model_dump(mode="json"), separators=(",", ":"), allow_nan=False) + "\n"
        self._file.write(line.encode())
        self._file.flush()
        return stamped

    def close(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def read_events(path: Path, offset: int = 0) -> tuple[list[Event], int]:
    """Events from byte ``offset`` on, and the offset to continue from. A torn last line is left for later."""
    if not path.exists():
        return [], offset
    with open(path, "rb") as file:
        file.seek(offset)
        data = file.read()
    whole = data.rfind(b"\n") + 1
    return [EVENT.validate_json(line) for line in data[:whole].splitlines()], offset + whole


def last_attempt(events: list[Event]) -> Iterator[Event]:
    """Drop what a later attempt did again: for each step keep the step events of the newest attempt."""
    newest: dict[tuple[str, int], int] = {}
    for event in events:
        if isinstance(event, StepEvent | EvalEvent):
            newest[(event.type, event.step)] = event.attempt
    for event in events:
        if isinstance(event, StepEvent | EvalEvent) and newest[(event.type, event.step)] != event.attempt:
            continue
        yield event
