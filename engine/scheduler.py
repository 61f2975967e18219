"""The planner of the fast path: the cheapest schedule that fits, and the largest work that any schedule fits.

Light. Everything is arithmetic (:mod:`.models.fast_memory`, :mod:`.models.fast_time`), so the search tries
hundreds of schedules in a fraction of a second: budgets of a micro-batch, chunks of the MLP, offloaded
layers, recomputed MLPs, and for each of these the fewest recomputed attentions that fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from .calibration import Ceilings
from .models.facts import ModelFacts
from .models.families import Unsupported
from .models.fast_memory import (
    FEW_LOGIT_BYTES,
    LOGIT_BYTES,
    Choice,
    allocated,
    fast_peak,
    filled,
    host_bytes,
)
from .models.fast_shape import FastShape, Precisions, fast_shape
from .models.fast_time import Rows, step_time
from .models.memory import CUDA_CONTEXT, FRAGMENTATION, PROCESS
from .recipe import AdapterSection
from .schedule import Schedule

CHUNKS = (16384, 8192, 4096)
"""Tokens of an MLP's chunk; below the last one products lose more than memory gains."""
LONGEST = 1 << 20
"""No sequence is looked for beyond this."""
HOST_SHARE = 0.5
"""Of free host memory that pinned buffers may take."""
UNKNOWN = Ceilings(
    matmul=1e11, copy_rate=2e10, attention=5e10, attention_ramp=100, attention_equal=5e10,
    attention_equal_ramp=100, pcie=1e10, layer_host=1e-3, step_host=1e-2,
)  # fmt: skip
"""Ranks schedules where nothing is known of the machine's speed; no time is predicted from it."""

Recompute = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class Room:
    """What a schedule may take.

    Args:
        device: bytes of the GPU (or of RAM for a CPU), context and fragmentation included.
        host: bytes of pinned host memory; 0 where inputs cannot be offloaded.
    """

    device: int
    host: int = 0

    def allocator(self, shape: FastShape) -> int:
        """Bytes that PyTorch's allocator may hold."""
        runtime = PROCESS if shape.attention == "reference" else CUDA_CONTEXT
        return int(self.device / (1 + FRAGMENTATION)) - runtime


def choose_schedule(
    shape: FastShape,
    rows: Rows,
    room: Room,
    ceilings: Ceilings | None,
    recompute: Recompute = "auto",
    *,
    forwards: int | None = None,
) -> Schedule:
    """The schedule with the least expected time among those that fit; where none does, the smallest.

    Args:
        shape: of the model, from :func:`.models.fast_shape.fast_shape`.
        rows: of an optimizer step.
        room: memory.
        ceilings: of the GPU; None predicts no time.
        recompute: ``on`` recomputes everything, ``off`` nothing; only budget, chunk and offload are chosen.
        forwards: the rows go through together, since their loss compares them, and so many passes without a
            gradient beside; None for the usual loss.
    """
    speeds = ceilings or UNKNOWN
    sizes = [filled(rows.most)] if forwards is not None else budgets(rows)
    starts = [
        Choice(tokens=size, supervised=rows.supervised, longest=rows.longest, forwards=forwards)
        for size in sizes
    ]
    best: tuple[float, Choice] | None = None
    for logit_bytes in (LOGIT_BYTES, FEW_LOGIT_BYTES):
        tried = [replace(start, logit_bytes=logit_bytes) for start in starts]
        best = best or _fastest(shape, rows, room, speeds, recompute, tried)
    if best is None:
        least = starts[-1]
        smallest = _smallest(shape, least, room, recompute)
        best = (step_time(shape, rows, smallest, speeds).total, smallest)
    return _schedule(shape, rows, best[1], best[0] if ceilings else None)


def _fastest(
    shape: FastShape,
    rows: Rows,
    room: Room,
    speeds: Ceilings,
    recompute: Recompute,
    starts: Sequence[Choice],
) -> tuple[float, Choice] | None:
    """Seconds and choice of what fits and takes the least time; None where nothing fits."""
    best: tuple[float, Choice] | None = None
    for start in starts:
        for choice in _candidates(shape, start, room, recompute):
            seconds = step_time(shape, rows, choice, speeds).total
            if best is None or seconds < best[0]:
                best = (seconds, choice)
        if best is not None and best[1] == start and start.tokens >= rows.most:
            break  # all at once and everything kept: nothing is faster
    return best


