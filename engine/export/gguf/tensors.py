"""Which tensors a GGUF will hold and what each is made of, before any weight is read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Literal

from ...errors import WhetError
from .checkpoint import Checkpoint
from .descriptor import Architecture, Spelling, Tensor, Transform
from .model_config import ModelConfig
from .rope import rope_tensors

DType = Literal["f32", "f16", "bf16"]

HEAD = Tensor("output.weight", (Spelling("lm_head.weight"),))


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the file.

    Args:
        sources: names in the checkpoint; none where the numbers are known already.
        stacked: the sources are laid on one another along a new first dimension.
        transform: applied to each source.
        values: of a tensor that is computed from the config.
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType
    sources: tuple[str, ...] = ()
    stacked: bool = False
    transform: Transform | None = None
    values: tuple[float, ...] | None = None

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * (4 if self.dtype == "f32" else 2)


@dataclass(frozen=True)
class Place:
    """Where a tensor of the checkpoint ends up: for adapters and importance matrices, which know modules."""

    name: str
    transform: Transform | None
    stacked: bool


def places(architecture: Architecture, config: ModelConfig) -> dict[str, Place]:
    """Checkpoint name, in the descriptor's spelling -> its place in the GGUF, for every spelling.

    E.g. ``model.layers.0.self_attn.q_proj.weight`` -> ``blk.0.attn_q.weight``.
    """
    found = {}
    for tensor, number in _rows(architecture, config):
        for spelling in tensor.spellings:
            place = Place(_numbered(tensor.name, number), spelling.transform, _stacked(spelling))
            found.update(dict.fromkeys(_sources(spelling, number, config), place))
    return found


def plan_tensors(
    architecture: Architecture, config: ModelConfig, checkpoint: Checkpoint, dtype: DType
) -> list[PlannedTensor]:
    """Every tensor of the file in its order: the computed ones, then the checkpoint's, shard by shard.

    Raises:
        WhetError: ``gguf.missing_tensor`` or ``gguf.unknown_tensor``, naming it.
    """
    stored = {architecture.canonical(name): name for name in checkpoint.shapes}
    missing: list[str] = []
    planned = []
    for tensor, number in _rows(architecture, config):
        if tensor is HEAD and _shares_embedding(config, stored):
            continue
        spelling = _spelling(tensor, number, config, stored)
        sources = _sources(spelling, number, config)
        absent = [name for name in sources if name not in stored]
        if not absent:
            names = tuple(stored[name] for name in sources)
            shape = _shape(spelling, [checkpoint.shapes[name] for name in names], config)
            kind = dtype if len(shape) > 1 and not tensor.exact else "f32"
            name = _numbered(tensor.name, number)
            planned.append(PlannedTensor(name, shape, kind, names, _stacked(spelling), spelling.transform))
        elif tensor.required:
            missing += absent
    _refuse_missing(missing, checkpoint)
    _refuse_unknown(architecture, stored, planned, checkpoint)
    order = {name: position for position, name in enumerate(checkpoint.shapes)}
    planned.sort(key=lambda one: order[one.sources[0]])
    return _computed(architecture, config) + planned


def _rows(architecture: Architecture, config: ModelConfig) -> Iterator[tuple[Tensor, int]]:
    """Every tensor with its layer's number; 0 where it has none."""
    for tensor in (*architecture.tensors, *([HEAD] if architecture.head == "own" else [])):
        for number in range(config.layers) if "{layer}" in tensor.name else (0,):
            yield tensor, number


def _numbered(name: str, number: int) -> str:
    return name.replace("{layer}", str(number))


def _stacked(spelling: Spelling) -> bool:
    return "{expert}" in spelling.source


def _sources(spelling: Spelling, number: int, config: ModelConfig) -> list[str]:
    name = _numbered(spelling.source, number)
    if not _stacked(spelling):
        return [name]
    return [name.replace("{expert}", str(expert)) for expert in range(config.experts)]


def _spelling(tensor: Tensor, number: int, config: ModelConfig, stored: Mapping[str, str]) -> Spelling:
    """The spelling that the checkpoint has, or the first: it will be reported as missing."""
    for spelling in tensor.spellings:
        if any(name in stored for name in _sources(spelling, number, config)):
            return spelling
    return tensor.spellings[0]


def _shares_embedding(config: ModelConfig, stored: Mapping[str, str]) -> bool:
    present = HEAD.spellings[0].source in stored
    return not present if config.tied is None else config.tied


def _shape(spelling: Spelling, shapes: list[tuple[int, ...]], config: ModelConfig) -> tuple[int, ...]:
    import torch

    shape = shapes[0]
    if spelling.transform is not None:
        shape = tuple(spelling.transform(torch.empty(shape, device="meta"), config).shape)
    return (len(shapes), *shape) if _stacked(spelling) else shape


def _computed(architecture: Architecture, config: ModelConfig) -> list[PlannedTensor]:
    computed = rope_tensors(config.rope, config.head_dim) if architecture.ropes else {}
    return [
        PlannedTensor(name, (len(values),), "f32", values=tuple(values)) for name, values in computed.items()
    ]


def _refuse_missing(missing: list[str], checkpoint: Checkpoint) -> None:
    if missing:
        raise WhetError(
            "gguf.missing_tensor",
            f"{checkpoint.folder} lacks {len(missing)} tensors that its config.json asks for: "
            f"{', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}.",
            "The folder is incomplete or belongs to another config.json.",
        )


def _refuse_unknown(
    architecture: Architecture,
    stored: Mapping[str, str],
    planned: list[PlannedTensor],
    checkpoint: Checkpoint,
) -> None:
    used = {name for tensor in planned for name in tensor.sources}
    for name, source in stored.items():
        # A head that shares the embedding may lie in the checkpoint all the same.
        shared = architecture.head != "none" and name == HEAD.spellings[0].source
        meant = source in used or shared
        if not meant and not any(fnmatch(source, pattern) for pattern in architecture.ignored):
            raise WhetError(
                "gguf.unknown_tensor",
                f"{source} {list(checkpoint.shapes[source])} has no place in a GGUF of architecture "
                f"{architecture.name!r}.",
                "The model differs from its family; llama.cpp would compute something else "
                "without this tensor.",
            )
