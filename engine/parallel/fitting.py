"""Fit a run into the machine with as many ranks as the recipe, its step and memory allow. Light.

One GPU is planned first, whatever is asked: it says whether several are needed at all. Every other number of
ranks is planned with its share of the step's rows on its share of the machine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

from ..calibration import ceilings_of
from ..data.inspection import DataReport
from ..errors import WhetError
from ..fitting import as_loaded, choose_checkpointing, fit
from ..hardware import Machine
from ..models.facts import ModelFacts
from ..models.memory import Memory
from ..recipe import Recipe
from ..resolve import Resolved
from .deepspeed import deepspeed_config, read_config
from .methods import alone_because
from .rank_memory import copied, exchange_seconds, sharded
from .strategy import (
    Choice,
    DeepSpeedFacts,
    Problem,
    StepRows,
    Strategy,
    alike_gpus,
    choose,
    devices_of,
    refused,
)

GIB = 2**30
KEY = "hardware.gpus"
BY_TOKEN = ("sft",)
"""Methods whose loss is a sum over the step's tokens, however its rows are put together."""
IN_SHARES = ("sft",)
"""Methods whose model can be held in shares."""
SHARDABLE = ("bf16", "fp16", "fp32", "nf4")
"""Ways of holding the base that FSDP can divide."""
WHOLE_BLOCKS = "8-bit states belong to blocks of whole weights, not of shares (FSDP)"
MOST_LOOKED_AT = 8
"""GPUs of one machine: no larger number is proposed."""


@dataclass(frozen=True)
class RankPlan:
    """What one rank does and needs, and why.

    Args:
        resolved: with the ranks, their rows and how they go through.
        memory: of one rank.
        reasons: by recipe key.
        problem: why the recipe's wish is not what is planned.
        exchange_seconds: of a step, predicted; None where nothing is known, or nothing is exchanged.
    """

    resolved: Resolved
    memory: Memory
    reasons: dict[str, str]
    problem: Problem | None = None
    exchange_seconds: float | None = None


def fit_ranks(
    recipe: Recipe, resolved: Resolved, facts: ModelFacts, report: DataReport, machine: Machine
) -> RankPlan:
    """The number of ranks, how they share a step, and the settings and memory of each.

    Args:
        recipe: validated.
        resolved: of one process, without a schedule.
        facts: of the model.
        report: of the prepared data.
        machine: where it will run.
    """
    sharing = Sharing(recipe, resolved, facts, report, machine)
    return sharing.planned(sharing.choice)


