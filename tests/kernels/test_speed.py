"""Timing: what is counted as work, which passes are timed, and that repeated passes compute the same."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from whet.kernels.backend import forced, interpreting
from whet.kernels.registry import SPECS
from whet.kernels.spec import Case, Inputs, KernelSpec, bytes_of
from whet.kernels.speed import Ceilings, Speed, directions_of, measure, milliseconds

CPU = torch.device("cpu")


def _inputs(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(case.sizes["n"], generator=generator).to(device, dtype)}


def toy(**options: Any) -> KernelSpec:
    given: dict[str, Any] = {
        "name": "toy",
        "operation": lambda x: x * 2,
        "reference": lambda x: x * 2,
        "inputs": _inputs,
        "cases": (),
        "timed": (),
        "tolerance": {},
        "traffic": lambda inputs: bytes_of(inputs["x"], inputs["x"]),
        "differentiable": ("x",),
    }
    return KernelSpec(**(given | options))


@pytest.mark.parametrize(
    ("options", "direction", "work", "unit"),
    [
        ({}, "forward", 2 * 4 * 100, "B"),
        ({}, "both", 0, ""),
        ({"backward_traffic": lambda inputs: 1200}, "backward", 1200, "B"),
        ({"backward_traffic": lambda inputs: 1200}, "both", 2000, "B"),
        ({"flops": lambda inputs: 7}, "forward", 7, "FLOP"),
        ({"flops": lambda inputs: 7, "backward_traffic": lambda inputs: 1200}, "both", 0, ""),
        ({"flops": lambda inputs: 7, "backward_flops": lambda inputs: 9}, "both", 16, "FLOP"),
        ({"flops": lambda inputs: 7 * (1 + inputs["x"].requires_grad)}, "both", 14, "FLOP"),
    ],
)
def test_work_is_what_the_spec_counts(options: dict[str, Any], direction: str, work: int, unit: str) -> None:
    sets = [_inputs(Case("toy", {"n": 100}), torch.float32, CPU, 0)]
    spec = toy(**options)
    speed = measure(spec, spec.operation, sets, direction, CPU, 0.001)
    assert (speed.work, speed.unit) == (work, unit) and speed.milliseconds > 0


def test_rate_and_share() -> None:
    ceilings = Ceilings(copy=4e9, matmul=1e12)
    assert Speed(2.0, 4e6, "B").rate == pytest.approx(2e9)
    assert Speed(2.0, 4e6, "B").share(ceilings) == pytest.approx(0.5)
    assert Speed(2.0, 1e9, "FLOP").share(ceilings) == pytest.approx(0.5)


def test_backward_is_timed_alone_where_it_is_counted() -> None:
    assert directions_of(toy()) == ("forward", "both")
    assert directions_of(toy(backward_traffic=lambda inputs: 1)) == ("forward", "backward", "both")
    assert directions_of(toy(differentiable=())) == ("forward",)


def test_each_call_has_its_turn_and_the_time_is_that_of_one() -> None:
    seen: list[int] = []

    def call(i: int) -> None:
        seen.append(i)
        time.sleep(0.002)

    took = milliseconds([lambda i=i: call(i) for i in range(3)], CPU, 0.01)  # type: ignore[misc]
    assert seen[:6] == [0, 1, 2, 0, 1, 2] and len(seen) % 3 == 0
    assert 2.0 <= took < 60.0


@pytest.mark.parametrize("name", list(SPECS))
def test_every_kernel_can_be_timed(name: str) -> None:
    """Going backward several times over one graph included, as the backward pass alone is timed."""
    spec = SPECS[name]
    dtype = spec.dtypes[0]
    sets = [spec.inputs(spec.cases[0], dtype, CPU, 0)]
    with forced("triton" if interpreting() else "reference"):
        for direction in directions_of(spec):
            speed = measure(spec, spec.operation, sets, direction, CPU, 0.0)
            assert speed.milliseconds > 0
            assert speed.unit or direction == "both"
