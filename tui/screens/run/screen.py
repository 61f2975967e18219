"""The Run screen: everything about one run, read from its directory; what is asked of it goes there too.

It only looks. Quitting, a lost connection or a closed laptop end nothing, and opening it again reads on.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import ClassVar

from rich.style import Style
from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Horizontal, Vertical, VerticalScroll
from textual.widgets import Static

from whet.engine import api

from ...actions import Action
from ...render.text import plain
from ...run_state import RunProgress
from ...widgets.assistant_bar import Advice
from ...widgets.curve import Curve
from ..room import mark_room
from .asking import run_actions
from .controls import Controls
from .drawing import curve_of, metric_of
from .figures import columns, figure_rows, status_line
from .look import Look, look
from .panels import Findings, Page, files, files_key, samples
from .words import Notice, notice, run_advice

CURVES = {
    "loss": ("loss", "The loss shows from the first step on."),
    "learning_rate": ("learning rate", "The learning rate shows from the first step on."),
    "grad_norm": ("gradient norm", "The gradient's norm shows from the first step on."),
    "speed": ("tokens per second", "The speed shows from the first step on."),
}
PANELS = ("samples", "findings", "files")
TABS = (*CURVES, *PANELS)
DOTS = 160
"""Across a plot, more or less."""
TAB_WORDS = ("loss", "rate", "gradient", "speed", "answers", "findings", "files")


class RunScreen(Controls):
    """Tabs on a small terminal, two curves and a panel on a larger one, everything at once on a large one."""

    topic = "run"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("p", "pause", "pause", id="run.pause"),
        Binding("x", "stop", "stop", id="run.stop"),
        Binding("r", "resume", "resume", show=False, id="run.resume"),
        Binding("w", "checkpoint", "checkpoint", show=False, id="run.checkpoint"),
        Binding("l", "log", "log", id="run.log"),
        Binding("a", "fix", "apply fix", show=False, id="run.fix"),
        Binding("i", "explain", "explain", show=False, id="run.explain"),
        Binding("c", "with_weights('chat')", "chat", id="run.chat"),
        Binding("e", "with_weights('export')", "export", id="run.export"),
        Binding("v", "evaluate", "measure", show=False, id="run.evaluate"),
        Binding("g", "log_scale", "log scale", show=False, id="run.log_scale"),
        Binding("o", "measure", "metrics", show=False, id="run.measure"),
        Binding("m", "smoothing", "smoothing", show=False, id="run.smoothing"),
        Binding("z", "all", "zoom out", show=False, id="run.zoom_out"),
        Binding("left_square_bracket", "sample(-1)", "earlier answers", show=False, id="run.earlier"),
        Binding("right_square_bracket", "sample(1)", "later answers", show=False, id="run.later"),
        Binding("b", "bundle", "debug bundle", show=False, id="run.bundle"),
        *(
            Binding(str(number), f"tab('{name}')", name, show=False, id=f"run.tab_{name}")
            for number, name in enumerate(TABS, start=1)
        ),
    ]

    def __init__(self, run_id: str) -> None:
        super().__init__()
        self.run_id = run_id
        self.progress = RunProgress()
        self.seen: Look | None = None
        self.plan: api.Plan | None = None
        self.failures: list[api.Finding] = []
        self.tab = "loss"
        self.curve, self.panel = "speed", "samples"
        """The curve beside the loss, and the panel below, where there is room for one of each."""
        self.measure: str | None = None
        """The metric that is drawn in place of the loss; None: the loss."""
        self.log_scale: set[str] = set()
        self.smoothed = True
        self.sample_step: int | None = None
        self.room = "small"
        self._looking = False
        self._offset = 0
        self._drawn: dict[str, object] = {}
        """What each part of the screen shows."""

    def body(self) -> ComposeResult:
        self.heading = self.run_id
        yield Static("Reading the run …", id="run-status", markup=False)
        yield Static("", id="run-notice", markup=False)
        yield Static("", id="run-tabs", markup=False)
        with Horizontal(id="run-body"):
            with Vertical(id="run-main"):
                with Container(id="run-curves"):
                    for name, (title, nothing) in CURVES.items():
                        yield Curve(title, nothing, id=f"curve-{name}", plain=self.whet.kept.ascii)
                with Horizontal(id="run-panels"):
                    yield Page("answers", id="panel-samples")
                    yield Findings(id="panel-findings")
                    yield Page("files", id="panel-files")
            with VerticalScroll(id="run-figures"):
                yield Static("", id="figures", markup=False)

    def on_mount(self) -> None:
        self.query_one("#run-notice").display = False
        self.query_one("#heading", Static).update(self.run_id)
        super().on_mount()
        self._arrange()
        self.in_background(lambda: _plan(self.run_id), self._show_plan, group="plan")
        self._timer = self.set_interval(self.whet.seconds_between_looks, self.look_again)
        self.look_again()

    def on_resize(self, event: events.Resize) -> None:
        self.room = mark_room(self, event.size)
        self._arrange()
        if self.seen is not None:
            self.call_after_refresh(self._draw)

    def on_screen_resume(self) -> None:
        self.look_again()

    # --- looking

    def look_again(self) -> None:
        if self._looking or not self.is_active:
            return
        self._looking = True
        self.in_background(lambda: _look(self.run_id, self._offset), self._take, group="look")

    def _take(self, seen: Look | api.WhetError) -> None:
        if isinstance(seen, api.WhetError):  # not looked at again: one card is enough
            self._timer.stop()
            self.query_one("#run-status", Static).update(Text(f"{seen.code}: not read further", "bold red"))
            self.failed(seen)
            return
        self._looking = False
        before = self.seen
        self.seen, self._offset = seen, seen.offset
        self.progress = seen.progress or self.progress
        self.progress.take(seen.events)
        if seen.summary.status == "failed" and (before is None or before.summary.status != "failed"):
            self.in_background(lambda: api.run(self.run_id).findings, self._show_failures, group="failures")
        if before is None:
            self._show_heading(seen)
            if seen.summary.state.is_job:
                self.tab = "samples" if seen.summary.state.method == "evaluate" else "files"
                self.panel = self.tab
                self._arrange()
        self._draw()

    def _show_heading(self, seen: Look) -> None:
        state = seen.summary.state
        words = [seen.summary.id, state.method, plain(state.model, 40), f"by {plain(state.started_by, 20)}"]
        if state.parent:
            words[1] += f" of {state.parent}"
        self.set_heading(" · ".join(filter(None, words)))

    def _show_plan(self, plan: api.Plan | None) -> None:
        self.plan = plan
        if self.seen is not None:
            self._draw()

    def _show_failures(self, findings: list[api.Finding]) -> None:
        self.failures = findings
        self._draw()

    @property
    def findings(self) -> list[api.Finding]:
        """Before the start, since, and of its failure; each once, worst first."""
        planned = [] if self.plan is None else self.plan.findings
        order = {"error": 0, "warning": 1, "note": 2}
        once = {repr(one): one for one in (*planned, *self.progress.findings, *self.failures)}
        return sorted(once.values(), key=lambda one: order[one.severity])

    # --- drawing

    def _draw(self) -> None:
        """Show what changed: what is drawn goes over somebody's connection, a new layout costs all of it."""
        seen, progress = self.seen, self.progress
        if seen is None:
            return
        ascii = self.whet.kept.ascii
        findings = self.findings
        status = status_line(seen, progress, self.size.width, ascii=ascii)
        rows = figure_rows(seen, progress, self.plan, ascii=ascii)
        if self._changed("status", status.markup):
            self.query_one("#run-status", Static).update(status, layout=False)
        if self._changed("notice", said := notice(seen, progress, findings)):
            self._show_notice(said)
        if self._changed("tabs", (self._shown(), len(findings))):
            self._show_tabs()
        if self._changed("figures", [(name, value.markup) for name, value in rows]):
            grown = self._changed("figures' height", len(rows))
            self.query_one("#figures", Static).update(columns(rows), layout=grown)
        for name in CURVES:
            self._draw_curve(name)
        self.query_one(Findings).show(findings)
        if self._changed("samples", (self.sample_step, progress.samples, progress.evals)):
            state = seen.summary.state
            talks = state.is_job or state.method in api.LANGUAGE_MODELS
            shown = samples(progress, self.sample_step, talks=talks)
            self.query_one("#panel-samples", Page).show(shown)
        if self._changed("files", files_key(seen, progress)):
            self.query_one("#panel-files", Page).show(files(seen, progress))
        if self._changed("advice", self.advice()):
            self.say()

    def _changed(self, part: str, state: object) -> bool:
        """Whether a part shows another state than when it was drawn; it is drawn now, then."""
        if self._drawn.get(part) == state:
            return False
        self._drawn[part] = copy(state)
        return True

    def _draw_curve(self, name: str) -> None:
        curve = self.query_one(f"#curve-{name}", Curve)
        if not curve.display:
            return
        log = name in self.log_scale
        evals = len(self.progress.evals) if name == "loss" else 0
        version = self.progress.curves.version
        if self.seen is not None and self.seen.active:  # a step that moves no dot is not worth a redraw
            version //= max(1, len(self.progress.curves) // DOTS)
        measure = self.measure if name == "loss" else None
        if not self._changed(name, (version, evals, log, self.smoothed, measure, curve.size)):
            return
        if measure is None:
            drawn = curve_of(self.progress, name, smoothed=self.smoothed, ascii=self.whet.kept.ascii)
        else:
            drawn = metric_of(self.progress, measure, smoothed=self.smoothed, ascii=self.whet.kept.ascii)
        title = f"{plain(measure or CURVES[name][0])}{' (log)' if log else ''}{drawn.title}"
        curve.show(drawn.lines, title, log=log, upright=self.progress.resumed_at)

    def _show_notice(self, said: Notice | None) -> None:
        card = self.query_one("#run-notice", Static)
        card.display = said is not None
        if said is None:
            return
        for severity in ("error", "warning", "note"):
            card.set_class(severity == said.severity, f"-{severity}")
        text = Text(plain(said.title), "bold")
        for line in said.lines:
            text.append(f"\n{plain(line)}", "not bold")
        card.update(text)

    def _show_tabs(self) -> None:
        counts = {"findings": len([one for one in self.findings if one.severity != "note"])}
        text = Text(no_wrap=True, overflow="ellipsis")
        for number, (name, word) in enumerate(zip(TABS, TAB_WORDS, strict=True), start=1):
            count = f" ({counts[name]})" if counts.get(name) else ""
            style = Style(meta={"@click": f"screen.tab('{name}')"}, reverse=name in self._shown(), bold=True)
            text.append(f" {number} ", Style(meta={"@click": f"screen.tab('{name}')"}, dim=True))
            text.append(f"{word}{count}", style)
        self.query_one("#run-tabs", Static).update(text, layout=False)

    def _shown(self) -> set[str]:
        """Tabs whose content is on the screen."""
        if self.room == "large":
            return set(TABS)
        return {self.tab} if self.room == "small" else {"loss", self.curve, self.panel}

    def _arrange(self) -> None:
        """Show what there is room for."""
        shown = self._shown()
        for name in CURVES:
            self.query_one(f"#curve-{name}").display = name in shown
        for name in PANELS:
            self.query_one(f"#panel-{name}").display = name in shown
        self.query_one("#run-curves").display = bool(shown & set(CURVES))
        self.query_one("#run-panels").display = bool(shown & set(PANELS))
        self.query_one("#run-figures").display = self.room != "small" or self.tab in CURVES

    # --- tabs and looks

    def action_tab(self, name: str) -> None:
        """Show a curve or a panel."""
        self.tab = name
        if name in PANELS:
            self.panel = name
        elif name != "loss":
            self.curve = name
        self._arrange()
        if name in PANELS:
            self.query_one(f"#panel-{name}").focus()
        self.call_after_refresh(self._draw)

    def action_log_scale(self) -> None:
        """Switch the axis of the curve that was chosen last."""
        name = self.tab if self.tab in CURVES else "loss"
        self.log_scale ^= {name}
        self._draw()

    def action_measure(self) -> None:
        """Draw the method's next metric where the loss stands, and after the last one the loss."""
        names = list(self.progress.measures)
        if not names:
            self.notify("This run tells nothing beside the loss, or not yet.", timeout=3)
            return
        place = names.index(self.measure) + 1 if self.measure in names else 0
        self.measure = names[place] if place < len(names) else None
        if self.tab != "loss" and self.room == "small":
            self.action_tab("loss")
        self._draw()

    def action_smoothing(self) -> None:
        """Show each step alone, or with its mean of the last ones."""
        self.smoothed = not self.smoothed
        self._draw()

    def action_all(self) -> None:
        """After zooming with the mouse wheel."""
        for curve in self.query(Curve):
            curve.reset()

    def action_sample(self, by: int) -> None:
        """Show the answers of the evaluation before or after."""
        steps = [step for step in self.progress.sampled_steps if step]
        if len(steps) < 2:
            self.notify(
                "There are answers of one evaluation only." if steps else "No answers yet.", timeout=3
            )
            return
        place = steps.index(self.sample_step) if self.sample_step in steps else len(steps) - 1
        self.sample_step = steps[min(len(steps) - 1, max(0, place + by))]
        self._draw()

    def focus_finding(self, id: str) -> bool:
        """Its place among this run's findings."""
        here = self.query_one(Findings).choose(id)
        if here:
            self.action_tab("findings")
        return here

    @property
    def about(self) -> str | None:
        """The run."""
        return self.run_id

    # --- words

    def advice(self) -> Sequence[Advice]:
        return run_advice(self.seen, self.progress, self.findings)

    def actions(self) -> Sequence[Action]:
        recipe = api.to_yaml(self.plan.recipe) if self.plan is not None else ""
        return run_actions(self.run_id, self.seen, self.query_one(Findings).chosen, recipe)


def _look(run_id: str, offset: int) -> Look | api.WhetError:
    """An error is returned: shown once, and not again with every look."""
    try:
        return look(run_id, offset)
    except api.WhetError as error:
        return error


def _plan(run_id: str) -> api.Plan | None:
    """None for a job on files that no run made."""
    run = api.find(run_id)
    return run.load_plan() if run.plan.exists() else None
