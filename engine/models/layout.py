"""Parameter counts from the headers of safetensors files, and the shape all counts have.

A known family's counts come from its layout instead: :mod:`.decoder_layout` and :mod:`.encoder_layout`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from .own_files import read_header

EMBEDDINGS = tuple(
    f"{name}.weight"
    for name in ("embed_tokens", "embed_text_tokens", "wte", "word_embeddings", "tok_embeddings", "embed_in")
)
DEPTH = "depth_decoder."
"""Of CSM: what writes a frame's further codes, and embeds them."""
TABLES = ("wpe.weight", "position_embeddings.weight", "embed_positions.weight", "embed_audio_tokens.weight")
LAYER_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


class LinearModule(BaseModel):
    """A linear layer that occurs ``count`` times, once a decoder layer as a rule."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pattern: str = Field(description="Module path with layer numbers as *: model.layers.*.self_attn.q_proj.")
    inputs: int
    outputs: int
    count: int
    bias: bool = False
    aliases: tuple[str, ...] = Field(
        default=(),
        description="Of a bare parameter (a layer's stacked experts, a router): the names that adapters call "
        "it by, several where several matrices are fused in it. Empty for linear modules.",
    )

    @property
    def bare(self) -> bool:
        """A parameter of its own class of module: bitsandbytes does not quantise it."""
        return bool(self.aliases)

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
    linear: list[LinearModule] = Field(
        description="Linear layers, experts included; the untied head is among them as lm_head."
    )
    exact: bool = Field(default=True, description="False: a guess, for an unknown family without weights.")

    @property
    def decoder_linear(self) -> int:
        """Parameters of the linear modules inside the decoder: what bitsandbytes quantises."""
        return sum(
            module.parameters for module in self.linear if module.pattern != "lm_head" and not module.bare
        )

    def guessed(self) -> Parameters:
        return self.model_copy(update={"exact": False})


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
    return name.endswith(EMBEDDINGS) and not name.startswith(DEPTH)


def _is_table(name: str) -> bool:
    return name.endswith((*EMBEDDINGS, *TABLES))


def embedding_rows(tensors: dict[str, tuple[int, ...]]) -> int | None:
    """Rows of the input embedding, None without weight files. Quantised checkpoints keep it whole."""
    return next((shape[0] for name, shape in tensors.items() if is_embedding(name) and len(shape) == 2), None)


def read_headers(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape over safetensors files; reads the JSON headers only.

    Not by safetensors' own library, which maps each file and imports numpy: a plan over a hundred shards
    would feel that. Raises WhetError as :func:`.own_files.read_header`.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        header, _ = read_header(path)
        shapes.update(
            {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
        )
    return shapes
