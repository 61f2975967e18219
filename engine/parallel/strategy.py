"""How many processes share an optimizer step, how, and why. Pure arithmetic over facts: no torch, no files.

The rows of an optimizer step are the recipe's, whatever the number of processes: each takes an equal share,
so a number that does not divide them is no choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..hardware import GPU, Machine
from .section import HardwareSection

Strategy = Literal["single", "ddp", "fsdp", "deepspeed"]
"""One process; whole copies whose gradients are summed; shares of the weights that are gathered a layer at a
time; whatever DeepSpeed's own file says."""

CPU_SWITCH = "WHET_CPU_RANKS"


@dataclass(frozen=True)
class Devices:
    """What ranks can run on.

    Args:
        count: GPUs of one kind; without GPUs the CPU processes that ``WHET_CPU_RANKS`` asks for, else 1.
        name: of the kind.
        cuda: whether they are GPUs.
        others: GPUs of other kinds, which take no part: the slowest would set the pace.
    """

    count: int
    name: str
    cuda: bool = True
    others: int = 0


@dataclass(frozen=True)
class StepRows:
    """An optimizer step as the recipe has it.

    Args:
        batch_size: rows of a micro-batch.
        accumulation: micro-batches of a step.
        whole: the loss is one of the micro-batch (its rows are compared, or averaged), so its size must stay.
    """

    batch_size: int
    accumulation: int
    whole: bool = False

    @property
    def rows(self) -> int:
        return self.batch_size * self.accumulation

    def share(self, ranks: int) -> tuple[int, int] | None:
        """Rows of a micro-batch and micro-batches of one rank; None where the step does not divide.

        Whole micro-batches where their number divides, else the largest that divides a rank's rows.
        """
        if self.accumulation % ranks == 0:
            return self.batch_size, self.accumulation // ranks
        if self.whole or self.rows % ranks:
            return None
        mine = self.rows // ranks
        size = max(one for one in range(1, self.batch_size + 1) if mine % one == 0)
        return size, mine // size

    def divisors(self, most: int) -> list[int]:
        """Numbers of ranks from 1 to ``most`` that share the step equally."""
        return [ranks for ranks in range(1, most + 1) if self.share(ranks) is not None]


@dataclass(frozen=True)
class DeepSpeedFacts:
    """What is known of the file that the recipe names, and of the package.

    Args:
        path: as the recipe has it.
        installed: whether the package is.
        wrong: why the file cannot be used, a sentence; empty: it can.
        hint: what to do then.
        stage: of its ZeRO: 1 divides the optimizer's states, 2 gradients too.
    """

    path: str
    installed: bool
    wrong: str = ""
    hint: str = ""
    stage: int = 0

    @property
    def problem(self) -> Problem | None:
        """Of the file alone."""
        if not self.wrong:
            return None
        return Problem(self.wrong, {"path": self.path}, self.hint, {"hardware.deepspeed": None})


@dataclass(frozen=True)
class Problem:
    """Why the recipe's wish cannot be met, and what would be."""

    title: str
    evidence: dict[str, Any]
    fix: str
    patch: dict[str, Any]
    command: str | None = None


@dataclass(frozen=True)
class Choice:
    """What the plan does with the machine's GPUs.

    Args:
        strategy: see :data:`Strategy`.
        ranks: processes, one a GPU.
        batch_size: rows of a rank's micro-batch.
        accumulation: a rank's micro-batches of a step.
        reason: in words, for the origin of ``hardware.gpus``.
        problem: the wish cannot be met; the choice is then one process.
        offer: ranks that would share the run, were they asked for; 1 for none.
    """

    strategy: Strategy
    ranks: int
    batch_size: int
    accumulation: int
    reason: str
    problem: Problem | None = None
    offer: int = 1


def devices_of(machine: Machine) -> Devices:
    """The largest group of GPUs of one kind, the roomier one of two; CPU processes where there is no GPU."""
    if not machine.gpus:
        return Devices(machine.cpu_ranks, machine.cpu_name, cuda=False)
    alike = alike_gpus(machine.gpus)
    return Devices(len(alike), alike[0].name, others=len(machine.gpus) - len(alike))


