"""What an export job has said so far: the phase it is in, and its proofs one by one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rich.text import Text

from whet.engine import api

from ..render.proofs import proof_steps
from ..render.text import plain

PHASES = {"merge": "merging", "export": "writing", "smoke": "proving"}


@dataclass
class ExportLog:
    """Grows by :meth:`hear`; a resumed job begins anew."""

    phase: str = ""
    detail: str = ""
    done: float = 0.0
    total: float | None = None
    attempt: int = 1
    proofs: dict[str, dict[str, Any]] = field(default_factory=dict)
    findings: list[api.Finding] = field(default_factory=list)

    def hear(self, event: api.Event) -> None:
        """Take one event in."""
        if event.attempt > self.attempt:
            self.attempt, self.proofs, self.findings = event.attempt, {}, []
        if isinstance(event, api.PhaseEvent):
            self.phase, self.detail = PHASES.get(event.phase, event.phase), event.detail
            self.done, self.total = event.done or 0.0, event.total
        elif isinstance(event, api.ExportEvent) and event.kind == "smoke":
            self.proofs[event.path] = event.detail
        elif isinstance(event, api.FindingEvent):
            self.findings.append(event.finding)

    def progress_text(self, status: str, state: api.RunState) -> Text:
        """One line: what is being done, or how it ended."""
        if status == "waiting":
            behind = f" behind {', '.join(state.behind)}" if state.behind else ""
            return Text(f"waiting{behind}", "yellow")
        if status == "failed" and state.error is not None:
            return Text(plain(f"✗ [{state.error.code}] {state.error.message} {state.error.hint}"), "red")
        if status == "finished":
            return Text("✓ done", "green")
        return Text(f"{self.phase or status} {plain(self.detail, 60)}")

    def proofs_text(self) -> Text:
        """Each file's proofs, then what the checks found."""
        text = Text("\n" if self.proofs else "").append_text(proof_steps(self.proofs.items()))
        for finding in self.findings:
            if finding.severity != "note":
                text.append(f"\n{finding.id} {plain(finding.title, 200)}\n", "bold yellow")
                text.append(f"  {plain(finding.fix.text, 200)}\n" if finding.fix else "")
        return text
