"""A model folder as one GGUF file of 16- or 32-bit weights, streamed tensor by tensor. [heavy: torch]"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ...data.tokenizer_files import TokenizerFiles
from ...errors import WhetError
from ..files import atomic_file
from .architectures import Architecture, Config, find_architecture
from .checkpoint import Checkpoint
from .metadata import write_general, write_hyperparameters
from .native import Progress
from .rope import llama3_factors, read_rope
from .trial import choose_pretokenizer
from .vocabulary import read_vocabulary

if TYPE_CHECKING:
    import torch
    from gguf import GGUFWriter

DType = Literal["f32", "f16", "bf16"]
Array = np.ndarray[Any, Any]

METADATA_BYTES = 64 << 20
"""Room for keys, tokens and merges when the disk is checked; a vocabulary of 250,000 needs about 15 MB."""
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


def convert(
    model_dir: Path, out: Path, dtype: DType, progress: Progress | None = None, name: str | None = None
) -> Path:
    """Write ``out`` from the config, tokenizer and safetensors in ``model_dir``; whole or not at all.

    Matrices become ``dtype``; vectors (norms, biases) stay float32, as llama.cpp expects. Memory stays at
    about two copies of the largest tensor.

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

    config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    architecture = find_architecture(config)
    checkpoint = Checkpoint(model_dir)
    plan = plan_tensors(architecture, config, checkpoint, dtype)
    files = TokenizerFiles.read(model_dir)
    rows = checkpoint.shapes[EMBEDDING][0]
    vocabulary = read_vocabulary(files, rows)
    pre = choose_pretokenizer(files, vocabulary)

    total = sum(tensor.bytes for tensor in plan)
    with atomic_file(out, total + METADATA_BYTES) as partial:
        writer = GGUFWriter(partial, architecture.name)
        try:
            write_general(writer, name or model_dir.resolve().name, dtype)
            write_hyperparameters(writer, architecture, config, rows)
            vocabulary.write(writer, pre)
            _write_tensors(writer, architecture, config, checkpoint, plan, progress)
        finally:
            writer.close()
    return out


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the file: where it comes from (None: computed), its name there, shape and type."""

    source: str | None
    name: str
    shape: tuple[int, ...]
    dtype: DType

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * (4 if self.dtype == "f32" else 2)


def plan_tensors(
    architecture: Architecture, config: Config, checkpoint: Checkpoint, dtype: DType
) -> list[PlannedTensor]:
    """Every tensor of the file in its order: the checkpoint's, shard by shard, then the computed ones.

    Raises:
        WhetError: ``gguf.missing_tensor`` or ``gguf.unknown_tensor``, naming it.
    """
    import gguf

    layers = int(config["num_hidden_layers"])
    _check_complete(architecture, config, checkpoint)
    arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture.name)
    names = gguf.get_tensor_name_map(arch, layers)
    plan = []
    if read_rope(config, architecture.default_rope_theta).kind == "llama3":
        half = architecture.head_dim(config) // 2
        plan.append(PlannedTensor(None, "rope_freqs.weight", (half,), "f32"))
    for source, shape in checkpoint.shapes.items():
        if source.endswith(".inv_freq") or (source == HEAD and config.get("tie_word_embeddings")):
            continue
        name = names.get_name(source, try_suffixes=(".weight", ".bias"))
        if name is None or (source.endswith(".bias") and not _bias_known(architecture, source)):
            raise WhetError(
                "gguf.unknown_tensor",
                f"{source} {list(shape)} has no place in a GGUF of architecture {architecture.name!r}.",
                "The model differs from its family; llama.cpp would compute something else "
                "without this tensor.",
            )
        plan.append(PlannedTensor(source, name, shape, dtype if len(shape) > 1 else "f32"))
    return plan


def _check_complete(architecture: Architecture, config: Config, checkpoint: Checkpoint) -> None:
    wanted = [EMBEDDING, "model.norm.weight"]
    if not config.get("tie_word_embeddings", HEAD not in checkpoint.shapes):
        wanted.append(HEAD)
    for layer in range(int(config["num_hidden_layers"])):
        wanted += [f"model.layers.{layer}.{module}.weight" for module in architecture.layer_modules]
    missing = [name for name in wanted if name not in checkpoint.shapes]
    if missing:
        raise WhetError(
            "gguf.missing_tensor",
            f"{checkpoint.folder} lacks {len(missing)} tensors that its config.json asks for: "
            f"{', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}.",
            "The folder is incomplete or belongs to another config.json.",
        )


def _bias_known(architecture: Architecture, source: str) -> bool:
    return any(source.endswith(f".{module}.bias") for module in architecture.biases)


def _write_tensors(
    writer: GGUFWriter,
    architecture: Architecture,
    config: Config,
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
    done, total = 0, sum(tensor.bytes for tensor in plan)
    for tensor, data in zip(plan, _values(architecture, config, checkpoint, plan), strict=True):
        writer.write_tensor_data(data)
        done += tensor.bytes
        if progress is not None:
            progress(done, total)


def _values(
    architecture: Architecture, config: Config, checkpoint: Checkpoint, plan: list[PlannedTensor]
) -> Iterator[Array]:
    """The planned tensors' bytes, in order."""
    computed = [tensor for tensor in plan if tensor.source is None]
    if computed:
        rope = read_rope(config, architecture.default_rope_theta)
        yield np.asarray(llama3_factors(rope, architecture.head_dim(config)), dtype=np.float32)
    sources = [tensor.source for tensor in plan if tensor.source is not None]
    for tensor, (source, value) in zip(plan[len(computed) :], checkpoint.read(sources), strict=True):
        if architecture.permute_qk and (heads := _rotary_heads(architecture, config, source)):
            value = interleave_pairs(value, heads)
        yield encode(value, tensor)


def _rotary_heads(architecture: Architecture, config: Config, source: str) -> int | None:
    """How many heads ``source`` projects onto when it is a q or k projection, otherwise None."""
    if ".self_attn.q_proj." in source:
        return int(config["num_attention_heads"])
    if ".self_attn.k_proj." in source:
        return architecture.kv_heads(config)
    return None


def interleave_pairs(value: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder the rows of each head from (x_0 .. x_half, y_0 .. y_half) to (x_0, y_0, x_1, y_1, ..).

    transformers rotates row i with row i + half, llama.cpp's rope for this architecture row 2i with row
    2i + 1.

    Args:
        value: [heads * head_dim, ...], a weight or a bias.
    """
    split = value.reshape(heads, 2, -1, *value.shape[1:])
    return split.transpose(1, 2).reshape(value.shape)


def encode(value: torch.Tensor, tensor: PlannedTensor) -> Array:
    """``value`` as contiguous numbers of the planned type (bf16 as its 16-bit patterns).

    Raises:
        WhetError: ``gguf.not_finite`` or ``gguf.f16_overflow``, naming the tensor.
    """
    import torch

    if not torch.isfinite(value).all():
        raise WhetError(
            "gguf.not_finite",
            f"{tensor.source} contains NaN or infinite values.",
            "The training diverged or the file is damaged; export an earlier checkpoint.",
        )
    if tensor.dtype == "bf16":
        patterns: Array = value.to(torch.bfloat16).contiguous().view(torch.int16).numpy()
        return patterns
    result = value.to(torch.float32 if tensor.dtype == "f32" else torch.float16)
    if not torch.isfinite(result).all():
        raise WhetError(
            "gguf.f16_overflow",
            f"{tensor.source} reaches {value.abs().max().item():.3g}, and float16 ends at 65504.",
            "Convert to bf16 or f32 instead.",
        )
    array: Array = result.contiguous().numpy()
    return array
