"""Following a run on a terminal: a live line with loss, speed, memory, time left; plain lines elsewhere."""

from __future__ import annotations

from collections import deque
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from whet.engine.api import (
    CheckpointEvent,
    DoneEvent,
    ErrorEvent,
    EvalEvent,
    Event,
    ExportEvent,
    FindingEvent,
    PhaseEvent,
    SampleEvent,
    StepEvent,
)

from .findings import VERDICT_COLOURS, finding_text
from .text import plain
from .units import amount, size

SMOOTHING = 20  # steps over which the shown loss and speed are averaged
PLAIN_LINES = 20  # step lines a whole run prints when nobody watches a terminal
PHASES = {
    "load": "loading the model",
    "data": "reading the data",
    "train": "training",
    "eval": "measuring held-out loss",
    "sample": "answering the sample prompts",
    "merge": "merging the adapter",
    "export": "writing GGUF",
    "smoke": "proving the export",
}


class Follower:
    """Shows events as they come. Use as a context manager and call :meth:`show` with each event."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live = console.is_terminal
        self.steps: deque[StepEvent] = deque(maxlen=SMOOTHING)
        self.phase = ""
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            disable=not self.live,
        )
        self.task: TaskID | None = None

    def __enter__(self) -> Follower:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def show(self, event: Event) -> None:
        """Show one event."""
        match event:
            case StepEvent():
                self._step(event)
            case PhaseEvent():
                self._phase(event)
            case EvalEvent():
                best = " (best so far)" if event.best else ""
                self._line(("eval ", "bold"), f"step {event.step}: held-out loss {event.loss:.4f}{best}")
            case SampleEvent():
                who = "before training" if event.step == 0 else f"step {event.step}"
                answer = (plain(event.answer, 200), "italic")
                self._line((f"{who}: ", "dim"), plain(event.prompt, 60), "  ", answer)
            case FindingEvent():
                self._line(finding_text(event.finding))
            case CheckpointEvent() if not self.live:
                self._line(f"checkpoint {event.path} ({size(event.bytes)})")
            case ExportEvent():
                self._export(event)
            case ErrorEvent():
                words = f" {plain(event.message)} {event.hint}"
                self._line(("failed ", "bold red"), (event.code, "dim"), words)
            case DoneEvent():
                self._line((event.status, "bold"))

    def _step(self, event: StepEvent) -> None:
        self.steps.append(event)
        seconds = sum(step.seconds for step in self.steps)
        rate = sum(step.tokens for step in self.steps) / seconds if seconds else 0.0
        loss = sum(step.loss for step in self.steps) / len(self.steps)
        facts = f"loss {loss:.3f} · {amount(rate)} tok/s · {size(event.memory_bytes)}"
        if self.live:
            self._bar("training", event.step, event.total_steps, facts)
            return
        ends = event.step in (1, event.total_steps)
        if ends or event.step % max(1, event.total_steps // PLAIN_LINES) == 0:
            self._line(f"step {event.step}/{event.total_steps} {facts}")

    def _phase(self, event: PhaseEvent) -> None:
        words = PHASES[event.phase] + (f": {event.detail}" if event.detail else "")
        if self.live:
            self._bar(words, event.done or 0, event.total, "")
        elif words != self.phase:
            self._line(words)
        self.phase = words

    def _export(self, event: ExportEvent) -> None:
        name = event.path.rsplit("/", 1)[-1]
        if event.kind == "smoke":
            status = str(event.detail.get("status"))
            self._line((f"proof {status} ", VERDICT_COLOURS.get(status, "")), name)
        else:
            self._line(
                ("wrote ", "green"), f"{event.kind} {name}", f" ({size(event.bytes)})" if event.bytes else ""
            )

    def _bar(self, words: str, done: float, total: float | None, facts: str) -> None:
        state: dict[str, Any] = {"description": words, "total": total, "completed": int(done), "facts": facts}
        if self.task is None:
            self.task = self.progress.add_task(**state)
        elif self.progress.tasks[0].description != words:
            self.progress.reset(self.task, **state)
        else:
            self.progress.update(self.task, **state)

    def _line(self, *parts: str | Text | tuple[str, str]) -> None:
        self.console.print(Text.assemble(*parts), soft_wrap=not self.live)
