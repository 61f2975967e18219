"""Following a run on a terminal: a live line with loss, speed, memory, time left; plain lines elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, Task, TaskID, TextColumn
from rich.progress_bar import ProgressBar
from rich.text import Text

from whet.engine.api import (
    FAST_PATH,
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
    settings,
)

from ..run_state import PHASES, Pace
from .findings import finding_text
from .outcome import proof_lines
from .text import plain
from .units import amount, clock, size

PLAIN_LINES = 20  # step lines a whole run prints when nobody watches a terminal
MIN_BAR, MAX_BAR = 8, 40


class SizedBar(BarColumn):
    """A bar only where there is a total to fill and room to fill it in."""

    def render(self, task: Task) -> ProgressBar:
        width = task.fields["room"] if task.total else 0
        return ProgressBar(
            total=task.total or 1, completed=task.completed, width=width if width >= MIN_BAR else 0
        )


class Follower:
    """Shows events as they come. Use as a context manager and call :meth:`show` with each event.

    On a terminal there is one live line, and above it a line for each thing that stays true: an evaluation,
    an answer that changed, a finding, a file. Elsewhere there are only such lines, and twenty of steps.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live = console.is_terminal and not console.is_dumb_terminal
        self.pace = Pace()
        self.answers: dict[str, str] = {}
        self.phase = ""
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            SizedBar(),
            TextColumn("{task.fields[facts]}", markup=False),
            console=console,
            transient=True,
            disable=not self.live,
            refresh_per_second=2 if settings().low_bandwidth else 10,
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
                more = "".join(f", {plain(name, 40)} {value:.3f}" for name, value in event.metrics.items())
                self._line(
                    ("eval ", "bold"), f"step {event.step}: held-out loss {event.loss:.4f}{more}{best}"
                )
            case SampleEvent():
                self._sample(event)
            case FindingEvent():
                self._line(finding_text(event.finding))
            case CheckpointEvent() if not self.live:
                self._line(f"checkpoint {plain(event.path)} ({size(event.bytes)})")
            case ExportEvent():
                self._export(event)
            case ErrorEvent():
                self._line(("failed ", "bold red"), (event.code, "dim"), f"\n{plain(event.message)}")
                if event.hint:
                    self._line((plain(event.hint), "bold"))
            case DoneEvent():
                if not self.live:
                    self._line((event.status, "bold"))

    def _step(self, event: StepEvent) -> None:
        pace = self.pace
        pace.add(event)
        words = [
            f"{event.step}/{event.total_steps}",
            f"loss {pace.loss:.3f}",
            *[f"{plain(name, 20)} {value:.3f}" for name, value in list(event.metrics.items())[:1]],
            f"{amount(pace.tokens_per_second)} tok/s",
            size(event.memory_bytes),
            f"{clock(pace.seconds_left or 0.0)} left",
        ]
        if self.live:
            self.phase = "train"
            self._bar("training", event.step, event.total_steps, words)
        elif event.step in (1, event.total_steps) or self._is_milestone(event):
            self._line("step " + " · ".join(words))

    def _is_milestone(self, event: StepEvent) -> bool:
        return event.step % max(1, event.total_steps // PLAIN_LINES) == 0

    def _phase(self, event: PhaseEvent) -> None:
        words = PHASES[event.phase]
        if event.detail.startswith(FAST_PATH):  # said once, and true for the whole run
            self._line(plain(event.detail, 400))
        elif self.live:
            detail = (
                f"{words} {plain(event.detail, 40)}" if event.detail and event.phase != "train" else words
            )
            share = [f"{event.done / event.total:.0%}"] if event.done is not None and event.total else []
            self._bar(detail, event.done or 0, event.total, share)
        elif event.phase not in (self.phase, "eval", "sample"):  # those two end in a line of their own
            self._line(words)
        self.phase = event.phase

    def _sample(self, event: SampleEvent) -> None:
        if self.answers.get(event.prompt) == event.answer:
            return
        self.answers[event.prompt] = event.answer
        text = Text.assemble((f"  {plain(event.prompt, 60)}  ", "dim"), (plain(event.answer, 400), "italic"))
        for name, value in event.rewards.items():
            text.append(f"  {plain(name, 40)} {value:.3g}", "dim")
        if self.live:
            text.truncate(self.console.width, overflow="ellipsis")
        self._line(text)

    def _export(self, event: ExportEvent) -> None:
        if event.kind == "smoke":
            self._line(proof_lines([event]))
            return
        name = event.path.rsplit("/", 1)[-1]
        if event.kind == "push":
            how = "uploaded " if event.detail["how"] == "uploaded" else "is there already: "
            self._line((how, "green"), plain(event.path), f"  {size(event.bytes)}")
            return
        self._line(("wrote ", "green"), plain(name), f"  {size(event.bytes)}" if event.bytes else "")

    def _bar(self, words: str, done: float, total: float | None, facts: list[str]) -> None:
        """Update the live line; on a narrow terminal memory goes first, then speed, then the loss."""
        room = self.console.width - len(words) - 5  # spinner and gaps
        facts = list(facts)
        while len(facts) > 2 and len(" · ".join(facts)) > room - MIN_BAR:
            facts.pop(-2)
        line = " · ".join(facts)
        state: dict[str, Any] = {
            "description": words,
            "total": total,
            "completed": done,
            "facts": line,
            "room": min(MAX_BAR, room - len(line)),
        }
        if self.task is None:
            self.task = self.progress.add_task(**state)
        else:
            self.progress.update(self.task, **state)

    def _line(self, *parts: str | Text | tuple[str, str]) -> None:
        self.console.print(Text.assemble(*parts), soft_wrap=not self.live)
