"""What the answers that a step learns from take while they are written: before the step, when nothing of what
it holds is there yet. Light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .encoder_memory import BYTES
from .facts import ModelFacts

if TYPE_CHECKING:
    from ..resolve import Resolved
    from .memory import Memory

PLACES = 256
"""Rows of the fast path's cache have a multiple of this many, so that texts of similar length share one."""
CACHE_SHARE = 0.8
"""Of the free memory that the fast path's cache may take, since prompts want some too; beyond it
transformers' own loop writes."""
STEP = ("activations", "passing", "loss")
"""What a step adds to what is always there."""


def rounded_places(tokens: int) -> int:
    """Tokens of a row in the fast path's cache."""
    return -(-tokens // PLACES) * PLACES


def writing_bytes(facts: ModelFacts, resolved: Resolved) -> int:
    """Keys and values of all answers that are written together, and two rows of logits each in fp32."""
    places = rounded_places(resolved.longest) if _on_fast_path(resolved) else resolved.longest
    cached = places * facts.layers * 2 * facts.kv_heads * facts.head_dim * BYTES[resolved.compute_dtype]
    return resolved.answers // resolved.turns * (cached + 8 * facts.embedding_rows)


def _on_fast_path(resolved: Resolved) -> bool:
    return resolved.schedule is not None and resolved.device == "cuda"


def beside_writing(components: dict[str, int], facts: ModelFacts, resolved: Resolved) -> dict[str, int]:
    """The components of a step, with what writing its answers takes more than the step does."""
    if not resolved.answers:
        return components
    held = sum(components.get(name, 0) for name in STEP)
    more = max(0, writing_bytes(facts, resolved) - held)
    return {**components, "passing": components.get("passing", 0) + more}


def fits_writing(memory: Memory, facts: ModelFacts, resolved: Resolved) -> bool:
    """Whether all fits, and the fast path will not leave the writing to transformers for want of memory."""
    if not memory.fits or not _on_fast_path(resolved):
        return memory.fits
    always = memory.peak - sum(memory.components.get(name, 0) for name in STEP)
    return writing_bytes(facts, resolved) <= CACHE_SHARE * (memory.capacity - always)
