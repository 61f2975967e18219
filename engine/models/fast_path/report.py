"""What the fast path made of a model: how many of its parts run fused, and why the others do not."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ...findings import Finding


@dataclass
class FastPathReport:
    """Counts by kind (``attention``, ``mlp``, ...) and the reasons, each with how often it holds."""

    fused: Counter[str] = field(default_factory=Counter)
    total: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    def count(self, kind: str, reason: str | None = None) -> None:
        """One more part of a kind; ``reason`` says why it is not fused."""
        self.total[kind] += 1
        if reason is None:
            self.fused[kind] += 1
        else:
            self.reasons[f"{kind}: {reason}"] += 1

    @property
    def complete(self) -> bool:
        """Whether everything is fused."""
        return self.fused == self.total and bool(self.total)

    def __str__(self) -> str:
        """``attention 32/32, mlp 32/32, loss 1/1``, and the reasons behind."""
        counts = ", ".join(f"{kind} {self.fused[kind]}/{total}" for kind, total in self.total.items())
        reasons = "; ".join(f"{reason} (x{count})" for reason, count in self.reasons.items())
        return "; ".join(part for part in (counts or "nothing fused", reasons) if part)


def slow_parts(report: FastPathReport) -> Finding:
    """The finding that says what does not run fused."""
    return Finding(
        id="L08",
        severity="note",
        title="Some parts of the model run on the plain path, which is slower.",
        evidence={"fused": f"{sum(report.fused.values())} of {sum(report.total.values())}", **report.reasons},
    )


def slower(kind: str, reason: str) -> Finding:
    """The finding of a run whose steps turn out to be slower than its report said."""
    report = FastPathReport()
    report.count(kind, reason)
    return slow_parts(report)
