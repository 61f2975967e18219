"""Export as a wizard: choose files by size, watch them being made, and read the proof step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widgets import ProgressBar, Static

from whet.engine import api

from ..actions import Action, export_action
from ..export_plan import MERGED, Choice, choices, needed
from ..render.proofs import proof_steps
from ..render.text import plain, printable
from ..render.units import size
from ..widgets.assistant_bar import Advice
from ..widgets.check_list import CheckList
from .base import WhetScreen
from .export_log import ExportLog
from .push import PushCard

ACTIVE = ("queued", "waiting", "running")


class ExportScreen(WhetScreen):
    """About one run. The export is a job of its own: it goes on when this screen or the terminal is gone."""

    heading = "whet · export"
    topic = "export"
    repeated = frozenset({"watch"})
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("g", "begin", "go", id="export.begin"),
        Binding("s", "stop", "stop", id="export.stop"),
        Binding("c", "chat", "chat", id="export.chat"),
        Binding("p", "push", "push", id="export.push"),
    ]

    def __init__(self, run_id: str) -> None:
        super().__init__()
        self.run_id = run_id
        self.choices: list[Choice] = []
        self.usual = api.usual_target("sft")
        self.talks = True
        """Whether the run's model answers."""
        self.free = 0
        self.job: str | None = None
        self.heard = 0
        self.status = ""
        self.log_of_job = ExportLog()
        self.shown: dict[str, Text] = {}
        self.files: list[api.Artifact] = []

    def body(self) -> ComposeResult:
        with Horizontal(id="export"):
            with Vertical(id="wanted"):
                yield CheckList(id="kinds")
                yield Static("", id="room", markup=False)
            with VerticalScroll(id="made", can_focus=True):
                yield Static("Looking at the run …", id="progress", markup=False)
                yield ProgressBar(id="done", show_eta=True)
                yield Static("", id="made-files", markup=False)
                yield Static("", id="proofs", markup=False)

    def on_mount(self) -> None:
        super().on_mount()
        self.query_one("#done", ProgressBar).display = False
        self.set_heading(f"whet · export · {plain(self.run_id, 60)}")
        self.in_background(self._look, self._looked, group="look")
        self.set_interval(self.whet.seconds_between_looks, self._watch)

    def _look(self) -> tuple[api.RunView, list[api.Artifact], api.Machine]:
        view = api.run(self.run_id)
        return view, api.artifacts(view.id), api.machine()

    def _looked(self, seen: tuple[api.RunView, list[api.Artifact], api.Machine]) -> None:
        view, self.files, machine = seen
        self.run_id, self.free = view.id, machine.disk_free
        assert view.plan is not None, "an export is of a run that trained"
        self.set_heading(f"whet · export · {plain(view.id, 60)}")
        self.usual = api.usual_target(view.plan.recipe.method.kind)
        targets = api.export_targets(view.plan)
        self.talks = view.plan.recipe.method.kind in api.LANGUAGE_MODELS
        types = {} if self.usual == MERGED else api.gguf_types()
        self.choices = choices(view.plan.model.parameters.total, types, targets)
        there = {name for one in self.files for name in (one.kind, one.path.name)}
        self.query_one(CheckList).offer(
            ((one.name, choice_text(one, there)) for one in self.choices),
            [self.usual],
        )
        active = next(
            (job.id for job in view.jobs if job.status in ACTIVE and job.state.method == "export"), None
        )
        if active is not None:
            self._follow(active)
        self._draw()

    @on(CheckList.Ticked)
    def _draw(self) -> None:
        """Room on the disk, files and their verdicts."""
        need = needed(self._wanted(), self.choices)
        fits = need <= self.free
        words = f"{size(need)} on the disk at the worst moment, {size(self.free)} free"
        self.query_one("#room", Static).update(
            Text(words if fits else f"! {words}: too little", "" if fits else "bold red")
        )
        self.query_one("#made-files", Static).update(files_text(self.files))
        if self.job is None:
            steps = [
                (str(one.path), one.verdict.model_dump(mode="json")) for one in self.files if one.verdict
            ]
            self._put("proofs", proof_steps(steps))
            ready = "g begins: merge, convert, quantise, and prove each file with llama.cpp."
            heads = "g begins: merge, and prove that the merged model gives what the trained one gives."
            self._put("progress", Text(heads if self.usual == MERGED else ready, "dim"))
        self.say()

    def _wanted(self) -> list[str]:
        return self.query_one(CheckList).ticked

    def action_begin(self) -> None:
        """Start the export job."""
        wanted = self._wanted()
        if self.job is not None and self.status in ACTIVE:
            self.notify("An export of this run is going on.", timeout=3)
        elif not wanted:
            self.notify("Choose at least one file with space.", timeout=3)
        elif needed(wanted, self.choices) > self.free:
            self.notify("The disk has too little room for that; choose fewer or smaller files.", timeout=5)
        else:
            types, merged = [name for name in wanted if name != MERGED], MERGED in wanted
            self.in_background(
                lambda: api.start_export(self.run_id, types, merged, started_by="tui"),
                self._follow,
                group="start",
            )

    def _follow(self, job: str) -> None:
        self.job, self.heard, self.status, self.log_of_job = job, 0, "queued", ExportLog()
        self._watch()

    def _watch(self) -> None:
        """Read what the job has said since the last look."""
        job, heard = self.job, self.heard
        if job is None or self.status not in ACTIVE:
            return

        def look() -> tuple[str, list[api.Event], int, api.RunState]:
            found = api.find(job)
            status = found.status()
            events, after = api.events(job, heard)
            return status, events, after, found.read_state()

        self.in_background(look, self._watched, group="watch")

    def _watched(self, seen: tuple[str, list[api.Event], int, api.RunState]) -> None:
        self.status, events, self.heard, state = seen
        for event in events:
            self.log_of_job.hear(event)
        bar = self.query_one("#done", ProgressBar)
        bar.display = self.log_of_job.total is not None and self.status in ACTIVE
        bar.update(total=self.log_of_job.total, progress=self.log_of_job.done)
        self._put("progress", self.log_of_job.progress_text(self.status, state))
        self._put("proofs", self.log_of_job.proofs_text())
        if self.status not in ACTIVE:
            self.in_background(lambda: api.artifacts(self.run_id), self._made, group="files")
        self.say()

    def _put(self, part: str, text: Text) -> None:
        """A new layout costs the whole screen, so only for another text."""
        if self.shown.get(part) != text:
            self.shown[part] = text
            self.query_one(f"#{part}", Static).update(text)

    def _made(self, files: list[api.Artifact]) -> None:
        self.files = files
        self.query_one("#made-files", Static).update(files_text(files))
        self.say()

    def action_stop(self) -> None:
        """Ask the job to end; nothing half-written stays."""
        job = self.job
        if job is None or self.status not in ACTIVE:
            self.notify("No export is going on.", timeout=3)
            return
        self.in_background(
            lambda: api.stop(job), lambda _: self.notify("Stopping …", timeout=3), group="stop"
        )

    def action_chat(self) -> None:
        """Talk to base, tuned and GGUF side by side."""
        self.whet.open("chat", self.run_id)

    def action_push(self) -> None:
        """Upload a part to the hub, after its address was typed."""
        if not self.files:
            self.notify("Nothing is exported yet.", timeout=3)
            return
        self.app.push_screen(PushCard(self.run_id))

    @property
    def about(self) -> str | None:
        """The run."""
        return self.run_id

    def advice(self) -> Sequence[Advice]:
        if self.job is not None and self.status in ACTIVE:
            return (Advice("You can leave: the export is a job of its own and goes on."),)
        if needed(self._wanted(), self.choices) > self.free:
            return (Advice("Too little room on the disk: choose fewer files.", "space", "warning"),)
        verdicts = [one.verdict for one in self.files if one.verdict is not None]
        if any(verdict.status == "fail" for verdict in verdicts):
            return (
                Advice("A file failed its proof: do not ship it. The failing step says why.", "", "error"),
            )
        made = [one for one in self.files if one.kind == "gguf"]
        if made and not self.talks:
            return (Advice("Made. An embedding server loads it: docs/serving_embeddings.md."),)
        if made:
            proven = "Proven." if all(one.verdict is not None for one in made) else "Made, not all proven."
            return (
                Advice(f"{proven} Talk to base, tuned and GGUF side by side.", "c"),
                Advice("Or serve it: ollama create NAME -f Modelfile, in the folder shown."),
            )
        return (Advice(f"{self.usual} is right for most; space chooses, g begins.", "g"),)

    def actions(self) -> Sequence[Action]:
        wanted = self._wanted()
        return (export_action(self.run_id, [one for one in wanted if one != MERGED], MERGED in wanted),)


def choice_text(choice: Choice, there: set[str]) -> Text:
    """Name, size, what it is good for, and whether it is made already."""
    made = any(name == choice.name or name.endswith(f"-{choice.name}.gguf") for name in there)
    words = ("✓ there", "green") if made else (choice.words, "dim")
    return Text.assemble(f"{choice.name:<12}", (f"{size(choice.bytes):>10}  ", "bold"), words)


def files_text(files: Sequence[api.Artifact]) -> Text:
    """Files with sizes and the verdict of exactly these bytes."""
    marks = {"pass": ("✓ pass", "green"), "warn": ("! warn", "yellow"), "fail": ("✗ fail", "bold red")}
    text = Text(no_wrap=True)
    if files:
        text.append(f"\n{printable(str(files[0].path.parent))}\n", "dim")
    for one in files:
        words, style = marks[one.verdict.status] if one.verdict is not None else ("", "")
        text.append(f"{plain(one.path.name, 34):<34} {size(one.bytes):>10}  ").append(f"{words}\n", style)
    return text