def alike_gpus(gpus: list[GPU]) -> list[GPU]:
    """Those of the commonest name; of two equally common ones those with more memory."""
    groups = {gpu.name: [one for one in gpus if one.name == gpu.name] for gpu in gpus}
    return max(groups.values(), key=lambda group: (len(group), group[0].memory_total))


def choose(
    wish: HardwareSection,
    rows: StepRows,
    devices: Devices,
    fits: Callable[[Strategy, int], bool],
    refusal: Callable[[Strategy], str],
    deepspeed: DeepSpeedFacts | None = None,
) -> Choice:
    """The number of processes and the strategy.

    ``auto`` takes one GPU where the run fits it, else the fewest that hold it together: GPUs of a shared
    machine are left to others unless they are asked for.

    Args:
        wish: the recipe's section.
        rows: of an optimizer step.
        devices: that ranks can run on.
        fits: whether a strategy on so many ranks fits the memory of each.
        refusal: why the method, or how its weights are held, cannot run by a strategy; empty: it can.
        deepspeed: of the file that ``wish`` names.
    """
    if deepspeed is not None:
        return _by_deepspeed(wish, rows, devices, refusal, deepspeed)
    if wish.gpus == "auto":
        return _auto(rows, devices, fits, refusal)
    return _asked(wish.gpus, rows, devices, fits, refusal)


def _choice(strategy: Strategy, ranks: int, rows: StepRows, reason: str) -> Choice:
    share = rows.share(ranks)
    assert share is not None, f"{ranks} ranks do not divide {rows}"
    return Choice(strategy, ranks, *share, reason)


def refused(rows: StepRows, problem: Problem) -> Choice:
    """One process, since what was wished for cannot be."""
    return Choice("single", 1, rows.batch_size, rows.accumulation, problem.title, problem)


def _auto(
    rows: StepRows,
    devices: Devices,
    fits: Callable[[Strategy, int], bool],
    refusal: Callable[[Strategy], str],
) -> Choice:
    if not devices.cuda:
        return _on_cpu(rows, devices, fits, refusal)
    if devices.count == 1:
        of_kind = f" of its kind ({devices.name})" if devices.others else ""
        return _choice("single", 1, rows, f"there is one GPU{of_kind}")
    if fits("single", 1):
        alone = _choice("single", 1, rows, "the run fits one GPU")
        most = 1 if refusal("ddp") else rows.divisors(devices.count)[-1]
        return replace(alone, offer=most)
    why = refusal("fsdp")
    if why:
        return _choice("single", 1, rows, f"it does not fit one GPU, and {why}")
    for ranks in rows.divisors(devices.count)[1:]:
        if fits("fsdp", ranks):
            reason = f"the run does not fit one GPU; {ranks} hold its weights in shares (FSDP)"
            return _choice("fsdp", ranks, rows, reason)
    return _choice("single", 1, rows, f"it does not fit {devices.count} GPUs together either")


def _on_cpu(
    rows: StepRows,
    devices: Devices,
    fits: Callable[[Strategy, int], bool],
    refusal: Callable[[Strategy], str],
) -> Choice:
    """One process, or as many as the switch asks for: it is set by whoever tries several."""
    if devices.count == 1:
        return _choice("single", 1, rows, "no GPU")
    why = refusal("ddp")
    ranks = rows.divisors(devices.count)[-1]
    if why or ranks == 1:
        return _choice("single", 1, rows, why or f"{CPU_SWITCH}={devices.count} divides no step")
    strategy = _several(ranks, fits, refusal)
    return _choice(strategy, ranks, rows, f"{CPU_SWITCH}={devices.count}: processes on the CPU, for trying")


def _several(
    ranks: int, fits: Callable[[Strategy, int], bool], refusal: Callable[[Strategy], str]
) -> Strategy:
    """Whole copies where they fit, or where shares are not possible."""
    if refusal("ddp"):
        return "fsdp"
    return "ddp" if refusal("fsdp") or fits("ddp", ranks) else "fsdp"


