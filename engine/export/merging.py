"""Merge an adapter into its base model, tensor by tensor, into a folder that is whole or absent. Needs torch.

Sums are float32, the result is cast to 16 bits once. Memory holds one block of one tensor, whatever the
model's size. The base is the 16-bit checkpoint, also when training held it rounded (QLoRA): the rounding
error would otherwise stay in the weights for ever. Only a checkpoint that exists in rounded form alone is
dequantised, and the report says so.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch

from ..errors import WhetError
from ..models.own_files import module_folders
from ..models.sentence_folder import MODULES, is_embedding_model
from .adapter_weights import Adapter
from .base_weights import BaseWeights
from .files import new_folder, require_space
from .merge_report import MergeReport
from .targets.memory import BLOCK_BYTES, block_rows
from .targets.shards import SHARD_BYTES, ShardWriter
from .verdict import DIGEST_FILE

MergeDtype = Literal["auto", "bfloat16", "float16", "float32"]
REPORT = "whet_merge.json"
"""Written last into a merged folder; also the sign that the folder is ours to replace."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
MODULE_FILES = (MODULES, "config_sentence_transformers.json", "sentence_bert_config.json")
OTHER_FILES = (
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "normalizer.json",
    DIGEST_FILE,
    "LICENSE",
    "LICENSE.txt",
    "NOTICE",
)


def merge(
    base_dir: Path,
    adapter_dir: Path,
    out_dir: Path,
    dtype: MergeDtype = "auto",
    progress: Callable[[float, float], None] | None = None,
    *,
    trained_precision: str | None = None,
    memory: int = BLOCK_BYTES,
    shard_bytes: int = SHARD_BYTES,
) -> MergeReport:
    """Write base + adapter as a plain transformers model folder with tokenizer, template and generation
    settings.

    Args:
        base_dir: model folder with safetensors.
        adapter_dir: PEFT adapter (LoRA, rsLoRA, DoRA; trained biases; modules_to_save).
        out_dir: appears whole at the end. A folder there is replaced only if an earlier merge wrote it.
        dtype: of the result; auto is the base's own 16-bit type, bfloat16 for a float32 or rounded base; an
            embedding model in float32 stays so.
        progress: called with (tensors done, tensors in all).
        trained_precision: ``nf4``, ``int8`` or ``fp8`` when training held the base rounded: the report then
            measures how far the 16-bit weights are from the ones trained over.
        memory: most bytes for a block of a tensor with all that its merge needs, see
            :func:`.targets.memory.block_bytes`; a single row, a rounded or a DoRA-trained tensor may take
            more.
        shard_bytes: most bytes of one output file.

    Raises:
        WhetError: ``merge.*`` (missing or unknown files, shapes or names that do not fit), ``export.exists``,
            ``export.disk_full``.
    """
    base, adapter = BaseWeights(base_dir), Adapter(adapter_dir)
    target = target_dtype(base, dtype)
    check_place(out_dir)
    plan = _Plan(base, adapter, target, memory)
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    require_space(out_dir.parent, plan.bytes + (64 << 20))
    report = MergeReport(
        str(out_dir), str(target).removeprefix("torch."), len(adapter.targets), len(plan.names)
    )
    report.dequantised = base.rounding is not None
    report.notes += _notes(base, adapter, trained_precision)
    with new_folder(out_dir) as partial:
        writer = ShardWriter(partial, plan.names, shard_bytes)
        for done, name in enumerate(plan.names, 1):
            writer.stream(name, plan.dtype(name), plan.shape(name), plan.blocks(name))
            if progress is not None:
                progress(done, len(plan.names))
        report.bytes, report.untied = writer.finish(), plan.untied
        _write_config(partial, plan, target)
        copy_tokenizer(base_dir, adapter_dir, partial)
        (partial / REPORT).write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    return report


class _Plan:
    """Which tensors the result has and how each comes about, with tied embeddings untied where training split
    them."""

    def __init__(self, base: BaseWeights, adapter: Adapter, target: torch.dtype, memory: int) -> None:
        self.base, self.adapter, self.target, self.memory = base, adapter, target, memory
        self.names = base.names()
        adapter.match_prefix(set(self.names))
        adapter.match_experts({name: base.shape(name) for name in self.names})
        self.embedding = next((n for n in self.names if n.endswith("embed_tokens.weight")), None)
        self.head = "lm_head.weight"
        headless = is_embedding_model(base.dir) or is_embedding_model(adapter.dir)
        shared = bool(base.config.get("tie_word_embeddings")) and not headless
        tied = shared and self.head not in base.file_of
        unmatched = sorted(adapter.targets - set(self.names) - ({self.head} if tied else set()))
        if unmatched:
            raise WhetError(
                "merge.unmatched",
                f"{len(unmatched)} trained tensors do not fit {base.dir}: {', '.join(unmatched[:3])} ...",
                f"Its names are like {self.names[0]}. The adapter belongs to another base model; name that.",
            )
        self.untied = tied and self._head_differs()
        if self.untied:
            self.names = [*self.names, self.head]

    def _head_differs(self) -> bool:
        """Whether the trained head is another matrix than the trained embedding (as PEFT computes with
        them)."""
        assert self.embedding is not None
        if not {self.embedding, self.head} & self.adapter.targets or self.adapter.config.get(
            "ensure_weight_tying"
        ):
            return False
        if self.shape(self.head) != self.shape(self.embedding):
            return True
        pairs = zip(self.blocks(self.head), self.blocks(self.embedding), strict=True)
        return not all(torch.equal(head, embedding) for head, embedding in pairs)

    def shape(self, name: str) -> tuple[int, ...]:
        if name in self.adapter.replaced:
            return self.adapter.replaced_shape(name)
        return self.base.shape(self._source(name))

    def dtype(self, name: str) -> torch.dtype:
        """Numbers that are not floating point (indices, masks) stay what they are."""
        if name in self.adapter.targets:
            return self.target
        own = self.base.dtype_of(self._source(name))
        return self.target if own.is_floating_point else own

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        """The tensor in its final type, in blocks of rows that fit into memory."""
        shape, dtype = self.shape(name), self.dtype(name)
        rows = shape[0] if shape else 1
        whole = not shape or self.base.is_rounded(self._source(name)) or not self.adapter.in_blocks(name)
        step = rows if whole else min(rows, block_rows(shape, self.memory))
        for start in range(0, rows, max(1, step)):
            yield self.adapter.apply(name, self._before(name, start, start + step), start).to(dtype)

    def _before(self, name: str, start: int, stop: int) -> torch.Tensor:
        if name in self.adapter.replaced:
            return self.adapter.replaced_rows(name, start, stop)
        return self.base.rows(self._source(name), start, stop)

    def _source(self, name: str) -> str:
        """The base's tensor it comes from: a tied head's is the embedding."""
        source = self.embedding if name == self.head and self.head not in self.base.file_of else name
        assert source is not None
        return source

    @property
    def bytes(self) -> int:
        """Of all tensors of the result."""
        return sum(math.prod(self.shape(name)) * self.dtype(name).itemsize for name in self.names)


