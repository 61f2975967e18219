"""Rows of a data set on the Hugging Face hub. `datasets` is imported only when one is asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import WhetError
from ..recipe import DataSection
from ..settings import settings
from .rows import BadRow, RawRow


def read_hub(source: str, section: DataSection) -> Iterator[RawRow | BadRow]:
    """Rows of a hub data set; streamed, or downloaded once and memory-mapped.

    Raises:
        WhetError: ``data.hub`` with the hub's reason.
    """
    import datasets

    if section.streaming and settings().offline:
        raise WhetError(
            "data.hub",
            f"The hub data set {source!r} cannot be streamed offline.",
            "Set data.streaming=false to use the cached copy, or unset WHET_OFFLINE and HF_HUB_OFFLINE.",
        )
    try:
        rows = datasets.load_dataset(
            source,
            name=section.subset,
            split=section.split,
            revision=section.revision,
            streaming=section.streaming,
            download_config=datasets.DownloadConfig(local_files_only=settings().offline),
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise WhetError(
            "data.hub",
            f"The hub data set {source!r} (subset {section.subset}, split {section.split!r}) cannot be read: "
            f"{error}",
            "Check the id, data.subset and data.split; a private or gated set needs HF_TOKEN.",
        ) from error
    for name, kind in (rows.features or {}).items():
        if isinstance(kind, datasets.Audio | datasets.Image):  # we decode, and say which row cannot be
            rows = rows.cast_column(name, type(kind)(decode=False))
    for number, value in enumerate(rows, 1):
        yield RawRow(source, number, dict(value))


def hub_commit(source: str, revision: str | None) -> str | None:
    """The commit a hub data set stands at: asked online, read from the local cache without a network.

    None when it is neither reachable nor cached.

    Raises:
        WhetError: ``data.not_found`` when the hub says that there is no such data set, or not for this user.
    """
    if not settings().offline:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError

        try:
            return huggingface_hub.HfApi().dataset_info(source, revision=revision).sha
        except (HfHubHTTPError, HFValidationError) as error:
            raise WhetError(
                "data.not_found",
                f"There is no file {source!r} here, and the hub gives no data set of that name: {error}",
                "Check the path or the id; a private or gated set needs HF_TOKEN.",
            ) from error
        except (HTTPError, OSError):
            pass  # no network: a cached copy will do
    reference = _hub_cache() / f"datasets--{source.replace('/', '--')}" / "refs" / (revision or "main")
    return reference.read_text().strip() if reference.is_file() else None


def _hub_cache() -> Path:
    """Where the hub's client keeps downloads, by its own environment variables."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface"))
    return Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()
