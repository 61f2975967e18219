"""The machine in one screen: what it has, what is wrong, flags, kernels, a bundle for a bug report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from rich.console import RenderableType
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Static, TabbedContent, TabPane

from whet.engine import api

from ..actions import Action, mcp_call
from ..render.flags import flag_report
from ..render.kernels import kernel_report
from ..render.machine import machine_report
from ..widgets.assistant_bar import Advice
from .base import WhetScreen

BUNDLE = "whet-bundle.tar.gz"


class DoctorScreen(WhetScreen):
    """Looks once when opened; what is slow says what it is doing."""

    heading = "whet · doctor"
    topic = "doctor"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("1", "tab('machine')", "machine", show=False, id="doctor.machine"),
        Binding("2", "tab('flags')", "flags", show=False, id="doctor.flags"),
        Binding("3", "tab('kernels')", "kernels", show=False, id="doctor.kernels"),
        Binding("r", "look", "look again", id="doctor.look"),
        Binding("k", "kernels", "check kernels", id="doctor.check_kernels"),
        Binding("b", "bundle", "bundle", id="doctor.bundle"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.report: api.DoctorReport | None = None
        self.kernels_checked = False

    def body(self) -> ComposeResult:
        with TabbedContent(id="doctor"):
            for id, title, words in (
                ("machine", "1 machine", "Looking …"),
                ("flags", "2 flags", "Looking …"),
                (
                    "kernels",
                    "3 kernels",
                    "k checks parity and speed of every kernel on this machine: a minute or two.",
                ),
            ):
                with TabPane(title, id=f"tab-{id}"), VerticalScroll():
                    yield Static(words, id=f"{id}-report", markup=False)

    def on_mount(self) -> None:
        super().on_mount()
        self.action_look()

    def action_look(self) -> None:
        """Examine the machine; libraries are loaded in processes of their own."""
        self.in_background(lambda: api.doctor(self._tell("machine")), self._show_machine, group="doctor")
        self.in_background(api.environment_flags, self._show_flags, group="flags")

    def action_kernels(self) -> None:
        """Parity and speed, by the interpreter where there is no GPU."""
        self.action_tab("kernels")

        def check() -> api.KernelReport:
            return api.check_kernels(interpret=not api.machine().gpus, progress=self._tell("kernels"))

        self.in_background(check, self._show_kernels, group="kernels")

    def action_tab(self, name: str) -> None:
        """Turn to a tab."""
        self.query_one(TabbedContent).active = f"tab-{name}"

    def action_bundle(self) -> None:
        """Write an archive without secrets into the current folder."""
        if self.report is None:
            self.notify("Still looking at the machine.", timeout=3)
            return
        report, target = self.report, Path.cwd() / BUNDLE
        self.in_background(
            lambda: api.bundle(report, target), lambda names: self._bundled(target, names), "bundle"
        )

    def _bundled(self, target: Path, names: list[str]) -> None:
        self.notify(f"{target}: {len(names)} files, no tokens, no paths of yours.", timeout=8)

    def _tell(self, tab: str) -> Callable[[str], None]:
        """For an engine call on a thread: says here what it is doing."""

        def tell(what: str) -> None:
            self.app.call_from_thread(self._put, tab, Text(f"{what} …", "dim"))

        return tell

    def _put(self, tab: str, what: RenderableType) -> None:
        if self.is_attached:
            self.query_one(f"#{tab}-report", Static).update(what)

    def _show_machine(self, report: api.DoctorReport) -> None:
        self.report = report
        self._put("machine", machine_report(report))
        self.say()

    def _show_flags(self, flags: list[api.FlagReport]) -> None:
        self._put("flags", flag_report(flags))

    def _show_kernels(self, report: api.KernelReport) -> None:
        self.kernels_checked = True
        self._put("kernels", kernel_report(report))
        self.say()

    def advice(self) -> Sequence[Advice]:
        if self.report is None:
            return (
                Advice("Loading libraries and running a tiny quantised model, in processes of their own."),
            )
        return doctor_advice(self.report, self.kernels_checked)

    def actions(self) -> Sequence[Action]:
        return (
            Action(
                "look at the machine", cli="whet doctor", python="api.doctor()", mcp=mcp_call("env_inspect")
            ),
            Action("explain the flags", cli="whet doctor --env", python="api.environment_flags()"),
            Action("check the kernels", cli="whet doctor --kernels", python="api.check_kernels()"),
            Action(
                "write a bundle",
                cli=f"whet doctor --bundle {BUNDLE}",
                python=f"from pathlib import Path\napi.bundle(api.doctor(), Path({BUNDLE!r}))",
            ),
        )


def doctor_advice(report: api.DoctorReport, kernels_checked: bool) -> list[Advice]:
    """The worst finding first; then what could still be looked at."""
    order = ("error", "warning", "note")
    found = sorted(report.findings, key=lambda one: order.index(one.severity))
    advice = [Advice(f"{one.id} {one.title}", "", one.severity) for one in found if one.severity != "note"][
        :1
    ]
    if not advice:
        advice.append(Advice("Nothing is wrong with this machine."))
    if report.machine.gpus and not kernels_checked:
        advice.append(Advice("Check the kernels on this GPU once: parity and speed.", "k"))
    else:
        advice.append(Advice("For a bug report: an archive without secrets.", "b"))
    return advice
