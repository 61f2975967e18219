"""A model folder as one GGUF file of 16- or 32-bit weights, streamed tensor by tensor. [heavy: torch]"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...data.tokenizer_files import TokenizerFiles
from ...errors import WhetError
from ..files import atomic_file
from .architectures import find_architecture
from .checkpoint import Checkpoint
from .metadata import write_general
from .model_config import ModelConfig
from .native import Progress
from .tensors import DType, PlannedTensor, plan_tensors
from .trial import choose_pretokenizer
from .vocabulary import read_vocabulary

if TYPE_CHECKING:
    import torch
    from gguf import GGUFWriter

Array = np.ndarray[Any, Any]

METADATA_BYTES = 64 << 20
"""Room for keys, tokens and merges when the disk is checked; a vocabulary of 250,000 needs about 15 MB."""
BLOCK = 1 << 23
"""Numbers that are checked and converted at a time; the largest tensor of a model is 200 million."""


def convert(
    model_dir: Path, out: Path, dtype: DType, progress: Progress | None = None, name: str | None = None
) -> Path:
    """Write ``out`` from the config, tokenizer and safetensors in ``model_dir``; whole or not at all.

    Matrices become ``dtype``; vectors (norms, biases) stay float32, as llama.cpp expects. Memory beyond the
    mapped weights stays near the largest tensor, or twice that where it is transformed.

    Args:
        model_dir: a folder as ``save_pretrained`` writes it, with 16- or 32-bit weights.
        out: the file to write.
        dtype: type of the matrices.
        progress: called with (bytes done, bytes in all).
        name: the model's name in the file; by default the folder's.

    Raises:
        WhetError: ``gguf.unsupported`` (architecture or tokenizer), ``gguf.vocab_mismatch``,
            ``gguf.quantized_source``, ``gguf.missing_tensor``, ``gguf.unknown_tensor``, ``gguf.not_finite``,
            ``gguf.f16_overflow``, ``gguf.adapter_only``, ``gguf.no_weights``, ``gguf.broken_weights``,
            ``export.disk_full``, ``gguf.native_crash``, ``tokenizer.*``.
    """
    from gguf import GGUFWriter

    raw = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    architecture, config = find_architecture(raw, model_dir)
    checkpoint = Checkpoint(model_dir)
    plan = plan_tensors(architecture, config, checkpoint, dtype)
    files = TokenizerFiles.read(model_dir)
    rows = next(one.shape[0] for one in plan if one.name == "token_embd.weight")
    tokenizer = files.load()
    vocabulary = read_vocabulary(files, rows, tokenizer)
    if architecture.vocabulary is not None:
        vocabulary = architecture.vocabulary(vocabulary, config)
    pre = choose_pretokenizer(files, vocabulary, tokenizer)

    total = sum(tensor.bytes for tensor in plan)
    with atomic_file(out, total + METADATA_BYTES) as partial:
        writer = GGUFWriter(partial, architecture.name)
        try:
            write_general(writer, name or model_dir.resolve().name, dtype, vocabulary.name_mark)
            writer.add_vocab_size(rows)
            for write_keys in architecture.keys:
                write_keys(writer, config)
            vocabulary.write(writer, pre)
            _write_tensors(writer, config, checkpoint, plan, progress)
        finally:
            writer.close()
    return out


def _write_tensors(
    writer: GGUFWriter,
    config: ModelConfig,
    checkpoint: Checkpoint,
    plan: list[PlannedTensor],
    progress: Progress | None,
) -> None:
    from gguf import GGMLQuantizationType

    for tensor in plan:
        kind = GGMLQuantizationType[tensor.dtype.upper()]
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.bytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    tell = progress or (lambda done, total: None)
    done, total = 0, sum(tensor.bytes for tensor in plan)
    tell(done, total)
    for tensor, data in zip(plan, _values(config, checkpoint, plan), strict=True):
        writer.write_tensor_data(data)
        done += tensor.bytes
        tell(done, total)


def _values(config: ModelConfig, checkpoint: Checkpoint, plan: list[PlannedTensor]) -> Iterator[Array]:
    """The planned tensors' bytes, in order."""
    # One generator over all sources, so that consecutive tensors of a shard share one opening of it.
    stored = checkpoint.read([name for tensor in plan for name in tensor.sources])
    for tensor in plan:
        if tensor.values is not None:
            yield np.asarray(tensor.values, dtype=np.float32)
        else:
            yield encode((value for _, value in islice(stored, len(tensor.sources))), tensor, config)


def encode(parts: Iterable[torch.Tensor], tensor: PlannedTensor, config: ModelConfig) -> Array:
    """The values of the tensor's sources as contiguous numbers of the planned type (bf16 as its 16-bit
    patterns). Of stacked ones, one is held at a time.

    Raises:
        WhetError: ``gguf.not_finite`` or ``gguf.f16_overflow``, naming the tensor.
    """
    import torch

    kind = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[tensor.dtype]
    result = torch.empty(tensor.shape, dtype=kind)
    places = list(result) if tensor.stacked else [result]
    for place, name, value in zip(places, tensor.sources, parts, strict=True):
        _copy(value if tensor.transform is None else tensor.transform(value, config), place, name)
    array: Array = (result.view(torch.int16) if tensor.dtype == "bf16" else result).numpy()
    return array


def _copy(value: torch.Tensor, place: torch.Tensor, name: str) -> None:
    """Copy a block at a time, so that checking and casting take little memory."""
    import torch

    rows = max(1, BLOCK * len(value) // max(1, value.numel()))
    for stored, written in zip(value.split(rows), place.split(rows), strict=True):
        if not torch.isfinite(stored).all():
            raise WhetError(
                "gguf.not_finite",
                f"{name} contains NaN or infinite values.",
                "The training diverged or the file is damaged; export an earlier checkpoint.",
            )
        if not torch.isfinite(written.copy_(stored)).all():
            raise WhetError(
                "gguf.f16_overflow",
                f"{name} reaches {value.abs().max().item():.3g}, and float16 ends at 65504.",
                "Convert to bf16 or f32 instead.",
            )
