"""How fast an operation is on this machine, beside what the machine can do.

Times are medians of device time with inputs that are not in the cache; rates count the bytes an operation
has to move or the arithmetic it has to do, as its `KernelSpec` says, not what it happens to do.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .parity import leaves, tensors_of
from .spec import Case, Inputs, KernelSpec

Call = Callable[[], Any]
DIRECTIONS = ("forward", "backward", "both")
CACHES_WORTH = 4  # input sets together exceed the L2 cache by this factor
MOST_SETS = 32
MEMORY_SHARE = 0.25  # of free device memory that the sets may take
SPIN_RATE = 2.0e9  # cycles a second, about: only has to be no slower than the device
MARGIN = 1.5  # of the host's time, which varies


@dataclass(frozen=True)
class Ceilings:
    """What the device reaches at best: ``copy`` in bytes/s (read plus written), ``matmul`` in FLOP/s."""

    copy: float
    matmul: float


@dataclass(frozen=True)
class Speed:
    """One timed call.

    Args:
        milliseconds: median device time.
        work: bytes or floating-point operations the call has to do; 0 where the spec does not say.
        unit: ``B``, ``FLOP`` or nothing.
    """

    milliseconds: float
    work: float = 0.0
    unit: str = ""

    @property
    def rate(self) -> float:
        """Work a second."""
        return self.work / (self.milliseconds / 1e3)

    def share(self, ceilings: Ceilings) -> float:
        """Of what the device reaches at best."""
        return self.rate / (ceilings.matmul if self.unit == "FLOP" else ceilings.copy)


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Copy bandwidth of a large buffer, and the rate of a matrix product at an 8B model's MLP shape."""
    return Ceilings(_copy_bandwidth(device), _product_rate(device, dtype))