def budgets(rows: Rows) -> list[int]:
    """Token budgets worth trying, largest first: whole rows of the longest kind, as few micro-batches."""
    parts = [count << power for power in range(rows.per_step.bit_length()) for count in (1, 3)]
    counts = {-(-rows.per_step // part) for part in parts} | {1}
    found = {filled(count * rows.longest) for count in counts}
    usual = filled(round(1.25 * rows.tokens))  # most steps at once, when long rows are rare
    return sorted(found | {max(filled(rows.longest), min(usual, max(found)))}, reverse=True)


def _candidates(shape: FastShape, start: Choice, room: Room, recompute: Recompute) -> Iterator[Choice]:
    """Choices of one budget that fit. Keeping everything ends it: nothing of this budget is faster."""
    layers = shape.layers
    most_away = _most_offloaded(shape, start, room)
    for offload in sorted({0, most_away // 2, most_away}):
        for chunk in (None, *(size for size in CHUNKS if size < start.filled)):
            choice = replace(start, chunk=chunk, offload=offload)
            levels = {"auto": range(layers + 1), "on": (layers,), "off": (0,)}[recompute]
            for dropped in levels:
                most = layers if recompute != "off" else 0
                least = layers if recompute == "on" else 0
                found = _fewest(replace(choice, recompute_mlp=dropped), shape, room, least, most)
                if found is None:
                    continue
                yield found
                if found.recompute_attention == least:
                    break  # more of the MLPs recomputed would only take longer
            if start.tokens and _fits(shape, choice, room) and recompute != "on":
                return


def _fewest(choice: Choice, shape: FastShape, room: Room, least: int, most: int) -> Choice | None:
    """The choice with the fewest recomputed attentions that fits, by bisection; None where none does."""

    def at(count: int) -> Choice:
        return replace(choice, recompute_attention=count)

    if not _fits(shape, at(most), room):
        return at(least) if _fits(shape, at(least), room) else None
    low, high = least - 1, most
    while high - low > 1:
        middle = (low + high) // 2
        if _fits(shape, at(middle), room):
            high = middle
        else:
            low = middle
    return at(high)


def _fits(shape: FastShape, choice: Choice, room: Room) -> bool:
    return allocated(shape, fast_peak(shape, choice)) <= room.allocator(shape)


def _most_offloaded(shape: FastShape, start: Choice, room: Room) -> int:
    """Layers whose inputs, and attention's results, find room in host memory."""
    away = replace(start, recompute_attention=shape.layers)
    return _largest(
        shape.layers, lambda count: host_bytes(shape, replace(away, offload=count)) <= HOST_SHARE * room.host
    )


def _smallest(shape: FastShape, start: Choice, room: Room, recompute: Recompute = "auto") -> Choice:
    """The choice of a budget that needs the least device memory."""
    layers = shape.layers
    chunk = CHUNKS[-1] if start.filled > CHUNKS[-1] else None
    start = replace(start, logit_bytes=FEW_LOGIT_BYTES)
    levels = {"auto": (0, layers), "on": (layers,), "off": (0,)}[recompute]
    every = [
        replace(start, chunk=chunk, offload=offload, recompute_mlp=mlp, recompute_attention=attention)
        for offload in (0, _most_offloaded(shape, start, room))
        for mlp in levels
        for attention in levels
    ]
    return min(every, key=lambda choice: fast_peak(shape, choice).device)


def _schedule(shape: FastShape, rows: Rows, choice: Choice, seconds: float | None) -> Schedule:
    peak = fast_peak(shape, choice)
    return Schedule(
        layers=shape.layers,
        budget=choice.tokens,
        recompute_attention=choice.recompute_attention,
        recompute_mlp=choice.recompute_mlp,
        offload=choice.offload,
        chunk=choice.chunk,
        logit_bytes=None if choice.logit_bytes == LOGIT_BYTES else choice.logit_bytes,
        micro_batches=round(rows.micro_batches(choice.tokens), 2),
        step_tokens=round(rows.tokens, 1),
        peak_bytes=allocated(shape, peak),
        host_bytes=peak.host,
        step_seconds=None if seconds is None else round(seconds, 5),
    )


# --- the largest that fits


def longest_sequence(facts: ModelFacts, adapter: AdapterSection, held: Precisions, room: Room) -> int | None:
    """Tokens of the longest sequence that trains alone in a micro-batch; 0 where not even a short one does.

    At most the model's own positions. None for a model that is not on the fast path.

    Args:
        facts: of the model.
        adapter: what is trained.
        held: precisions.
        room: memory.
    """
    shape = fast_shape(facts, adapter, held)
    return None if isinstance(shape, Unsupported) else longest_of(shape, room)


def longest_of(shape: FastShape, room: Room) -> int:
    """:func:`longest_sequence` of a shape."""

    def fits(tokens: int) -> bool:
        choice = Choice(tokens=tokens, longest=tokens)
        return _fits(shape, _smallest(shape, choice, room), room)

    most = min(shape.positions or LONGEST, LONGEST)
    if most >= 64 and fits(most):
        return most
    return 64 * _largest(most // 64, lambda count: fits(64 * count))


def largest_rank(
    facts: ModelFacts, adapter: AdapterSection, held: Precisions, room: Room, tokens: int
) -> int | None:
    """The largest rank with which ``tokens`` of one sequence train; 0 for none, None off the fast path.

    Args:
        facts: of the model.
        adapter: its other settings.
        held: precisions.
        room: memory.
        tokens: of the longest sequence.
    """
    if isinstance(fast_shape(facts, adapter, held), Unsupported):
        return None

    def fits(rank: int) -> bool:
        shape = fast_shape(facts, adapter.model_copy(update={"rank": rank}), held)
        assert not isinstance(shape, Unsupported)
        choice = Choice(tokens=tokens, longest=tokens)
        return _fits(shape, _smallest(shape, choice, room), room)

    return _largest(facts.hidden_size, fits)


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest of 1..most that fits, 0 where none does; what fits, fits for all smaller."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low