def target_dtype(base: BaseWeights, dtype: MergeDtype) -> torch.dtype:
    """Of the result; auto is the base's own 16-bit type, else bfloat16."""
    if dtype != "auto":
        chosen: torch.dtype = getattr(torch, dtype)
        return chosen
    own = base.dtype()
    # Small, and what reads vectors has use for the digits that bfloat16 drops.
    exact = own in (torch.bfloat16, torch.float16) or is_embedding_model(base.dir)
    return own if base.rounding is None and exact else torch.bfloat16


def check_place(out_dir: Path) -> None:
    """Raise WhetError ``export.exists`` unless the folder is new, empty, or of an earlier export."""
    if not out_dir.exists() or (out_dir / REPORT).is_file():
        return
    if not out_dir.is_dir() or any(out_dir.iterdir()):
        raise WhetError(
            "export.exists",
            f"{out_dir} exists and was not written by a merge, so it is not replaced.",
            "Choose another folder, or remove that one yourself.",
        )


def _notes(base: BaseWeights, adapter: Adapter, trained_precision: str | None) -> list[str]:
    notes = []
    if base.rounding is not None:
        notes.append(
            f"The base checkpoint holds {base.rounding} weights only: they were dequantised, so their "
            "rounding error stays in the merged weights. Merge onto the 16-bit original where you have it."
        )
    elif trained_precision in ("nf4", "int8", "fp8") and adapter.factors:
        name = sorted(adapter.factors)[0]
        difference = _rounding_difference(base.tensor(name).float(), trained_precision)
        notes.append(
            f"Training held the base in {trained_precision}; merged onto the 16-bit weights instead. "
            f"The rounding that this leaves out is {difference:.1%} of {name} (relative Frobenius norm)."
        )
    return notes


def _rounding_difference(weight: torch.Tensor, precision: str) -> float:
    """|W - round(W)| / |W| for one matrix, rounded as it was for training."""
    if precision == "nf4":
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        packed, state = quantize_4bit(weight, quant_type="nf4")
        rounded = dequantize_4bit(packed, quant_state=state)
    elif precision == "fp8":
        from whet.kernels.fp8 import dequantize_rows, quantize_rows

        rounded = dequantize_rows(*quantize_rows(weight), dtype=weight.dtype)
    else:
        scale = weight.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 127
        rounded = torch.round(weight / scale) * scale
    return float(torch.linalg.norm(weight - rounded) / torch.linalg.norm(weight))


def _write_config(out_dir: Path, plan: _Plan, target: torch.dtype) -> None:
    config: dict[str, Any] = dict(plan.base.config)
    for key in ("quantization_config", "torch_dtype", "_name_or_path"):
        config.pop(key, None)
    config["dtype"] = str(target).removeprefix("torch.")
    if plan.untied:
        config["tie_word_embeddings"] = False
    if plan.embedding in plan.adapter.replaced and "vocab_size" in config:
        config["vocab_size"] = plan.shape(plan.embedding)[0]
    (out_dir / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def copy_tokenizer(base_dir: Path, trained_dir: Path, out_dir: Path) -> None:
    """Tokenizer and template as trained (the adapter's folder, else the base's), the generation settings, and
    what makes vectors of an embedding model's hidden states.

    The tokenizer's files come from one of the two folders, never mixed, and so do the modules.
    """
    source = trained_dir if (trained_dir / "tokenizer_config.json").is_file() else base_dir
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, out_dir / name)
    for name in OTHER_FILES:
        for folder in (trained_dir, base_dir):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, out_dir / name)
                break
    modules = next((folder for folder in (trained_dir, base_dir) if (folder / MODULES).is_file()), None)
    if modules is not None:
        _copy_modules(modules, out_dir)


def _copy_modules(source: Path, out_dir: Path) -> None:
    """Pooling, dense layers, normalisation and prompts, as sentence-transformers saves them."""
    for name in MODULE_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, out_dir / name)
    for name in module_folders(source):
        if (source / name).is_dir():  # some have no settings, and no folder
            shutil.copytree(source / name, out_dir / name, dirs_exist_ok=True)  # one may lie in another
