"""The targets of one export, made one after another. Light until one is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import WhetError
from ...recipe import ExportSection
from ..gguf.native import Progress
from ..verdict import Verdict
from .adapter_proof import prove_adapter
from .memory import block_bytes
from .reload_proof import Format, prove_reload
from .table import TARGETS, TargetName

SMALL_BASE = 1 << 30
"""Up to here an adapter is proven over its base in float32; over larger ones in float16."""


@dataclass(frozen=True)
class Made:
    """One target as it was written."""

    name: TargetName
    path: Path
    bytes: int
    prove: Callable[[], Verdict] | None
    """None where nothing can tell whether it is right."""
    detail: dict[str, Any] = field(default_factory=dict)


def make_few_bits(
    section: ExportSection,
    model_dir: Path,
    out_dir: Path,
    held_out: list[dict[str, Any]] | None,
    progress: Callable[[str], Progress],
) -> Iterator[Made]:
    """The 4- and 8-bit weights that ``section`` asks for, from a 16-bit folder.

    ``progress`` gives what a step called so reports to. Raises as :func:`.rewriting.rewrite`.
    """
    share = section.maximum_memory_usage
    if section.merged_4bit:
        from .four_bit import write_four_bit

        out = out_dir / TARGETS["merged_4bit"].folder
        report = write_four_bit(model_dir, out, progress("4-bit weights"), memory=block_bytes(share))
        yield _few_bits("merged_4bit", "nf4", model_dir, out, report.bytes, held_out, share)
    if section.fp8:
        from .fp8 import write_fp8

        out = out_dir / TARGETS["fp8"].folder
        report = write_fp8(model_dir, out, progress("FP8 weights"), memory=block_bytes(share))
        yield _few_bits("fp8", "fp8", model_dir, out, report.bytes, held_out, share)


def _few_bits(
    name: TargetName,
    kind: Format,
    model_dir: Path,
    out: Path,
    size: int,
    held_out: list[dict[str, Any]] | None,
    share: float,
) -> Made:
    def prove() -> Verdict:
        return prove_reload(model_dir, out, kind, held_out, share=share)

    return Made(name, out, size, prove, {"format": kind})


def make_adapter_gguf(
    section: ExportSection,
    adapter_dir: Path,
    base_dir: Path,
    out: Path,
    held_out: list[dict[str, Any]] | None,
    scratch: Path,
    progress: Callable[[str], Progress],
) -> Made:
    """The adapter as a GGUF at ``out``; its proof writes the base as a GGUF into ``scratch``.

    Raises as :func:`.adapter_gguf.write_adapter_gguf`.
    """
    from .adapter_gguf import write_adapter_gguf

    report = write_adapter_gguf(adapter_dir, base_dir, out, out.stem)

    def prove() -> Verdict:
        base_gguf = _base_gguf(base_dir, scratch, progress("the base, to prove the adapter"))
        share = section.maximum_memory_usage
        try:
            return prove_adapter(base_dir, base_gguf, adapter_dir, out, held_out, share=share)
        finally:
            base_gguf.unlink()

    config = json.loads((base_dir / "config.json").read_text(encoding="utf-8"))
    rounded = "quantization_config" in config  # no GGUF is made of rounded weights
    return Made("adapter_gguf", out, report.bytes, None if rounded else prove, {"alpha": report.alpha})


def _base_gguf(base_dir: Path, scratch: Path, progress: Progress) -> Path:
    from ..gguf.convert import convert

    out = scratch / "base.gguf"
    weights = sum(file.stat().st_size for file in base_dir.glob("*.safetensors"))
    if weights > SMALL_BASE:
        try:
            return convert(base_dir, out, "f16", progress)
        except WhetError as error:
            if error.code != "gguf.f16_overflow":
                raise
    return convert(base_dir, out, "f32", progress)
