"""Whether one GPU holds for an evaluation what several held in shares. Light."""

from __future__ import annotations

from ..errors import WhetError
from ..fitting import capacity_of
from ..hardware import Machine
from ..models.memory import CUDA_CONTEXT, CUDA_WORKSPACE, FRAGMENTATION, base_bytes, evaluation_bytes_a_token
from ..plan import Plan

GIB = 2**30


def evaluation_bytes(plan: Plan) -> int:
    """What one GPU must have free to evaluate a run's weights: all of them, and a batch of held-out rows."""
    recipe, resolved, facts = plan.recipe, plan.resolved, plan.model
    ends = resolved.embedding_precision, resolved.head_precision
    adapter = 0 if recipe.adapter.kind == "none" else 4 * resolved.trainable_parameters
    tokens = recipe.eval.batch_size * resolved.longest
    held = base_bytes(facts, resolved.base_precision, *ends) + adapter
    rows = tokens * evaluation_bytes_a_token(facts, recipe.adapter, resolved)
    return int((held + rows + CUDA_CONTEXT + CUDA_WORKSPACE) * (1 + FRAGMENTATION))


def refuse_too_large(run: str, plan: Plan, machine: Machine) -> None:
    """Raises WhetError ``eval.too_large`` where a run in shares left weights that no GPU here holds alone.

    Args:
        run: its id.
        plan: of the run.
        machine: where it is to be evaluated, on one GPU.
    """
    if plan.resolved.strategy != "fsdp" or not machine.gpus:
        return
    needed, there = evaluation_bytes(plan), capacity_of(machine)
    if needed > there:
        raise WhetError(
            "eval.too_large",
            f"Run {run} held its weights in shares on {plan.resolved.ranks} GPUs. An evaluation runs on one, "
            f"which would need about {needed / GIB:.1f} GiB and has {there / GIB:.1f}.",
            f"What the run measured itself is in whet show {run}. For answers write a smaller file and chat "
            f"with that: whet export {run} --gguf q4_k_m.",
        )
