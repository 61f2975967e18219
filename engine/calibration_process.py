"""The far end of :func:`.calibration.calibrate`: measures the GPU and writes :class:`.calibration.Ceilings`.

Products and copies as the kernels' benchmark measures them, attention through the back end that training
uses, the bus with pinned memory, and the host's own time through the fast path of a tiny model.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from whet.kernels.attention import attention_backward, attention_forward
from whet.kernels.fp8 import fp8_matmul, quantize_rows
from whet.kernels.speed import measure_ceilings, milliseconds

from .calibration import Ceilings
from .kernel_backends import compute_type
from .models.fast_path import apply_fast_path, pack_rows, program_of

PRODUCTS = ((8192, 4096, 14336), (8192, 1024, 6144), (4096, 4096, 6144))
"""Rows, inputs and outputs: projections of an 8B and of a 0.6B model."""
EQUAL = ((2048,) * 4, (16384,))
MIXED = (
    (2048, 1500, 1100, 900, 700, 600, 500, 400, 300, 144),
    (12000, 4384),
)
"""Documents of a micro-batch; the short ones and the long ones give the ramp."""
HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
FORWARD_AND_BACKWARD = 3.5
BUS_BYTES = 256 * 2**20
FEW, MANY = 2, 10
"""Layers of the tiny models; their difference is what a layer takes."""
REPEATS = 9


def main() -> None:
    """Measure and print one line of JSON."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # compilers print; standard output is for JSON alone
    out.write(measure(torch.device("cuda")).model_dump_json() + "\n")
    out.flush()


def measure(device: torch.device) -> Ceilings:
    """All figures of a GPU, in some seconds."""
    dtype = compute_type(device)
    copy_rate = measure_ceilings(device, dtype).copy
    attention, ramp = _attention_rates(device, dtype, MIXED)
    equal, equal_ramp = _attention_rates(device, dtype, EQUAL)
    layer, rest = _host_seconds(device, dtype)
    return Ceilings(
        matmul=_product_rate(device, dtype, copy_rate),
        fp8=_fp8_rate(device, dtype, copy_rate),
        copy_rate=copy_rate,
        attention=attention,
        attention_ramp=ramp,
        attention_equal=equal,
        attention_equal_ramp=equal_ramp,
        pcie=_bus_rate(device),
        layer_host=layer,
        step_host=rest,
        measured=True,
    )


def _product_rate(device: torch.device, dtype: torch.dtype, copy_rate: float) -> float:
    """FLOP/s once the traffic's own time is taken out: the rate that all shapes have in common."""
    rates = []
    for rows, inputs, outputs in PRODUCTS:
        x = torch.randn(rows, inputs, device=device, dtype=dtype)
        weight = torch.randn(outputs, inputs, device=device, dtype=dtype)
        seconds = milliseconds([partial(torch.mm, x, weight.T)], device) / 1e3
        moved = dtype.itemsize * (x.numel() + weight.numel() + rows * outputs) / copy_rate
        rates.append(2 * rows * inputs * outputs / max(seconds - moved, 0.1 * seconds))
    return statistics.median(rates)


def _fp8_rate(device: torch.device, dtype: torch.dtype, copy_rate: float) -> float | None:
    """The same in FP8, quantised operands given; None before compute capability 8.9."""
    if torch.cuda.get_device_capability(device) < (8, 9):
        return None
    rows, inputs, outputs = PRODUCTS[0]
    x8, x_scale = quantize_rows(torch.randn(rows, inputs, device=device, dtype=dtype))
    w8, w_scale = quantize_rows(torch.randn(outputs, inputs, device=device, dtype=dtype))
    seconds = milliseconds([lambda: fp8_matmul(x8, x_scale, w8, w_scale, dtype=dtype)], device) / 1e3
    moved = (x8.numel() + w8.numel() + dtype.itemsize * rows * outputs) / copy_rate
    return 2 * rows * inputs * outputs / max(seconds - moved, 0.1 * seconds)


def _attention_rates(
    device: torch.device, dtype: torch.dtype, batches: Sequence[Sequence[int]]
) -> tuple[float, float]:
    """(rate at any length, tokens at which half of it is reached), from one batch of short documents and one
    of long ones: rate(n) = limit n / (n + ramp)."""
    short, long = (_attention_rate(device, dtype, lengths) for lengths in batches)
    return limit_and_ramp(short, long)


def limit_and_ramp(short: tuple[float, float], long: tuple[float, float]) -> tuple[float, float]:
    """From (rate, n) of short and of long documents; the limit is at most twice the faster rate.

    1 / rate = 1 / limit + (ramp / limit) / n is a straight line in 1 / n.
    """
    (rate_short, n_short), (rate_long, n_long) = short, long
    slope = max(0.0, (1 / rate_short - 1 / rate_long) / (1 / n_short - 1 / n_long))
    limit = 1 / max(1 / rate_long - slope / n_long, 0.5 / rate_long)
    return limit, slope * limit


def _attention_rate(device: torch.device, dtype: torch.dtype, lengths: Sequence[int]) -> tuple[float, float]:
    """FLOP/s forward and backward, and the length of the document that a token is in."""
    tokens = sum(lengths)
    qkv = torch.randn(tokens, HEADS + 2 * KV_HEADS, HEAD_DIM, device=device, dtype=dtype)
    q, k, v = qkv.split((HEADS, KV_HEADS, KV_HEADS), dim=1)
    offsets = torch.tensor((0, *lengths)).cumsum(0).to(device, torch.int32)
    longest, documents = max(lengths), len(lengths)

    def both() -> object:
        o, lse, extra = attention_forward(q, k, v, offsets, longest, documents=documents)
        return attention_backward(o, q, k, v, o, lse, extra, offsets, longest, documents=documents)

    squares = sum(length * length for length in lengths)
    flops = FORWARD_AND_BACKWARD * 2 * squares * HEADS * HEAD_DIM
    return flops / milliseconds([both], device) * 1e3, squares / tokens


def _bus_rate(device: torch.device) -> float:
    """Bytes a second between pinned host memory and the device, the slower way."""
    host = torch.empty(BUS_BYTES, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(BUS_BYTES, dtype=torch.uint8, device=device)
    ways: list[Callable[[], object]] = [
        lambda: there.copy_(host, non_blocking=True),
        lambda: host.copy_(there, non_blocking=True),
    ]
    return BUS_BYTES / max(milliseconds([way], device) for way in ways) * 1e3


def _host_seconds(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """(a layer, the rest) of the host's time for a forward and backward pass so small that it is all there
    is."""
    few, many = (tiny_step(device, dtype, layers) for layers in (FEW, MANY))
    layer = max(0.0, many - few) / (MANY - FEW)
    return layer, max(0.0, few - FEW * layer)


def tiny_step(device: torch.device, dtype: torch.dtype, layers: int) -> float:
    """Seconds of a forward and backward pass of a tiny model on the fast path."""
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    bare: Any = LlamaForCausalLM(config)
    leaves = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(bare.to(device, dtype), LoraConfig(r=8, target_modules=leaves))
    apply_fast_path(model, dtype)
    program = program_of(model)
    assert program is not None
    tokens = 512
    packed = pack_rows([list(range(3, 3 + tokens // 2))] * 2).to(device)
    places = torch.arange(tokens // 2 - 1, device=device)
    labels = torch.ones_like(places)

    wait: Callable[[], object] = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def step() -> float:
        wait()
        began = time.perf_counter()
        program.loss(packed, places, labels).backward()
        wait()
        return time.perf_counter() - began

    step()
    return statistics.median(step() for _ in range(REPEATS))


if __name__ == "__main__":
    main()
