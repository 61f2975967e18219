"""Weights in few bits as plain transformers reads them, beside the 16-bit ones: a process of its own. Needs
torch.

Request: format (``nf4`` or ``fp8``), model (16-bit folder), written (folder), texts, rows, positions, share.
Every weight is held against what it must be, by a way that has nothing from the writer: bitsandbytes' own
rounding while transformers loads, or the distance that rounding to e4m3 can make at most. Run by
reload_proof.py.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, CompressedTensorsConfig
from transformers.utils import logging as transformers_logging

from ...models.capped_attention import attention_of
from ...models.own_files import LOCAL, WEIGHTS
from ..distributions import divergence, log_probabilities, pick_sequences
from ..gguf.native import Progress
from ..reference_device import place
from .four_bit import nf4_config

HALF_STEP = 2.0**-4 + 2.0**-8
"""How far a number may move, as a part of itself: half of e4m3's step, and rounding to 16 bits after it."""
SMALLEST = 2.0**-10 / 440
"""How far beyond that, as a part of its row's largest: half of e4m3's smallest step."""


def main(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Answers with the weights that are wrong, and KL(16 bits || few bits) in nats."""
    transformers_logging.disable_progress_bar()
    fp8 = request["format"] == "fp8"
    if fp8 and find_spec("compressed_tensors") is None:
        return {"missing": "compressed-tensors"}
    source, written = Path(request["model"]), Path(request["written"])
    stored = AutoConfig.from_pretrained(source, **LOCAL).dtype or torch.bfloat16
    weights = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    # Two models at once; float32 takes twice the bytes of the files.
    device, dtype = place(2 * weights * (4 // stored.itemsize), request["share"])
    sequences = pick_sequences(request, source)
    read = _read_fp8(written) if fp8 else _plain(written)
    must = (
        _load(source) if fp8 else _plain(source, quantization_config=nf4_config(read.dtype), dtype=read.dtype)
    )
    wrong = _wrong(must, read, _near if fp8 else torch.equal)
    progress(1, 2)
    del must
    few_TV = log_probabilities(read.to(device, dtype), sequences)
    del read
    whole_TV = log_probabilities(_load(source).to(device, dtype), sequences)
    progress(2, 2)
    return {
        **divergence(whole_TV, few_TV),
        "wrong": wrong,
        "positions": len(whole_TV),
        "computed_in": str(dtype).removeprefix("torch."),
    }


def _load(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        folder, **{"dtype": "auto", **WEIGHTS, **attention_of(folder), **options}
    ).eval()


def _plain(folder: Path, **options: Any) -> Any:
    """A 4-bit model with its weights as plain numbers: bitsandbytes on a CPU would round activations too."""
    return _load(folder, device_map={"": "cpu"}, **options).dequantize()


def _read_fp8(folder: Path) -> Any:
    """An FP8 model with its weights as plain numbers."""
    return _load(folder, quantization_config=CompressedTensorsConfig(dequantize=True))


def _wrong(must: nn.Module, read: nn.Module, same: Any) -> list[str]:
    """Names of parameters that are not what they must be."""
    found = dict(read.named_parameters())
    return [
        name
        for name, param in must.named_parameters()
        if name not in found or found[name].shape != param.shape or not same(param.data, found[name].data)
    ]


def _near(exact: torch.Tensor, rounded: torch.Tensor) -> bool:
    """Whether rounding each row to e4m3 explains the difference; vectors may have none."""
    if exact.ndim < 2:
        return torch.equal(exact, rounded)
    largest = exact.float().abs().amax(dim=-1, keepdim=True)
    error = (exact.float() - rounded.float()).abs()
    return bool((error <= exact.float().abs() * HALF_STEP + largest * SMALLEST).all())
