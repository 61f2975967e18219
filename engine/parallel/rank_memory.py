"""What one of several ranks holds and waits for: shares of weights, gathered layers, buffers, the reduction.

Light, arithmetic alone. N ranks; a rank's activations are those of its own rows, which the memory model of
one GPU counts already.
"""

from __future__ import annotations

from ..calibration import Ceilings
from ..models.facts import ModelFacts
from ..models.memory import BYTES, MIB, Memory, embedding_trains, head_trains, weight_copies
from ..recipe import AdapterSection
from ..resolve import Resolved

STAGES: dict[int, tuple[str, ...]] = {
    0: (),
    1: ("optimizer",),
    2: ("optimizer", "gradients"),
    3: ("optimizer", "gradients", "base", "adapter"),
}
"""Components that ZeRO's stages divide (arXiv:1910.02054); FSDP divides those of the third."""
PASSING = ("activations", "passing", "loss")
"""Components that are gone when a step's gradients are whole."""
NCCL_BUFFERS = 160 * MIB
"""What NCCL holds of a GPU outside of PyTorch's allocator. Two whole copies on two H200 took 0.10 and 0.15
GiB more beside the allocator's peak than one GPU (torch 2.11, NVLink); more ranks were not measured."""
GATHERS = 2
"""Of a layer in a micro-batch: for the forward and for the backward pass, since it is let go between."""


def exchange_buffers(on_gpu: bool, ranks: int) -> int:
    """Bytes that the library of the exchange takes on each GPU; nothing on a CPU or for one rank."""
    return NCCL_BUFFERS if on_gpu and ranks > 1 else 0


def copied(memory: Memory, resolved: Resolved) -> Memory:
    """Of a whole copy on each GPU, whose gradients are summed once a step (DDP).

    The fast path sums its one gradient buffer in place. Elsewhere the gradients are laid end to end for it,
    at the end of a step, when activations are gone: only what takes more than those adds to the peak.
    """
    laid_out = 0 if resolved.schedule is not None else 4 * resolved.trainable_parameters
    return _with(memory, resolved, exchange=max(0, laid_out - _gone(memory)))


def sharded(
    memory: Memory, facts: ModelFacts, adapter: AdapterSection, resolved: Resolved, stage: int = 3
) -> Memory:
    """Of shares of weights, gradients and optimizer states (FSDP), with what is gathered on top.

    Gathered are embedding, head and last norm for the whole step, and the layer that computes. Of what trains
    whole, the gradient too is whole before it is scattered, in the type that was gathered and in fp32: a
    layer's beside the activations, that of the ends at the end of the backward pass, when those are gone.
    What is gathered arrives in one buffer on a stream of its own, from which it is copied. PyTorch's
    allocator keeps such a block for that stream, so it stands for the rest of the step as large as the
    largest gather was: mostly that of the ends, which the next layer's then reuses. It would be given back
    before memory runs out, but each step would wait for that. (Of an 8B model's ends it is 1.96 GiB; two H200
    held 2.04 GiB more than beside whole copies.)
    An earlier ``stage`` of DeepSpeed's ZeRO divides less and gathers nothing.
    """
    components = dict(memory.components)
    for name in STAGES[stage]:
        components[name] = -(-components[name] // resolved.ranks)
    if stage < 3:
        return copied(memory.model_copy(update={"components": components}), resolved)
    if adapter.kind == "none":  # a gathered layer is in the compute type already
        components["activations"] -= weight_copies(facts, adapter, resolved)
    layer, ends = _layer_and_ends(facts, adapter, resolved, memory)
    memory = memory.model_copy(update={"components": components})
    width = trained_width(resolved)
    of_layer = layer * (width + 4) // width if adapter.kind == "none" else 0
    of_ends = (width + 4) * _trained_ends(facts, adapter) - _gone(memory)
    return _with(memory, resolved, exchange=ends + layer + max(ends, layer) + max(of_layer, of_ends))


def _layer_and_ends(
    facts: ModelFacts, adapter: AdapterSection, resolved: Resolved, memory: Memory
) -> tuple[int, int]:
    """Bytes of one layer, and of what is outside of the layers, as they are gathered: frozen weights as they
    are held, those that train in :func:`trained_width`. Of ends that train beside an adapter there are two:
    PEFT keeps the frozen ones."""
    outside, width = facts.parameters.embedding + facts.parameters.head, trained_width(resolved)
    if adapter.kind == "none":
        inside = facts.parameters.total - outside
        return width * -(-inside // facts.layers), width * outside
    frozen, trained = BYTES.get(resolved.base_precision, 2) * outside, _trained_ends(facts, adapter)
    inside = memory.components["base"] - frozen + width * (resolved.trainable_parameters - trained)
    return max(0, -(-inside // facts.layers)), frozen + width * trained


def trained_width(resolved: Resolved) -> int:
    """Bytes of a gathered number that trains: of the compute type, beside packed weights of fp32, since there
    nothing is cast (``casts_gathered`` of the module :mod:`.fsdp`, which needs torch)."""
    return BYTES["fp32" if resolved.base_precision == "nf4" else resolved.compute_dtype]


def _trained_ends(facts: ModelFacts, adapter: AdapterSection) -> int:
    """Parameters of embedding and head that train whole; tied, they are the embedding's."""
    embedding = facts.parameters.embedding if embedding_trains(facts, adapter) else 0
    return embedding + (facts.parameters.head if head_trains(facts, adapter) else 0)


def _gone(memory: Memory) -> int:
    """Bytes of what is gone when a step's gradients are whole."""
    return sum(memory.components.get(name, 0) for name in PASSING)


def _with(memory: Memory, resolved: Resolved, exchange: int) -> Memory:
    exchange += exchange_buffers(memory.where == "gpu", resolved.ranks)
    components = {**memory.components, "exchange": exchange}
    return memory.model_copy(update={"components": components, "peak": sum(components.values())})


def exchange_seconds(resolved: Resolved, base: int, ceilings: Ceilings, link: float) -> float:
    """Of an optimizer step, what ranks wait for each other's numbers.

    A ring moves 2 (N-1)/N of the gradients' bytes over each link once a step (DDP), nothing beside it. FSDP
    gathers (N-1)/N of the base :data:`GATHERS` times a micro-batch, and scatters the gradients in each: no
    rank keeps whole ones.

    Args:
        resolved: the ranks and what they train.
        base: bytes of the whole base as it is held.
        ceilings: of the GPU; ``pcie`` where ``link`` is not known.
        link: bytes a second between two GPUs; 0 for unknown.
    """
    share = (resolved.ranks - 1) / resolved.ranks
    moved = 2 * share * 4 * resolved.trainable_parameters
    if resolved.strategy != "ddp":  # DeepSpeed's earlier stages gather less: this is the most
        moved = share * resolved.gradient_accumulation * (4 * resolved.trainable_parameters + GATHERS * base)
    return moved / (link or ceilings.pcie)
