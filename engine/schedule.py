"""How the fast path runs an optimizer step: how much goes through at once, and what stays for the backward
pass.

Layers are counted from the input: ``recompute_mlp=12`` means that the first twelve compute their MLP again.
The first are the right ones to drop: their turn comes last in the backward pass, when little else is held.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Schedule(BaseModel):
    """The planner's choice for one model, machine and data set. It changes speed and memory, no result."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: int
    budget: int = Field(description="Tokens of a micro-batch at most; a step's rows are regrouped to it.")
    recompute_attention: int = Field(0, description="Layers, from the first, whose attention is recomputed.")
    recompute_mlp: int = Field(0, description="Layers, from the first, whose gate and up are recomputed.")
    offload: int = Field(0, description="Layers, from the first, whose inputs wait in pinned host memory.")
    chunk: int | None = Field(None, description="Tokens that go through an MLP at a time; None: all.")
    logit_bytes: int | None = Field(None, description="Of logits that stand at once; None: as usual.")
    micro_batches: float = Field(1.0, description="Expected of a step.")
    step_tokens: float = Field(0.0, description="Expected tokens of a step.")
    peak_bytes: int = Field(0, description="Predicted: the most that PyTorch's allocator holds in a step.")
    host_bytes: int = Field(0, description="Predicted: pinned host memory of the offloaded inputs.")
    step_seconds: float | None = Field(
        None, description="Predicted by the time model; None where it has none."
    )

    @property
    def keep_attention(self) -> list[bool]:
        """For each layer, whether projections and attention's output are held."""
        return self._after(self.recompute_attention)

    @property
    def keep_mlp(self) -> list[bool]:
        """For each layer, whether gate and up are held."""
        return self._after(self.recompute_mlp)

    @property
    def offloaded(self) -> list[bool]:
        """For each layer, whether its inputs wait in host memory."""
        return [not kept for kept in self._after(self.offload)]

    @property
    def recomputes(self) -> bool:
        """Whether any layer computes anything twice."""
        return self.recompute_attention > 0 or self.recompute_mlp > 0

    @property
    def tokens_per_second(self) -> float | None:
        """Of the rows, by the time model."""
        return self.step_tokens / self.step_seconds if self.step_seconds else None

    def summary(self) -> str:
        """In words, for people and for the reason of a setting."""
        words = []
        for count, what in (
            (self.recompute_mlp, "their MLP"),
            (self.recompute_attention, "their attention"),
        ):
            if count:
                words.append(f"{self._share(count)} recompute {what}")
        if self.offload:
            words.append(f"{self._share(self.offload)} keep their input in host memory")
        if self.chunk is not None:
            words.append(f"MLPs take {self.chunk:,} tokens at a time")
        if self.logit_bytes is not None:
            words.append(f"logits come {self.logit_bytes >> 20} MiB at a time")
        return ", ".join(words) or "everything is kept"

    def _share(self, count: int) -> str:
        return "all layers" if count == self.layers else f"{count} of {self.layers} layers"

    def _after(self, count: int) -> list[bool]:
        return [layer >= count for layer in range(self.layers)]
