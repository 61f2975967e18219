"""Streamed safetensors files are what safetensors itself reads, in one file or several."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from whet.engine.export.targets.shards import TYPE_NAMES, ShardWriter


def write(folder: Path, tensors: dict[str, torch.Tensor], shard_bytes: int) -> int:
    folder.mkdir()
    writer = ShardWriter(folder, tensors, shard_bytes)
    for name, tensor in tensors.items():
        blocks = tensor.split(2) if tensor.ndim else [tensor]
        writer.stream(name, tensor.dtype, tuple(tensor.shape), blocks)
    return writer.finish()


def some(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    values = torch.randint(0, 100, shape)
    return values.to(dtype)


def test_every_type_and_odd_sizes_come_back_as_they_went(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = {f"t{number}": some(dtype, 5, 3) for number, dtype in enumerate(TYPE_NAMES)}
    tensors |= {"scalar": torch.tensor(3.5), "large": some(torch.float32, 64, 8), "wörd": some(torch.int8, 7)}
    total = write(tmp_path / "out", tensors, 1 << 20)
    again = load_file(tmp_path / "out" / "model.safetensors")
    assert set(again) == set(tensors) and total == sum(tensor.nbytes for tensor in tensors.values())
    for name, tensor in tensors.items():
        assert again[name].dtype is tensor.dtype and torch.equal(
            again[name].view(torch.uint8) if tensor.ndim else again[name],
            tensor.view(torch.uint8) if tensor.ndim else tensor,
        ), name
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_full_file_is_followed_by_the_next(tmp_path: Path) -> None:
    tensors = {f"layer.{number}": some(torch.float16, 10, 8) for number in range(7)}
    total = write(tmp_path / "out", tensors, 400)  # two of 160 bytes fit
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == total == 7 * 160
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files == [
        f"model-{number}-of-00004.safetensors" for number in ("00001", "00002", "00003", "00004")
    ]
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / "out" / file)[name], tensors[name])


def test_blocks_that_do_not_add_up_are_an_error(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, ["a"])
    with pytest.raises(ValueError, match="a: 32 bytes came"):
        writer.stream("a", torch.float32, (4, 4), [torch.zeros(2, 4)])