def _copy_bandwidth(device: torch.device) -> float:
    count = 2**22
    if device.type == "cuda":
        count = min(2**28, torch.cuda.mem_get_info(device)[0] // 32)
    source = torch.rand(count, device=device)
    target = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size()
    return moved / milliseconds([lambda: target.copy_(source)], device) * 1e3


def _product_rate(device: torch.device, dtype: torch.dtype) -> float:
    rows, width, wide = (8192, 4096, 14336) if device.type == "cuda" else (256, 512, 512)
    left = torch.randn(rows, width, device=device, dtype=dtype)
    right = torch.randn(wide, width, device=device, dtype=dtype)
    return 2 * rows * width * wide / milliseconds([lambda: left @ right.T], device) * 1e3


def milliseconds(calls: Sequence[Call], device: torch.device, budget: float = 0.2) -> float:
    """Median time of a call, going round through ``calls`` for about ``budget`` seconds after a warm-up, five
    times at least.

    Give calls on as many sets of inputs as :func:`sets_needed` says, so that none finds its inputs in the
    cache; results of a round are kept until the next, so that outputs go to cold memory too.
    """
    round_of = _cuda_round if device.type == "cuda" else _cpu_round
    kept: list[Any] = [None] * len(calls)
    round_of(calls, kept, 0.0)  # compiles
    once, ahead = round_of(calls, kept, 0.0)
    rounds = max(5, min(100, int(budget / max(once + ahead, 1e-6))))
    return statistics.median(round_of(calls, kept, ahead)[0] for _ in range(rounds)) / len(calls) * 1e3


def _cuda_round(calls: Sequence[Call], kept: list[Any], ahead: float) -> tuple[float, float]:
    """Seconds of one round on the device, and of the host for asking for it.

    The device spins first, so that the host is ``ahead`` and never waited for.
    """
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda._sleep(int(min(ahead, 0.25) * SPIN_RATE))
    asked = time.perf_counter()
    begin.record()
    for i, call in enumerate(calls):
        kept[i] = call()
    end.record()
    asked = time.perf_counter() - asked
    end.synchronize()
    return begin.elapsed_time(end) / 1e3, MARGIN * asked


def _cpu_round(calls: Sequence[Call], kept: list[Any], ahead: float) -> tuple[float, float]:
    begin = time.perf_counter()
    for i, call in enumerate(calls):
        kept[i] = call()
    return time.perf_counter() - begin, 0.0


def sets_needed(bytes_moved: int, device: torch.device) -> int:
    """How many input sets to rotate among so that each call finds a cold cache, within free memory."""
    if device.type != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    wanted = -(-CACHES_WORTH * cache // max(bytes_moved, 1)) + 1
    fitting = int(torch.cuda.mem_get_info(device)[0] * MEMORY_SHARE) // max(bytes_moved, 1)
    return max(1, min(wanted, fitting, MOST_SETS))


def input_sets(spec: KernelSpec, case: Case, dtype: torch.dtype, device: torch.device) -> list[Inputs]:
    """Sets of fresh random inputs to rotate among."""
    first = spec.inputs(case, dtype, device, 0)
    count = sets_needed(spec.traffic(first), device)
    return [first, *(spec.inputs(case, dtype, device, seed) for seed in range(1, count))]


def directions_of(spec: KernelSpec) -> tuple[str, ...]:
    """What is timed: ``backward`` alone where the spec counts its bytes or operations."""
    if not spec.differentiable:
        return ("forward",)
    counted = spec.backward_traffic is not None or spec.backward_flops is not None
    return DIRECTIONS if counted else ("forward", "both")


def call_once(spec: KernelSpec, inputs: Inputs) -> None:
    """Run the operation once in each direction that is timed, which compiles what it launches."""
    with torch.no_grad():
        spec.operation(**inputs)
    if spec.differentiable:
        _Backward(spec.operation, inputs, trained_of(spec)).both()


def trained_of(spec: KernelSpec) -> tuple[str, ...]:
    """The inputs whose gradients are timed."""
    return tuple(name for name in spec.differentiable if name not in spec.frozen)


def measure(
    spec: KernelSpec,
    function: Callable[..., Any],
    sets: Sequence[Inputs],
    direction: str,
    device: torch.device,
    budget: float = 0.2,
) -> Speed:
    """Time ``function`` (the operation, its reference, a rival with the same signature) on the input sets."""
    trained = trained_of(spec)
    work, unit = _work(spec, sets[0], trained, direction)
    if direction == "forward":
        with torch.no_grad():
            calls = [lambda inputs=inputs: function(**inputs) for inputs in sets]
            return Speed(milliseconds(calls, device, budget), work, unit)
    passes = [_Backward(function, inputs, trained) for inputs in sets]
    if direction == "both":
        return Speed(milliseconds([one.both for one in passes], device, budget), work, unit)
    for one in passes:
        one.forward()
    return Speed(milliseconds([one.backward for one in passes], device, budget), work, unit)


class _Backward:
    """One set of inputs as leaves, with fixed random upstream gradients."""

    def __init__(self, function: Callable[..., Any], inputs: Inputs, differentiable: tuple[str, ...]) -> None:
        self.function = function
        self.inputs, wanted = leaves(inputs, differentiable)
        self.wanted = list(wanted.values())
        self.outputs: list[torch.Tensor] = []
        self.upstream: list[torch.Tensor] = []

    def forward(self) -> None:
        outputs = tensors_of(self.function(**self.inputs))
        self.outputs = [out for out in outputs if out is not None and out.requires_grad]
        if not self.upstream:
            self.upstream = [torch.randn_like(out) for out in self.outputs]

    def backward(self, retain: bool = True) -> tuple[torch.Tensor | None, ...]:
        return torch.autograd.grad(
            self.outputs, self.wanted, self.upstream, retain_graph=retain, allow_unused=True
        )

    def both(self) -> tuple[torch.Tensor | None, ...]:
        self.forward()
        gradients = self.backward(retain=False)
        self.outputs = []
        return gradients


def _work(spec: KernelSpec, inputs: Inputs, trained: tuple[str, ...], direction: str) -> tuple[float, str]:
    """Work and unit of a direction; (0, "") where the spec does not count the backward pass."""
    forward: float = spec.flops(inputs)
    with_gradients = spec.flops(leaves(inputs, trained)[0])
    if direction == "both" and with_gradients != forward:
        return with_gradients, "FLOP"
    backward_of = spec.backward_flops if forward else spec.backward_traffic
    unit = "FLOP" if forward else "B"
    forward = forward or spec.traffic(inputs)
    if direction == "forward":
        return forward, unit
    if backward_of is None:
        return 0.0, ""
    backward = backward_of(inputs)
    return (forward + backward if direction == "both" else backward), unit
