"""Rows of a data set on the Hugging Face hub. `datasets` is imported only when one is asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import WhetError
from ..recipe import DataSection
from ..settings import settings
from .rows import BadRow, RawRow

ROWS_AT_ONCE = 100


def read_hub(source: str, section: DataSection) -> Iterator[RawRow | BadRow]:
    """Rows of a hub data set; streamed, or downloaded once and memory-mapped.

    Raises:
        WhetError: ``data.hub`` with the hub's reason, ``data.elsewhere`` for one that is not the hub's own.
    """
    import datasets

    if section.streaming and settings().offline:
        raise WhetError(
            "data.hub",
            f"The hub data set {source!r} cannot be streamed offline.",
            "Set data.streaming=false to use the cached copy, or unset WHET_OFFLINE and HF_HUB_OFFLINE.",
        )
    local = datasets.DownloadConfig(local_files_only=settings().offline)
    try:
        builder = datasets.load_dataset_builder(
            source, name=section.subset, revision=section.revision, download_config=local
        )
        _refuse_files_elsewhere(source, builder)
        if section.streaming:
            rows = builder.as_streaming_dataset(section.split)
        else:
            builder.download_and_prepare(download_config=local)
            rows = builder.as_dataset(section.split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise WhetError(
            "data.hub",
            f"The hub data set {source!r} (subset {section.subset}, split {section.split!r}) cannot be read: "
            f"{error}",
            "Check the id, data.subset and data.split; a private or gated set needs HF_TOKEN.",
        ) from error
    for number, value in enumerate(undecoded(rows), 1):
        yield RawRow(source, number, value)


def _refuse_files_elsewhere(source: str, builder: Any) -> None:
    """Raise WhetError ``data.elsewhere`` for a data set whose card names files that are not the hub's.

    Its author could have this machine's files read, or addresses of its network fetched.
    """
    files = [file for files in (builder.config.data_files or {}).values() for file in files]
    elsewhere = [file for file in files if not str(file).startswith("hf://")]
    if elsewhere:
        raise WhetError(
            "data.elsewhere",
            f"The card of the hub data set {source!r} takes its rows from {elsewhere[0]}, not from the hub.",
            "If you want that file, name it yourself in data.train.",
        )


def undecoded(rows: Any) -> Iterator[dict[str, Any]]:
    """Rows as they are stored: pictures, sounds and films as a path or bytes, however deep they lie.

    `datasets` would open what a row names, on this machine or anywhere; whet decodes, and opens neither.

    Args:
        rows: a `Dataset` or an `IterableDataset`.
    """
    import datasets

    if rows.features is None:  # a stream of rows of which no column is known to be anything but what it is
        yield from map(dict, rows)
        return
    features = datasets.Features(_without_media(dict(rows.features)))
    for batch in rows.with_format("arrow").iter(ROWS_AT_ONCE):
        for row in batch.to_pylist():
            yield features.decode_example(row)


def _without_media(kind: Any) -> Any:
    """The same features, none of which opens files. JSON, which is stored as text, is still decoded."""
    import datasets

    if isinstance(kind, dict):
        return {name: _without_media(inside) for name, inside in kind.items()}
    if isinstance(kind, list):
        return [_without_media(inside) for inside in kind]
    if isinstance(kind, datasets.List | datasets.LargeList):
        return replace(kind, feature=_without_media(kind.feature))
    media = is_dataclass(kind) and any(one.name == "decode" for one in fields(kind))
    return replace(kind, decode=False) if media and not isinstance(kind, datasets.Json) else kind


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