def _asked(
    ranks: int,
    rows: StepRows,
    devices: Devices,
    fits: Callable[[Strategy, int], bool],
    refusal: Callable[[Strategy], str],
) -> Choice:
    if ranks == 1:
        return _choice("single", 1, rows, "asked for")
    problem = _problem(ranks, rows, devices, refusal("ddp"), refusal("fsdp"))
    if problem is not None:
        return refused(rows, problem)
    if _several(ranks, fits, refusal) == "ddp":
        return _choice("ddp", ranks, rows, "each rank holds the whole run; gradients are summed once a step")
    reason = refusal("ddp") or "the run does not fit one GPU"
    return _choice("fsdp", ranks, rows, f"{reason}; the weights are held in shares (FSDP)")


def _problem(ranks: int, rows: StepRows, devices: Devices, *refusals: str) -> Problem | None:
    """What speaks against ``ranks`` at all: the method, the machine, then the step."""
    if refusals and all(refusals):
        return Problem(
            f"hardware.gpus={ranks}, but {refusals[0]}.",
            {"asked": ranks},
            "Train on one GPU.",
            {"hardware.gpus": 1},
        )
    if ranks > devices.count:
        return _too_many(ranks, rows, devices)
    if rows.share(ranks) is None:
        return _indivisible(ranks, rows, devices.count)
    return None


def _too_many(ranks: int, rows: StepRows, devices: Devices) -> Problem:
    evidence = {"asked": ranks, "there": devices.count, "other_kinds": devices.others}
    if not devices.cuda and devices.count == 1:
        return Problem(
            f"hardware.gpus={ranks}, but there is no GPU.",
            evidence,
            "Let the plan choose; to try several processes on a CPU, start whet with "
            f"{CPU_SWITCH}={ranks} in its environment.",
            {"hardware.gpus": "auto"},
        )
    most = rows.divisors(devices.count)[-1]
    kind = f" {devices.name}" if devices.cuda else " processes on the CPU"
    beside = f", beside {devices.others} of other kinds" if devices.others else ""
    return Problem(
        f"hardware.gpus={ranks}, but there are {devices.count}{kind}{beside}.",
        evidence,
        f"Take {most}." if most > 1 else "Take one.",
        {"hardware.gpus": most},
    )


def _indivisible(ranks: int, rows: StepRows, count: int) -> Problem:
    possible = rows.divisors(count)
    near = max(one for one in possible if one <= ranks)
    what = (
        f"{rows.accumulation} micro-batches, which this method keeps whole"
        if rows.whole
        else f"{rows.rows} rows ({rows.batch_size} × {rows.accumulation})"
    )
    return Problem(
        f"hardware.gpus={ranks} does not divide an optimizer step of {what}.",
        {"asked": ranks, "possible": possible, "rows_per_step": rows.rows},
        f"Take {near}, or make training.gradient_accumulation a multiple of {ranks}, which changes the step.",
        {"hardware.gpus": near},
    )


def _by_deepspeed(
    wish: HardwareSection,
    rows: StepRows,
    devices: Devices,
    refusal: Callable[[Strategy], str],
    deepspeed: DeepSpeedFacts,
) -> Choice:
    """Whoever brings DeepSpeed's file wants the work spread: ``auto`` is then every GPU that divides."""
    for problem in _deepspeed_problems(devices, refusal("deepspeed"), deepspeed):
        return refused(rows, problem)
    ranks = rows.divisors(devices.count)[-1] if wish.gpus == "auto" else wish.gpus
    counted = _problem(ranks, rows, devices)
    if counted is not None:
        return refused(rows, counted)
    return _choice("deepspeed", ranks, rows, f"by {deepspeed.path}")


def _deepspeed_problems(devices: Devices, refusal: str, deepspeed: DeepSpeedFacts) -> Iterator[Problem]:
    without: dict[str, Any] = {"hardware.deepspeed": None}
    named = f"hardware.deepspeed={deepspeed.path}"
    if not deepspeed.installed:
        yield Problem(
            f"{named} needs the package deepspeed, which is not installed.",
            {"deepspeed": None},
            "Install it, or leave the file out: FSDP holds weights in shares without it.",
            without,
            "pip install deepspeed",
        )
    if deepspeed.problem is not None:
        yield deepspeed.problem
    if refusal:
        yield Problem(f"{named}, but {refusal}.", {}, "Leave the file out.", without)
    if not devices.cuda:
        yield Problem(f"{named}, but there is no GPU.", {}, "Leave the file out.", without)
