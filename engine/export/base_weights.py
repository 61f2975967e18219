"""The base model's tensors, read one at a time from safetensors, dequantised where they are held rounded.
Needs torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import WhetError
from ..models.own_files import shards
from ..models.stored_tensors import stored_tensors
from .targets.shards import DTYPES

# What bitsandbytes stores beside a rounded weight; used up by dequantising, never copied.
FOUR_BIT_PARTS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")
INT8_PARTS = (".SCB", ".weight_format")


class BaseWeights:
    """Tensors of ``model_dir`` by name, lazily.

    Raises:
        WhetError: ``merge.no_weights`` without safetensors, ``merge.quantized`` for a rounding that cannot be
        undone.
    """

    def __init__(self, model_dir: Path) -> None:
        self.dir = model_dir
        self.config: dict[str, Any] = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
        self.rounding = self._rounding()
        self.file_of = _tensor_files(model_dir)
        files = [model_dir / file for file in dict.fromkeys(self.file_of.values())]
        self._stored = stored_tensors(files)

    def _rounding(self) -> str | None:
        """``nf4``, ``fp4``, ``int8`` when the checkpoint itself holds rounded weights, else None."""
        quantization = self.config.get("quantization_config")
        if quantization is None:
            return None
        method = quantization.get("quant_method", "bitsandbytes")
        if method == "bitsandbytes" and quantization.get("load_in_4bit"):
            return str(quantization.get("bnb_4bit_quant_type", "fp4"))
        if method == "bitsandbytes" and quantization.get("load_in_8bit"):
            return "int8"
        raise WhetError(
            "merge.quantized",
            f"{self.dir} holds weights quantised by {method!r}, which cannot be undone here.",
            "Merge onto the 16-bit model that it was made from.",
        )

    @property
    def bytes(self) -> int:
        return sum((self.dir / file).stat().st_size for file in set(self.file_of.values()))

    def names(self) -> list[str]:
        """Weights and biases in the order of the files, without what only serves dequantising."""
        skip = (*FOUR_BIT_PARTS, *INT8_PARTS)
        return [
            name
            for name in sorted(self.file_of, key=lambda name: (self.file_of[name], name))
            if self.rounding is None or not (name.endswith(skip) or ".quant_state." in name)
        ]

    def raw(self, name: str) -> torch.Tensor:
        """As stored."""
        return self._read(name, 0, self._stored[name].rows_in_all)

    def _read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows as stored. Read, not mapped: what a map has touched counts as resident until the file is
        closed."""
        stored = self._stored[name]
        dtype = self._dtype(name)
        stop = min(stop, stored.rows_in_all)
        width = math.prod(stored.shape[1:]) * dtype.itemsize
        size, place = (stop - start) * width, stored.start + start * width
        bytes_N = np.fromfile(stored.file, np.uint8, size, offset=place)
        if len(bytes_N) < size:
            raise WhetError(
                "merge.no_weights",
                f"{stored.file} ends within {name}: it is shorter than its header says.",
                "Download the model again.",
            )
        shape = (stop - start, *stored.shape[1:]) if stored.shape else ()
        return torch.from_numpy(bytes_N).view(dtype).reshape(shape)

    def _dtype(self, name: str) -> torch.dtype:
        stored = self._stored[name].dtype
        if stored not in DTYPES:
            raise WhetError(
                "merge.quantized",
                f"{name} in {self.dir} is stored as {stored}, which is not read here.",
                "Merge onto the 16-bit model that it was made from.",
            )
        return DTYPES[stored]

    def is_rounded(self, name: str) -> bool:
        """Whether this very weight is stored in fewer bits."""
        if self.rounding == "int8":
            return name.removesuffix("weight") + "SCB" in self.file_of
        return self.rounding is not None and f"{name}.absmax" in self.file_of

    def tensor(self, name: str) -> torch.Tensor:
        """The weight as the model computes with it: rounded ones dequantised to float32, others as stored."""
        if not self.is_rounded(name):
            return self.raw(name)
        if self.rounding == "int8":
            scale = name.removesuffix("weight") + "SCB"
            return self.raw(name).float() * (self.raw(scale).float() / 127.0)[:, None]
        return self._from_four_bits(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the weight as the model computes with it."""
        if self.is_rounded(name) and self.rounding != "int8":
            return tuple(self._four_bit_state(name)["shape"])
        return self._stored[name].shape

    def dtype_of(self, name: str) -> torch.dtype:
        """Of :meth:`tensor`."""
        return torch.float32 if self.is_rounded(name) else self._dtype(name)

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """A part of :meth:`tensor` along its first dimension; a rounded one is dequantised as a whole."""
        if self.is_rounded(name):
            return self.tensor(name)[start:stop]
        return self._read(name, start, stop)

    def _four_bit_state(self, name: str) -> dict[str, Any]:
        """What bitsandbytes noted of one weight: shape, type, block sizes."""
        key = next(other for other in self.file_of if other.startswith(f"{name}.quant_state."))
        state: dict[str, Any] = json.loads(bytes(self.raw(key).tolist()))
        return state

    def _from_four_bits(self, name: str) -> torch.Tensor:
        from bitsandbytes.functional import QuantState, dequantize_4bit

        parts = {
            other.removeprefix(name + "."): self.raw(other)
            for other in self.file_of
            if other.startswith(name + ".")
        }
        state = QuantState.from_dict(parts, device=torch.device("cpu"))
        return dequantize_4bit(self.raw(name), quant_state=state).float()

    def items(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name in self.names():
            yield name, self.tensor(name)

    def dtype(self) -> torch.dtype:
        """Floating type of the stored weights: the one most weights of the first file have, 4-bit ones
        aside."""
        for name in self.names():
            dtype = self._dtype(name)
            if dtype.is_floating_point and len(self._stored[name].shape) > 1:
                return dtype
        return torch.bfloat16


def _tensor_files(model_dir: Path) -> dict[str, str]:
    weight_map, single = shards(model_dir), model_dir / "model.safetensors"
    if weight_map is not None:
        missing = sorted({file for file in weight_map.values() if not (model_dir / file).is_file()})
        if missing:
            raise WhetError(
                "merge.no_weights",
                f"{model_dir} lacks {', '.join(missing[:5])}, which its index names.",
                "Download the model again.",
            )
        return weight_map
    if not single.is_file():
        raise WhetError(
            "merge.no_weights",
            f"{model_dir} holds no model.safetensors.",
            "Weights must be safetensors; pickled checkpoints (.bin, .pt) are not read.",
        )
    return dict.fromkeys(stored_tensors([single]), single.name)
