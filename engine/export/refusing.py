"""What can be known of an export before its first byte is written."""

from __future__ import annotations

from pathlib import Path

from ..disk import export_bytes
from ..errors import WhetError
from ..models.facts import read_model_facts
from ..recipe import ExportSection
from .files import require_space
from .gguf.types import check_types
from .importance_rows import check_importance
from .other_models import no_gguf_of, no_gguf_of_seeing, other_class, sees
from .task_heads import head_task, no_gguf


def is_adapter(trained_dir: Path) -> bool:
    """Whether trained weights are an adapter, and not a whole model."""
    return (trained_dir / "adapter_config.json").is_file()


def refuse_early(
    section: ExportSection, trained_dir: Path, base_dir: Path | None, out_dir: Path, *, own_rows: bool
) -> None:
    """Refuse what these weights cannot become, and what the disk cannot hold.

    Args:
        section: what is asked for.
        trained_dir: an adapter, or a whole model.
        base_dir: the adapter's base.
        out_dir: where the files will lie.
        own_rows: there are rows for an importance matrix that is asked for without naming any.

    Raises:
        WhetError: ``gguf.needs_importance_matrix``, ``gguf.not_importance``, ``data.*``,
            ``gguf.unsupported``, ``export.no_base``, ``export.adapter_gguf``, ``export.disk_full``.
    """
    kinds = check_types(section.gguf)
    check_importance(kinds, section.imatrix, own_rows)
    if kinds or section.adapter_gguf or section.merged_4bit or section.fp8:
        _refuse_beyond_merging(trained_dir)
    merges = is_adapter(trained_dir)
    if merges and base_dir is None:
        raise WhetError(
            "export.no_base",
            f"{trained_dir} is an adapter, and its base model was not named.",
            "Name the 16-bit model it was trained on.",
        )
    if section.adapter_gguf and not merges:
        raise WhetError(
            "export.adapter_gguf",
            f"{trained_dir} is a whole model: there is no adapter to write.",
            "Export a GGUF of the model: `whet export RUN --gguf q8_0`.",
        )
    whole = read_model_facts(base_dir if merges and base_dir else trained_dir)
    require_space(out_dir, sum(export_bytes(section, whole, merges=merges).values()))


def _refuse_beyond_merging(trained_dir: Path) -> None:
    """Heads, other classes and models that see become a merged model, and nothing further."""
    if head_task(trained_dir) is not None:
        raise no_gguf()
    if (name := other_class(trained_dir)) is not None:
        raise no_gguf_of(name)
    if sees(trained_dir):
        raise no_gguf_of_seeing()
