"""A Modelfile for GGUF files that are there already. Light."""

from __future__ import annotations

from pathlib import Path

from ..errors import WhetError
from .modelfile_check import ModelfileFacts, write_checked_modelfile
from .verdict import load_verdict


def regenerate_modelfile(trained: Path, folder: Path, base: Path | None = None) -> ModelfileFacts:
    """Write ``folder/Modelfile`` for the smallest GGUF there that is not disproven.

    Args:
        trained: folder with the tokenizer as trained: an adapter's or a model's.
        folder: of the GGUF files.
        base: where sampling settings come from when ``trained`` has none.

    Raises:
        WhetError: ``export.no_gguf`` when there is no file to write it for.
    """
    usable = [path for path in folder.glob("*.gguf") if not _disproven(path)]
    if not usable:
        raise WhetError(
            "export.no_gguf",
            f"{folder} holds no GGUF file that a Modelfile could name (files that failed do not count).",
            "Export one: `whet export RUN --gguf q8_0`.",
        )
    smallest = min(usable, key=lambda path: path.stat().st_size)
    return write_checked_modelfile(folder, smallest.name, trained, base)


def _disproven(path: Path) -> bool:
    verdict = load_verdict(path)
    return verdict is not None and verdict.status == "fail"
