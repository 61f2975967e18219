"""Panels of the Run screen: answers beside the base model's, findings with their fix, files and proofs."""

from __future__ import annotations

from pathlib import PurePath
from typing import ClassVar

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from whet.engine import api

from ...render.findings import finding_text
from ...render.proofs import proof_steps
from ...render.text import plain
from ...render.units import size
from ...run_state import RunProgress
from ...widgets.run_table import LOOKS
from .look import Look

LONGEST_ANSWER = 1000
NO_SAMPLES = (
    "No answers yet. The recipe's sampling.prompts are answered before training and at each evaluation, "
    "so that base and tuned stand side by side."
)
NOTHING_ANSWERED = "This run's model answers nothing: o draws what its method measures."
NO_FINDINGS = "Nothing wrong was found, before the start or since."
NO_FILES = "No file yet: checkpoints, adapter, GGUF files and their proofs appear here."
SCROLL: list[BindingType] = [
    Binding("j", "scroll_down", "down", show=False, id="panel.down"),
    Binding("k", "scroll_up", "up", show=False, id="panel.up"),
]


class Page(VerticalScroll):
    """A scrolled text, rewritten only when it changes."""

    BINDINGS: ClassVar[list[BindingType]] = SCROLL

    def __init__(self, title: str, id: str) -> None:
        super().__init__(id=id, classes="panel")
        self.border_title = title

    def compose(self) -> ComposeResult:
        yield Static("", markup=False)

    def show(self, text: RenderableType) -> None:
        """Replace the text."""
        self.query_one(Static).update(text)


class Findings(OptionList):
    """One option a finding; the cursor stays while others come."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "cursor_down", "down", show=False, id="findings.down"),
        Binding("k", "cursor_up", "up", show=False, id="findings.up"),
    ]

    def __init__(self, id: str) -> None:
        super().__init__(id=id, classes="panel")
        self.border_title = "findings"
        self.findings: list[api.Finding] | None = None

    @property
    def chosen(self) -> api.Finding | None:
        """The one under the cursor; the first where there is no cursor."""
        if not self.findings:
            return None
        return self.findings[min(self.highlighted or 0, len(self.findings) - 1)]

    def choose(self, id: str) -> bool:
        """Put the cursor on a finding; False where none has that id."""
        place = next((number for number, one in enumerate(self.findings or []) if one.id == id), None)
        if place is not None:
            self.highlighted = place
        return place is not None

    def show(self, findings: list[api.Finding]) -> None:
        """Replace the list, if it is another one."""
        if findings == self.findings:
            return
        place, self.findings = self.highlighted, findings
        self.clear_options()
        if not findings:
            self.add_option(Option(Text(NO_FINDINGS, "green"), disabled=True))
            return
        self.add_options([Option(finding_text(one)) for one in findings])
        self.highlighted = min(place or 0, len(findings) - 1)


def samples(progress: RunProgress, step: int | None, *, talks: bool = True) -> RenderableType:
    """Each prompt with the base model's answer and the one at ``step``, by default the newest; ``talks``:
    the run's model is one that does."""
    steps = progress.sampled_steps
    if not steps:
        return Text(NO_SAMPLES if talks else NOTHING_ANSWERED, "dim")
    shown = step if step in steps else steps[-1]
    parts: list[RenderableType] = []
    for prompt in progress.prompts:
        if (shown, prompt) not in progress.samples:
            continue  # of another step: what is trained on is asked once
        parts.append(Text(plain(prompt, 200), "bold"))
        table = Table.grid(padding=(0, 2), expand=True)
        at_steps = [0, shown] if shown and not progress.samples[shown, prompt].rewards else [shown]
        for _ in at_steps:
            table.add_column(ratio=1)
        table.add_row(*(_heading(at, progress) for at in at_steps))
        table.add_row(*(_answer(progress.samples.get((at, prompt))) for at in at_steps))
        parts += [table, Text()]
    if len(steps) > 1:
        places = " ".join(f"[{at}]" if at == shown else str(at) for at in steps)
        parts.append(Text(f"steps: {places}   [ and ] choose", "dim"))
    return Group(*parts)


def _heading(step: int, progress: RunProgress) -> Text:
    held_out = progress.evals.get(step)
    loss = "" if held_out is None else f", held-out loss {held_out.loss:.3f}"
    return Text(f"base{loss}" if step == 0 else f"step {step}{loss}", "dim" if step == 0 else "cyan")


def _answer(sample: api.SampleEvent | None) -> Text:
    if sample is None:
        return Text("not asked", "dim")
    text = Text(plain(sample.answer, LONGEST_ANSWER) or "(nothing)", "" if sample.answer else "dim")
    if not sample.stopped:
        text.append(" … did not end its turn", "dim italic")
    for name, value in sample.rewards.items():
        text.append(f"\n{plain(name, 40)} {value:.3g}", "dim")
    return text


def files(look: Look, progress: RunProgress) -> RenderableType:
    """Jobs on the run, checkpoints, written files, proofs; what of the model runs fused."""
    parts: list[RenderableType] = []
    if look.jobs:
        parts += [Text("jobs on this run", "bold"), _jobs(look.jobs), Text()]
    if progress.exports:
        parts += [Text("written", "bold"), _written(progress)]
        proofs = [(path, one.detail) for (kind, path), one in progress.exports.items() if kind == "smoke"]
        parts += [Text("\nproof", "bold"), proof_steps(proofs)] if proofs else []
        parts.append(Text())
    if progress.checkpoints:
        parts += [Text("checkpoints", "bold"), _checkpoints(look, progress), Text()]
    if progress.fast_path:
        parts += [Text("fast path", "bold"), Text(plain(progress.fast_path), "dim"), Text()]
    if not parts:
        parts = [Text(NO_FILES, "dim")]
    return Group(*parts, Text(plain(look.summary.path), "dim"))


def files_key(look: Look, progress: RunProgress) -> object:
    """What :func:`files` shows, to compare."""
    jobs = [(job.id, job.status) for job in look.jobs]
    newest = look.summary.state.last_checkpoint
    return jobs, newest, list(progress.checkpoints), list(progress.exports.items()), progress.fast_path


def _jobs(jobs: list[api.RunSummary]) -> Table:
    table = Table.grid(padding=(0, 2))
    for job in jobs:
        mark, style = LOOKS[job.status]
        said = job.state.summary.get("verdict") or (job.state.error.code if job.state.error else job.status)
        table.add_row(Text(mark, style), Text(job.state.method), Text(plain(str(said))), Text(job.id, "dim"))
    return table


def _written(progress: RunProgress) -> Table:
    table = Table.grid(padding=(0, 2))
    for (kind, path), event in progress.exports.items():
        if kind != "smoke":
            bytes = Text(size(event.bytes) if event.bytes else "", justify="right")
            table.add_row(Text(kind), bytes, Text(plain(PurePath(path).name)))
    return table


def _checkpoints(look: Look, progress: RunProgress) -> Table:
    table = Table.grid(padding=(0, 2))
    kept = {PurePath(path).name for path in _kept(look)}
    for step, event in sorted(progress.checkpoints.items(), reverse=True):
        marks = [word for word, true in (("best", event.best), ("resumes here", event.path in kept)) if true]
        table.add_row(
            Text(f"step {step}", justify="right"),
            Text(size(event.bytes), justify="right"),
            Text(f"{event.seconds:.1f} s", "dim", justify="right"),
            Text(", ".join(marks), "bold"),
        )
    return table


def _kept(look: Look) -> list[str]:
    return [look.summary.state.last_checkpoint] if look.summary.state.last_checkpoint else []
