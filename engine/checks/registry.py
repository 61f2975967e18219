"""What a check is: a generator of findings over facts that somebody else gathered.

Checks differ by what they look at: a plan, the surroundings of a run, a loaded model, a running training, an
export. Each kind of facts has its own list in :mod:`whet.engine.checks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Literal, Protocol, TypeVar

from ..data.inspection import DataReport
from ..data.mapping import Mapping
from ..data.tokenizer_files import TokenizerFiles
from ..findings import Finding
from ..hardware import Machine
from ..methods.embedding.batch_facts import BatchFacts
from ..models.facts import ModelFacts
from ..models.families import Family, family_of
from ..models.memory import Memory
from ..models.weight_facts import WeightFacts
from ..parallel.strategy import Problem
from ..recipe import Recipe
from ..resolve import Resolved
from ..surroundings.facts import Surroundings

if TYPE_CHECKING:
    from ..alternatives import Alternative

Phase = Literal["environment", "data", "load", "training", "export"]
SEVERITY_ORDER = {"error": 0, "warning": 1, "note": 2}


class HasSurroundings(Protocol):
    """What checks of the environment look at: a plan's facts, or those of `whet doctor`."""

    @property
    def machine(self) -> Machine: ...

    @property
    def surroundings(self) -> Surroundings: ...


@dataclass(frozen=True)
class PlanFacts:
    """Everything a check before the start may look at. No check reads files or asks the machine."""

    recipe: Recipe
    resolved: Resolved
    model: ModelFacts
    machine: Machine
    report: DataReport
    memory: Memory
    alternatives: tuple[Alternative, ...]
    disk_bytes: dict[str, int]
    fitting_template: str | None
    """Chosen by the planner because chat rows need a template and the model has none."""
    missing_markers: tuple[str, ...]
    """Of the template that the recipe names: those that are no tokens of this vocabulary."""
    better_template: str | None
    """What ``data.template`` should then be; None for the model's own."""
    gguf_refusal: str | None
    """Why GGUF files were asked for and cannot be written of this model; None when they can."""
    bitsandbytes: bool
    llama_cpp: bool
    tokenizer: TokenizerFiles | None = None
    """What the model's folder says of its tokenizer."""
    mapping: Mapping | None = None
    """Guessed by the planner because the rows' columns have no known names."""
    llama_cpp_says: str | None = None
    """Why it cannot be used although it is installed; tried where GGUF files are asked for."""
    weights: WeightFacts | None = None
    """What the model's files say beside one another; None where there was no reason to read them."""
    batches: BatchFacts | None = None
    """Of a run of an embedding model to whose loss the other rows of a batch are wrong answers."""
    ranks_problem: Problem | None = None
    """Why the GPUs that the recipe asks for cannot share the run."""
    fitting_gpus: int | None = None
    """So many GPUs like these would hold in shares what does not fit one."""
    surroundings: Surroundings = field(default_factory=Surroundings)
    """Of the machine at hand; nothing where the plan is for another one."""

    @property
    def family(self) -> Family:
        return family_of(self.model.model_type)

    @property
    def chat(self) -> bool:
        """Rows are written by a chat template; plain text is not."""
        return self.report.template is not None and self.report.format.format not in ("text", None)

    @property
    def end_tokens(self) -> tuple[str, ...]:
        """Texts that end an answer here: the template's end of turn and the tokenizer's EOS."""
        eos = self.tokenizer.eos_token if self.tokenizer else None
        return tuple(dict.fromkeys(token for token in (self.report.end_of_turn, eos) if token))


Facts = TypeVar("Facts", contravariant=True)
"""A check of less specific facts serves where more specific ones are looked at."""


@dataclass(frozen=True)
class Check(Generic[Facts]):
    """A registered check: its phase, the finding ids it can yield, and the generator."""

    phase: Phase
    ids: tuple[str, ...]
    run: Callable[[Facts], Iterator[Finding]]


def check(phase: Phase, *ids: str) -> Callable[[Callable[[Facts], Iterator[Finding]]], Check[Facts]]:
    """Mark a generator as a check that yields findings of these ids; list it in :mod:`whet.engine.checks`."""

    def register(function: Callable[[Facts], Iterator[Finding]]) -> Check[Facts]:
        return Check(phase, ids, function)

    return register


def worst_first(found: Iterable[Finding]) -> list[Finding]:
    """Errors before warnings before notes; within a severity as they came."""
    return sorted(found, key=lambda finding: SEVERITY_ORDER[finding.severity])


def share(part: int, whole: int) -> float:
    """``part / whole`` for evidence, 0 for an empty whole."""
    return round(part / whole, 4) if whole else 0.0
