"""What the fast path's memory and time follow from: one model's numbers, with its adapter and precisions.

Light: config.json and the facts, no torch. Legend: D width, H query heads, F MLP width, q = H x head size,
k = key/value heads x head size, R ranks of the layers of one product together, w bytes of the compute type.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, Protocol

from ..adapted import WHOLE, adapted_layers, adapter_parts, trainable_parameters
from ..recipe import AdapterSection
from .encoder_memory import BYTES
from .facts import ModelFacts, text_config
from .families import FastSettings, Unsupported, family_of, fast_settings
from .memory import base_bytes, embedding_trains, head_trains, moment_bytes

RANK_STEP = 8
"""Stacked ranks are padded to a multiple of this."""
GROUP_BYTES = 64 * 2**20
"""Of quantised layers that are expanded together."""

STACKS = {
    "qkv": ("q_proj", "k_proj", "v_proj", "qkv_proj"),
    "out": ("o_proj",),
    "gate_up": ("gate_proj", "up_proj", "gate_up_proj"),
    "down": ("down_proj",),
}
"""Projections of a layer that run as one matrix product, by the names of their modules."""

AttentionKind = Literal["library", "triton", "reference"]


class Precisions(Protocol):
    """How a run computes and holds things; a plan's ``resolved`` is one."""

    @property
    def device(self) -> str: ...
    @property
    def compute_dtype(self) -> str: ...
    @property
    def base_precision(self) -> str: ...
    @property
    def products(self) -> str: ...
    @property
    def embedding_precision(self) -> str: ...
    @property
    def head_precision(self) -> str: ...
    @property
    def optimizer(self) -> str: ...


@dataclass(frozen=True)
class Held:
    """Precisions without a plan."""

    compute_dtype: str = "bf16"
    base_precision: str = "bf16"
    products: str = "auto"
    embedding_precision: str = "16bit"
    head_precision: str = "16bit"
    optimizer: str = "adamw_8bit"
    device: str = "cuda"


@dataclass(frozen=True)
class Product:
    """The layers that read one input, as one matrix product (inputs + rank) -> outputs."""

    inputs: int
    outputs: int
    rank: int

    @property
    def parameters(self) -> int:
        return self.inputs * self.outputs


@dataclass(frozen=True)
class FastShape:
    """One model on the fast path.

    Args:
        w: bytes of a number in the compute type.
        base_precision: how the frozen weights are held.
        fp8: they are multiplied in FP8.
        qkv, out, gate_up, down: of one layer.
        windows: keys a query sees at most in each layer; None is all before it.
        attention: what computes it: torch's and cuDNN's kernels, our own (scores with a softcap), or the
            plain reference.
        post_norms: the halves' results are normalised (Gemma 2, 3).
        scaled: they are multiplied by a factor (Granite).
        dropout: of the adapter.
        rotary: width of the rotary tables; 0 without.
        head_trains: the output head gets a gradient.
        embedding_trains: so does the input embedding; tied to the head, both are one.
        head_expands: it is held in fewer bits, and expanded in blocks.
        trainable: parameters with a gradient.
        base: bytes of the frozen weights.
        factors: bytes of the adapter's factors in the compute type, stacked and scaled as products want them.
        moments: bytes of the optimizer's states.
        positions: the longest sequence the model was made for.
    """

    layers: int
    width: int
    heads: int
    q: int
    k: int
    mlp: int
    vocabulary: int
    w: int
    base_precision: str
    fp8: bool
    qkv: Product
    out: Product
    gate_up: Product
    down: Product
    windows: tuple[int | None, ...]
    attention: AttentionKind
    qk_norm: bool
    post_norms: bool
    scaled: bool
    dropout: bool
    rotary: int
    head_trains: bool
    embedding_trains: bool
    head_expands: bool
    trainable: int
    base: int
    factors: int
    moments: int
    positions: int | None

    @property
    def products(self) -> tuple[Product, Product, Product, Product]:
        return self.qkv, self.out, self.gate_up, self.down

    @property
    def matrix(self) -> int:
        """Numbers in the decoder's matrices, the embedding among them."""
        return self.layers * sum(one.parameters for one in self.products) + self.vocabulary * self.width

    @property
    def expands(self) -> bool:
        """The base is written out in another type for each product."""
        return self.base_precision in ("nf4", "int8") or (self.base_precision == "fp8" and not self.fp8)

    @property
    def workspace(self) -> int:
        """Bytes of the buffers that quantised weights are expanded into, and FP8's are transposed into."""
        if self.fp8:
            return max(one.parameters for one in self.products) * (2 if self.expands else 1)
        if not self.expands:
            return 0
        layers = ([self.q, self.k, self.k], [self.width], [self.mlp, self.mlp], [self.width])
        return max(
            _largest_group(outputs, self.w * (one.inputs + one.rank))
            for outputs, one in zip(layers, self.products, strict=True)
        )

    @property
    def static(self) -> dict[str, int]:
        """Bytes that stand all the time, by the names of :class:`.memory.Memory`'s components."""
        return {
            "base": self.base + self.workspace,
            "adapter": 4 * self.trainable + self.factors,
            "gradients": 4 * self.trainable,
            "optimizer": self.moments,
        }


