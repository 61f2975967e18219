"""Safetensors files written as a stream: only the block that is being written is held. Needs torch.

A file begins with a header that says where each tensor lies, and tensors may have no gaps between them. The
header's place is reserved with the bytes it can need at most and filled at the end (the format allows
trailing spaces). A tensor whose bytes do not fill words of eight would leave the next one misaligned: such
tensors, all small, are kept and come last.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import torch

SHARD_BYTES = 2 << 30
WORD = 8
ENTRY_BYTES = 200
"""A header's entry without the name: type, up to six dimensions, two offsets."""
TYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}

DTYPES = {name: dtype for dtype, name in TYPE_NAMES.items()}


class ShardWriter:
    """Writes ``model.safetensors``, or numbered files of at most ``shard_bytes`` and their index.

    Args:
        folder: exists, and holds no weights.
        names: of all tensors that will be added; sizes the headers.
        shard_bytes: most bytes of tensors in one file; a larger tensor has a file of its own.
    """

    def __init__(self, folder: Path, names: Iterable[str], shard_bytes: int = SHARD_BYTES) -> None:
        self.folder, self.limit = folder, shard_bytes
        room = 64 + sum(len(json.dumps(name)) + ENTRY_BYTES for name in names)
        self._room = -(-room // WORD) * WORD
        self._shards: list[list[str]] = []
        self._file: IO[bytes] | None = None
        self._header: dict[str, Any] = {}
        self._late: list[tuple[str, torch.dtype, tuple[int, ...], list[torch.Tensor]]] = []
        self._size = 0
        """Bytes of the open file's tensors, those that come last included."""
        self._end = 0
        self.total = 0

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """One tensor, as it is."""
        self.stream(name, tensor.dtype, tuple(tensor.shape), [tensor])

    def stream(
        self, name: str, dtype: torch.dtype, shape: tuple[int, ...], blocks: Iterable[torch.Tensor]
    ) -> None:
        """A tensor of this type and shape from blocks that follow one another along its first dimension."""
        size = math.prod(shape) * dtype.itemsize
        if self._file is not None and self._size + size > self.limit:
            self._close()
        if self._file is None:
            self._open()
        self._size += size
        if size % WORD:
            self._late.append((name, dtype, shape, list(blocks)))
        else:
            self._write(name, dtype, shape, blocks)

    def finish(self) -> int:
        """Give the files their final names and write the index; returns the bytes of all tensors."""
        self._close()
        count = len(self._shards)
        if count == 1:
            os.replace(self.folder / "shard-0", self.folder / "model.safetensors")
            return self.total
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._shards):
            file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
            os.replace(self.folder / f"shard-{number}", self.folder / file)
            weight_map.update(dict.fromkeys(names, file))
        index = {"metadata": {"total_size": self.total}, "weight_map": weight_map}
        text = json.dumps(index, indent=2) + "\n"
        (self.folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
        return self.total

    def _open(self) -> None:
        self._file = open(self.folder / f"shard-{len(self._shards)}", "wb")  # noqa: SIM115  (closed by _close)
        self._file.seek(WORD + self._room)
        self._header, self._size, self._end = {"__metadata__": {"format": "pt"}}, 0, 0

    def _write(
        self, name: str, dtype: torch.dtype, shape: tuple[int, ...], blocks: Iterable[torch.Tensor]
    ) -> None:
        assert self._file is not None
        start = self._end
        for block in blocks:
            bytes_N = block.contiguous().reshape(-1).view(torch.uint8).numpy()
            self._file.write(bytes_N.data)
            self._end += bytes_N.nbytes
        if self._end - start != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name}: {self._end - start} bytes came for {dtype} {list(shape)}")
        offsets = [start, self._end]
        self._header[name] = {"dtype": TYPE_NAMES[dtype], "shape": list(shape), "data_offsets": offsets}

    def _close(self) -> None:
        if self._file is None:
            return
        for name, dtype, shape, blocks in sorted(self._late, key=lambda late: -late[1].itemsize):
            self._write(name, dtype, shape, blocks)
        self._late = []
        header = json.dumps(self._header, separators=(",", ":")).encode()
        if len(header) > self._room:
            raise ValueError(f"a header of {len(header)} bytes does not fit into {self._room}")
        with self._file as file:
            file.seek(0)
            file.write(struct.pack("<Q", self._room) + header.ljust(self._room))
        self._file = None
        self._shards.append([name for name in self._header if name != "__metadata__"])
        self.total += self._end