class Sharing:
    """Plans of one run on several numbers of ranks, each made once."""

    def __init__(
        self, recipe: Recipe, resolved: Resolved, facts: ModelFacts, report: DataReport, machine: Machine
    ) -> None:
        self.recipe, self.facts, self.report, self.machine = recipe, facts, report, machine
        self.resolved = resolved
        self.rows = StepRows(
            resolved.batch_size, resolved.gradient_accumulation, whole=resolved.method not in BY_TOKEN
        )
        self._deepspeed = deepspeed_of(recipe)
        self._made: dict[tuple[Strategy, int], RankPlan] = {}

    @cached_property
    def choice(self) -> Choice:
        """What the recipe's wish comes to on this machine."""
        wish, devices = self.recipe.hardware, devices_of(self.machine)
        if wish.machines > 1:  # whoever starts the ranks gives each GPU of each machine one
            devices = replace(devices, count=devices.count * wish.machines)
            wish = wish if wish.gpus != "auto" else wish.model_copy(update={"gpus": devices.count})
        choice = choose(wish, self.rows, devices, self.fits, self.refusal, self._deepspeed)
        if choice.strategy == "deepspeed":
            problem = disagreement(self.recipe, self.of("deepspeed", choice.ranks).resolved)
            return choice if problem is None else refused(self.rows, problem)
        return choice

    def planned(self, choice: Choice) -> RankPlan:
        """The plan of a choice, the reason told where somebody could have wished otherwise."""
        made = self.of(choice.strategy, choice.ranks)
        reasons = dict(made.reasons)
        there = devices_of(self.machine)
        free = self.recipe.hardware.gpus == "auto" and there.count + there.others > 1
        if free or choice.problem is not None:
            reasons[KEY] = f"planner: {choice.reason}{self._offered(choice.offer)}"
        if choice.ranks > 1:
            shared = f"planner: {choice.ranks} ranks share a step of {self.rows.rows} rows"
            reasons["training.gradient_accumulation"] = shared
            if choice.batch_size != self.rows.batch_size:
                reasons["training.batch_size"] = shared
        return RankPlan(made.resolved, made.memory, reasons, choice.problem, made.exchange_seconds)

    def _offered(self, ranks: int) -> str:
        """What more GPUs would bring, for whoever has them to spare."""
        if ranks == 1:
            return ""
        alone, shared = (self.of(*one).resolved.schedule for one in (("single", 1), ("ddp", ranks)))
        words = f"; {KEY}={ranks} would share each step"
        if alone is None or shared is None or not alone.step_seconds or not shared.step_seconds:
            return words
        return f"{words}, in about {shared.step_seconds / alone.step_seconds:.0%} of its time"

    def fits(self, strategy: Strategy, ranks: int) -> bool:
        """Whether each of so many GPUs can hold its part."""
        return self.of(strategy, ranks).memory.fits

    def refusal(self, strategy: Strategy) -> str:
        """Why this run cannot go by a strategy; empty where it can."""
        if strategy == "single":
            return ""
        why = alone_because(self.resolved.method)
        if why is None and strategy != "ddp":
            why = self._no_shares(strategy)
        return why or ""

    def _no_shares(self, strategy: Strategy) -> str | None:
        """Why the weights cannot be held in shares."""
        resolved, ram = self.resolved, self.machine.ram_available
        if resolved.method not in IN_SHARES:
            return f"{resolved.method} holds whole weights on each GPU"
        if resolved.base_precision not in SHARDABLE:
            return f"weights in {resolved.base_precision} cannot be held in shares"
        if {resolved.embedding_precision, resolved.head_precision} != {"16bit"}:
            return "an embedding or head in fewer bits needs the fast path, which shares are not on"
        if strategy != "fsdp":
            return None
        if resolved.compute_dtype == "fp16":
            return "fp16 scales its loss on each GPU by itself, which shares of weights do not allow"
        whole = self.of("single", 1).memory.components["base"]
        if whole > ram:
            sizes = f"{whole / GIB:.0f} GiB of weights are read into memory before they are shared out"
            return f"{sizes}, and {ram / GIB:.0f} are free there"
        return None

    def fewest(self) -> int | None:
        """GPUs like the ones here that would hold the run in shares; None where none would, or none may."""
        if self.resolved.device != "cuda" or self.refusal("fsdp"):
            return None
        some = self.rows.divisors(MOST_LOOKED_AT)[1:]
        return next((ranks for ranks in some if self.fits("fsdp", ranks)), None)

    def of(self, strategy: Strategy, ranks: int) -> RankPlan:
        """The run on so many ranks, which must divide the step."""
        key = (strategy, ranks)
        if key not in self._made:
            self._made[key] = self._alone() if strategy == "single" else self._shared(strategy, ranks)
        return self._made[key]

    def _alone(self) -> RankPlan:
        resolved, memory, why = fit(self.recipe, self.resolved, self.facts, self.report, self.machine)
        return RankPlan(resolved, memory, why)

    def _shared(self, strategy: Strategy, ranks: int) -> RankPlan:
        share = self.rows.share(ranks)
        assert share is not None, f"{ranks} ranks do not divide {self.rows}"
        machine = machine_of_rank(self.machine, -(-ranks // self.recipe.hardware.machines))
        threads = self.recipe.training.threads or machine.cpu_count
        mine = self.resolved.model_copy(
            update={
                "strategy": strategy,
                "ranks": ranks,
                "batch_size": share[0],
                "gradient_accumulation": share[1],
                "machine": machine.label,
                "threads": threads,
                "optimizer": "adamw" if strategy == "fsdp" else self.resolved.optimizer,
            }
        )
        recipe, facts, report = self.recipe, self.facts, self.report
        if strategy == "ddp" and self.of("single", 1).resolved.schedule is not None:
            mine, memory, why = fit(recipe, mine, facts, report, machine)
            memory = copied(memory, mine)
        else:
            memory_of = copied if strategy == "ddp" else self._in_shares
            facts = as_loaded(recipe, facts)
            mine, memory, why = choose_checkpointing(recipe, mine, facts, report, machine, memory_of)
        memory = memory.model_copy(update={"available": free_for(machine, min(ranks, len(machine.gpus)))})
        seconds = self._exchange(mine)
        if mine.schedule is not None and mine.schedule.step_seconds is not None and seconds is not None:
            whole = mine.schedule.model_copy(
                update={"step_seconds": round(mine.schedule.step_seconds + seconds, 5)}
            )
            mine = mine.model_copy(update={"schedule": whole})
        if mine.optimizer != self.resolved.optimizer:
            why = {**why, "training.optimizer": f"planner: {WHOLE_BLOCKS}"}
        if threads != self.resolved.threads:
            why = {**why, "training.threads": f"planner: {threads} usable cores a rank"}
        return RankPlan(mine, memory, why, exchange_seconds=seconds)

    def _in_shares(self, memory: Memory, resolved: Resolved) -> Memory:
        stage = 3 if self._deepspeed is None else self._deepspeed.stage
        return sharded(memory, self.facts, self.recipe.adapter, resolved, stage)

    def _exchange(self, resolved: Resolved) -> float | None:
        ceilings = ceilings_of(self.machine)
        if ceilings is None:
            return None
        base = self.of("single", 1).memory.components["base"]
        several = self.recipe.hardware.machines > 1  # NVLink ends at the machine
        link = 0.0 if several else alike_gpus(self.machine.gpus)[0].link_rate
        return exchange_seconds(resolved, base, ceilings, link)


def machine_of_rank(machine: Machine, ranks: int) -> Machine:
    """What one of ``ranks`` on a machine may count on: GPUs of one kind, a share of host memory and cores."""
    gpus = alike_gpus(machine.gpus) if machine.gpus else []
    return machine.model_copy(
        update={
            "gpus": gpus,
            "cpu_count": max(1, machine.cpu_count // ranks),
            "ram_total": machine.ram_total // ranks,
            "ram_available": machine.ram_available // ranks,
        }
    )


def free_for(machine: Machine, ranks: int) -> int:
    """Bytes that are free for each of so many ranks: on the fullest of the GPUs with the most room."""
    free = sorted((gpu.memory_free for gpu in machine.gpus), reverse=True)
    return free[ranks - 1] if free else machine.ram_available


def deepspeed_of(recipe: Recipe) -> DeepSpeedFacts | None:
    """What the file that the recipe names says, and whether the package is there; None: it names none."""
    path = recipe.hardware.deepspeed
    if path is None:
        return None
    installed = find_spec("deepspeed") is not None
    try:
        config = read_config(Path(path).expanduser())
    except WhetError as error:
        return DeepSpeedFacts(path, installed, error.message, error.hint)
    zero = config.get("zero_optimization")
    stage = zero.get("stage", 0) if isinstance(zero, dict) else 0
    return DeepSpeedFacts(path, installed, stage=stage if stage in (1, 2, 3) else 0)


def disagreement(recipe: Recipe, resolved: Resolved) -> Problem | None:
    """What of DeepSpeed's file contradicts the recipe, or is not done here."""
    try:
        deepspeed_config(recipe, resolved)
    except WhetError as error:
        path = recipe.hardware.deepspeed
        return Problem(error.message, {"path": path}, error.hint, {"hardware.deepspeed": None})
    return None