def _largest_group(outputs: Sequence[int], row_bytes: int) -> int:
    """Bytes of the layers that are expanded together, as :func:`whet.kernels.lora_base.groups` has them."""
    largest = together = 0
    for rows in outputs:
        together = together + rows if (together + rows) * row_bytes <= GROUP_BYTES else rows
        largest = max(largest, together)
    return largest * row_bytes


def fast_shape(facts: ModelFacts, adapter: AdapterSection, held: Precisions) -> FastShape | Unsupported:
    """The shape of a model whose every layer runs fused, or why it does not.

    Args:
        facts: of the model; config.json is read from ``facts.path``.
        adapter: what is trained.
        held: precisions and device.
    """
    settings = _settings(facts)
    if isinstance(settings, Unsupported):
        return settings
    reason = _refusal(facts, adapter, held, settings)
    if reason is not None:
        return Unsupported(reason)
    width, q, k = facts.hidden_size, facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
    w, mlp = BYTES[held.compute_dtype], facts.intermediate_size
    ranks = {name: _rank(facts, adapter, leaves) for name, leaves in STACKS.items()}
    products = {
        "qkv": Product(width, q + 2 * k, ranks["qkv"]),
        "out": Product(q, width, ranks["out"]),
        "gate_up": Product(width, 2 * mlp, ranks["gate_up"]),
        "down": Product(mlp, width, ranks["down"]),
    }
    factors = sum(one.rank * (one.inputs + one.outputs) for one in products.values()) * facts.layers
    trainable = trainable_parameters(facts, adapter)
    layout = family_of(facts.model_type).fast
    return FastShape(
        layers=facts.layers,
        width=width,
        heads=facts.heads,
        q=q,
        k=k,
        mlp=mlp,
        vocabulary=facts.embedding_rows,
        w=w,
        base_precision=held.base_precision,
        fp8=held.products == "fp8" or (held.products == "auto" and held.base_precision == "fp8"),
        **products,
        windows=settings.windows,
        attention=_attention(held.device, settings),
        qk_norm=family_of(facts.model_type).qk_norm,
        post_norms=not isinstance(layout, Unsupported) and layout.post_norms is not None,
        scaled=settings.residual_multiplier != 1.0,
        dropout=adapter.dropout > 0,
        rotary=settings.rotary_dim,
        head_trains=head_trains(facts, adapter),
        embedding_trains=embedding_trains(facts, adapter),
        head_expands=(held.embedding_precision if facts.tied else held.head_precision) != "16bit",
        trainable=trainable,
        base=base_bytes(facts, held.base_precision, held.embedding_precision, held.head_precision),
        factors=w * factors,
        moments=moment_bytes(facts, adapter, held.optimizer),
        positions=facts.max_positions,
    )


def _settings(facts: ModelFacts) -> FastSettings | Unsupported:
    path = facts.path / "config.json"
    return _read_settings(path, facts.model_type, path.stat().st_mtime_ns)


@lru_cache(maxsize=32)
def _read_settings(path: Path, model_type: str, changed: int) -> FastSettings | Unsupported:
    family = family_of(model_type)
    if isinstance(family.fast, Unsupported):
        return family.fast
    config = {**family.defaults, **text_config(json.loads(path.read_text(encoding="utf-8")))}
    try:
        return fast_settings(family.fast, config)
    # A foreign file: what it says instead of a number or a name shows itself where that is used.
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        said = f"{type(error).__name__}: {error}"[:200]
        return Unsupported(f"config.json says what no {model_type} does ({said})")


def _refusal(
    facts: ModelFacts, adapter: AdapterSection, held: Precisions, settings: FastSettings
) -> str | None:
    """What leaves layers, or the whole model, to transformers; :mod:`.fast_path` finds the same."""
    if adapter.kind in ("none", "dora"):
        return "all weights train" if adapter.kind == "none" else "DoRA adapters run on PEFT's own layers"
    if adapter.bias != "none":
        return "biases train"
    whole = [name for name in adapter_parts(adapter)[1] if name not in WHOLE]
    if whole:
        return f"{', '.join(whole)} train whole"
    if any(settings.sparse):
        return "experts run on transformers' own module"
    if held.base_precision in BYTES and held.base_precision != held.compute_dtype:
        return f"weights are held in {held.base_precision} and computed in {held.compute_dtype}"
    return None


def _rank(facts: ModelFacts, adapter: AdapterSection, leaves: Sequence[str]) -> int:
    """Ranks of the adapted layers among ``leaves``, stacked and padded."""
    names = {module.pattern.rsplit(".", 1)[-1] for module in adapted_layers(facts, adapter)}
    return -(-adapter.rank * len(names & set(leaves)) // RANK_STEP) * RANK_STEP


def _attention(device: str, settings: FastSettings) -> AttentionKind:
    if device == "cpu":
        return "reference"
    return "library" if settings.attention_softcap is None else "triton"
