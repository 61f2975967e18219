"""Parameter counts: from a family's layout and config.json, or from the headers of safetensors files."""

from __future__ import annotations

import json
import math
import re
import struct
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from .families import Family

LAYER_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


class LinearModule(BaseModel):
    """A linear layer that occurs ``count`` times, once a decoder layer as a rule."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pattern: str = Field(description="Module path with layer numbers as *: model.layers.*.self_attn.q_proj.")
    inputs: int
    outputs: int
    count: int
    bias: bool = False

    @property
    def parameters(self) -> int:
        """Of all occurrences, bias included."""
        return self.count * (self.inputs * self.outputs + (self.outputs if self.bias else 0))


class Parameters(BaseModel):
    """How many parameters, and where."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    total: int = Field(description="Distinct parameters; a tied head counts once.")
    embedding: int = Field(description="The input embedding.")
    head: int = Field(description="The output head, 0 when tied.")
    norms: int = Field(description="Norm weights and whatever else is neither linear nor embedding.")
    linear: list[LinearModule] = Field(description="Linear layers; the untied head is among them as lm_head.")
    exact: bool = Field(default=True, description="False: a guess, for an unknown family without weights.")

    @property
    def decoder_linear(self) -> int:
        """Parameters of the linear layers inside the decoder: what bitsandbytes quantises."""
        return sum(module.parameters for module in self.linear if module.pattern != "lm_head")

    def guessed(self) -> Parameters:
        return self.model_copy(update={"exact": False})


def from_config(
    family: Family,
    config: dict[str, Any],
    *,
    hidden_size: int,
    layers: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    intermediate_size: int,
    vocab_size: int,
    rows: int,
    tied: bool,
) -> Parameters:
    """Count a Llama-like decoder: q/k/v/o, a gated MLP, two norms a layer, a final norm, embedding and
    head."""
    q, kv = heads * head_dim, kv_heads * head_dim
    config_bias = family.attention_bias == "config" and bool(config.get("attention_bias", False))
    qkv_bias = config_bias or family.attention_bias == "qkv"
    mlp_bias = family.mlp_bias and bool(config.get("mlp_bias", False))

    def linear(name: str, inputs: int, outputs: int, bias: bool) -> LinearModule:
        return LinearModule(
            pattern=f"model.layers.*.{name}", inputs=inputs, outputs=outputs, count=layers, bias=bias
        )

    modules = [
        linear("self_attn.q_proj", hidden_size, q, qkv_bias),
        linear("self_attn.k_proj", hidden_size, kv, qkv_bias),
        linear("self_attn.v_proj", hidden_size, kv, qkv_bias),
        linear("self_attn.o_proj", q, hidden_size, config_bias),
        linear("mlp.gate_proj", hidden_size, intermediate_size, mlp_bias),
        linear("mlp.up_proj", hidden_size, intermediate_size, mlp_bias),
        linear("mlp.down_proj", intermediate_size, hidden_size, mlp_bias),
    ]
    embedding = rows * hidden_size
    head = 0 if tied else embedding
    if not tied:
        modules.append(LinearModule(pattern="lm_head", inputs=hidden_size, outputs=rows, count=1))
    norms = layers * (2 * hidden_size + (2 * head_dim if family.qk_norm else 0)) + hidden_size
    inside = sum(module.parameters for module in modules if module.pattern != "lm_head")
    return Parameters(
        total=embedding + head + norms + inside, embedding=embedding, head=head, norms=norms, linear=modules
    )


def from_headers(tensors: dict[str, tuple[int, ...]], tied: bool) -> Parameters:
    """Count what the weight files hold: 2-D ``.weight`` tensors are linear layers but for the embedding."""
    embedding = next((math.prod(shape) for name, shape in tensors.items() if is_embedding(name)), 0)
    shapes: Counter[tuple[str, int, int, bool]] = Counter()
    for name, shape in tensors.items():
        stem = name.removesuffix(".weight")
        if name.endswith(".weight") and len(shape) == 2 and not _is_table(name):
            bias = f"{stem}.bias" in tensors
            pattern = "lm_head" if stem.endswith("lm_head") else LAYER_NUMBER.sub("*", stem)
            shapes[(pattern, shape[1], shape[0], bias)] += 1
    linear = [
        LinearModule(pattern=pattern, inputs=inputs, outputs=outputs, count=count, bias=bias)
        for (pattern, inputs, outputs, bias), count in shapes.items()
        if not (tied and pattern == "lm_head")
    ]
    stored = sum(
        math.prod(shape) for name, shape in tensors.items() if not (tied and name.endswith("lm_head.weight"))
    )
    head = sum(module.parameters for module in linear if module.pattern == "lm_head")
    inside = sum(module.parameters for module in linear) - head
    return Parameters(
        total=stored, embedding=embedding, head=head, norms=stored - embedding - head - inside, linear=linear
    )


def is_embedding(name: str) -> bool:
    """Whether a tensor is the input embedding, under the names decoders give it."""
    return name.endswith(("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight"))


def _is_table(name: str) -> bool:
    return is_embedding(name) or name.endswith(("wpe.weight", "position_embeddings.weight"))


def embedding_rows(tensors: dict[str, tuple[int, ...]]) -> int | None:
    """Rows of the input embedding, None without weight files. Quantised checkpoints keep it whole."""
    return next((shape[0] for name, shape in tensors.items() if is_embedding(name) and len(shape) == 2), None)


def read_headers(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape over safetensors files; reads the JSON headers only.

    The layout is safetensors' documented one (eight bytes of little-endian length, then JSON); read here
    because the library maps each file and imports numpy, which a plan over a hundred shards would feel.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        shapes.update(
            {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
        )
    return shapes
