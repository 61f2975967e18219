"""A folder of safetensors as one flat set of tensors, read one at a time. [heavy: torch]"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import WhetError
from ...models.own_files import shards

if TYPE_CHECKING:
    import torch

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
COUNTERS = (".inv_freq", ".position_ids")
"""Ends of names that old checkpoints hold beside the weights."""


class Checkpoint:
    """Names, shapes and values of the tensors in a model folder; one shard is open at a time.

    Raises:
        WhetError: ``gguf.adapter_only``, ``gguf.no_weights``, ``gguf.quantized_source``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.files: dict[str, Path] = {}
        self.prefixes: dict[Path, str] = {}
        for path in _weight_files(folder):
            self._index(path)
        # The layers behind an embedding model's pooling lie in folders of their own.
        for path in sorted(folder.glob("*_Dense/model.safetensors")):
            self._index(path, f"{path.parent.name}.")

    def _index(self, path: Path, prefix: str = "") -> None:
        """``prefix`` tells the tensors of one file apart from those of another."""
        self.prefixes[path] = prefix
        with _open(path) as shard:
            for stored in shard.keys():  # noqa: SIM118  (a safetensors handle is no mapping)
                part, name = shard.get_slice(stored), prefix + stored
                kind = part.get_dtype()
                if kind not in FLOATS and not name.endswith(COUNTERS):
                    raise WhetError(
                        "gguf.quantized_source",
                        f"{name} in {path} is stored as {kind}: the weights are quantised already.",
                        "Merge onto the 16-bit base first (`export.merged: true`), then convert that.",
                    )
                self.shapes[name] = tuple(part.get_shape())
                self.files[name] = path

    def read(self, names: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors in the given order. Consecutive names of one shard share one opening of the file."""
        position = 0
        while position < len(names):
            path = self.files[names[position]]
            with _open(path) as shard:
                while position < len(names) and self.files[names[position]] == path:
                    stored = names[position].removeprefix(self.prefixes[path])
                    yield names[position], shard.get_tensor(stored)
                    position += 1


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        shard = safe_open(path, framework="pt")
    except SafetensorError as error:
        raise WhetError(
            "gguf.broken_weights",
            f"{path} is not a whole safetensors file: {error}.",
            "Write or download it again.",
        ) from error
    with shard as opened:
        yield opened


def _weight_files(folder: Path) -> list[Path]:
    index = shards(folder)
    if index is not None:
        files = [folder / name for name in dict.fromkeys(index.values())]
    else:
        files = [folder / "model.safetensors"]
    missing = [path.name for path in files if not path.is_file()]
    if not missing:
        return files
    if (folder / "adapter_config.json").is_file():
        raise WhetError(
            "gguf.adapter_only",
            f"{folder} holds an adapter, and a GGUF is written from whole weights.",
            "Merge it onto its base first; `whet export` does both.",
        )
    raise WhetError(
        "gguf.no_weights",
        f"{folder} lacks {', '.join(missing)}.",
        "A model folder with safetensors is needed; pickled weights are never read.",
    )
