"""What a person asks of a run by key: each a control request in its directory, or a job beside it."""

from __future__ import annotations

from pathlib import Path

from textual.widgets import OptionList

from whet.engine import api

from ... import drafts
from ...render.text import plain
from ...run_state import RunProgress
from ..base import WhetScreen
from ..cards import Question
from .asking import ask_to_stop, stop_words
from .cards import entry_card, fix_card
from .look import RESUMABLE, Look
from .panels import Findings


class Controls(WhetScreen):
    """The actions of the Run screen; what cannot be done now says why."""

    run_id: str
    seen: Look | None
    progress: RunProgress

    def look_again(self) -> None:
        """Read the run's directory now."""
        raise NotImplementedError

    @property
    def status(self) -> str:
        """In words, for a sentence that says why something is not done."""
        return "not read yet" if self.seen is None else self.seen.summary.status

    def action_pause(self) -> None:
        """A stop that says what it is good for."""
        self._ask_to_stop(pausing=True)

    def action_stop(self) -> None:
        """Ask for the end; asked again, at once."""
        self._ask_to_stop(pausing=False)

    def _ask_to_stop(self, *, pausing: bool) -> None:
        if self.seen is None or not self.seen.active:
            self.notify(f"The run is {self.status}: there is nothing to stop.", timeout=4)
            return
        again = self.seen.asked is not None
        text, yes = stop_words(self.seen, self.progress, pausing=pausing)

        def answered(agreed: bool | None) -> None:
            if agreed:
                self.in_background(lambda: ask_to_stop(self.run_id, again), self._asked, group="ask")

        self.app.push_screen(Question(text, yes, "Go on"), answered)

    def _asked(self, _: object) -> None:
        self.look_again()

    def action_checkpoint(self) -> None:
        """Save after this step, and go on."""
        if self.seen is None or not self.seen.active:
            self.notify("No worker runs that could write a checkpoint.", timeout=4)
            return
        self.in_background(lambda: api.request_checkpoint(self.run_id), self._asked, group="ask")
        self.notify("Asked for a checkpoint after this step; 7 lists it once it is written.", timeout=4)

    def action_resume(self) -> None:
        """Go on from the last finished checkpoint."""
        if self.seen is None or self.seen.summary.status not in RESUMABLE:
            self.notify(f"The run is {self.status}: only what stopped or failed is resumed.", timeout=4)
            return
        self.in_background(lambda: api.resume(self.run_id), self._asked, group="ask")
        self.notify("Resuming …", timeout=3)

    def action_log(self) -> None:
        """The worker's words, any size."""
        from .log import LogScreen

        self.app.push_screen(LogScreen(self.run_id))

    def action_with_weights(self, screen: str) -> None:
        """Open Chat or Export about this run; a job's are about its parent."""
        summary = self.seen.summary if self.seen else None
        trained = summary is not None and summary.status == "finished" and not summary.state.is_job
        parent = summary.state.parent if summary else None
        if not trained and parent is None:
            self.notify("There are no finished weights yet.", timeout=4)
            return
        self.whet.open(screen, parent or self.run_id)

    def action_evaluate(self) -> None:
        """Measure base and tuned on held-out rows, as a job of its own."""
        self.in_background(
            lambda: api.start_evaluation(self.run_id, started_by="tui"),
            lambda job: self.whet.open("run", job),
            group="ask",
        )

    def action_bundle(self) -> None:
        """A redacted archive for a bug report."""
        target = Path.cwd() / "whet-bundle.tar.gz"
        self.in_background(
            lambda: api.bundle(api.doctor(), target),
            lambda _: self.notify(f"Written: {target}", markup=False),
            group="bundle",
        )
        self.notify("Collecting facts, without secrets …", timeout=4)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self.action_fix()

    def action_fix(self) -> None:
        """Apply the chosen finding's fix to a copy of the recipe, plan it, show the diff."""
        chosen = self.query_one(Findings).chosen
        if chosen is None:
            self.notify("Nothing was found that needs a fix.", timeout=3)
            return
        if chosen.fix is None or not chosen.fix.patch:
            words = chosen.fix.text if chosen.fix else "it is told for your information."
            self.notify(
                f"{chosen.id} has no patch of the recipe: {plain(words, 200)}", timeout=6, markup=False
            )
            return
        self.notify(f"Planning the recipe with the fix of {chosen.id} …", timeout=3)

        def show(fixed: api.Fixed) -> None:
            self.app.push_screen(fix_card(chosen, fixed), lambda agreed: self._open_fixed(fixed, agreed))

        self.in_background(lambda: api.fix(self.run_id, [chosen.id]), show, group="fix")

    def _open_fixed(self, fixed: api.Fixed, agreed: bool | None) -> None:
        if not agreed:
            return
        try:
            draft = drafts.save(f"{self.run_id}-fixed", fixed.proposal.text)
        except api.WhetError as error:
            self.failed(error)
            return
        self.whet.open("new", draft)

    def action_explain(self) -> None:
        """What the chosen finding means."""
        chosen = self.query_one(Findings).chosen
        if chosen is None:
            self.notify("Nothing was found.", timeout=3)
            return
        self.app.push_screen(entry_card(api.explain(chosen.id)))
