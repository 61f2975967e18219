"""Every kernel's operation, on Triton and on its plain-torch path, against its reference in float64.

On a machine without a GPU Triton runs through its interpreter: ``TRITON_INTERPRET=1 pytest tests/kernels``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from whet.kernels.backend import interpreting, uses_triton
from whet.kernels.parity import check, dtype_name
from whet.kernels.registry import SPECS
from whet.kernels.spec import Case, Inputs, KernelSpec

DEVICE = torch.device("cuda" if torch.cuda.is_available() and not interpreting() else "cpu")


def all_checks() -> Iterator[Any]:
    """Spec, case, dtype and back end; float64 is for the plain-torch paths."""
    for spec in SPECS.values():
        for case in spec.cases:
            for backend, dtypes in {
                "triton": spec.dtypes,
                "reference": (torch.float64, *spec.dtypes),
            }.items():
                for dtype in dtypes:
                    name = f"{spec.name}-{case}-{dtype_name(dtype)}-{backend}"
                    yield pytest.param(spec, case, dtype, backend, id=name)


@pytest.mark.parametrize(("spec", "case", "dtype", "backend"), list(all_checks()))
def test_parity(spec: KernelSpec, case: Case, dtype: torch.dtype, backend: str) -> None:
    outcome = check(spec, case, dtype, DEVICE, backend=backend)
    assert outcome.deviations
    assert not outcome.problems, "\n".join(outcome.problems)


@pytest.mark.parametrize("spec", list(SPECS.values()), ids=list(SPECS))
def test_a_spec_says_what_the_tools_need(spec: KernelSpec) -> None:
    assert SPECS[spec.name] is spec
    assert spec.cases and spec.timed
    assert spec.compilations or spec is SPECS["fp8_matmul"]  # torch's own product
    assert len({case.name for case in spec.cases}) == len(spec.cases)
    assert set(spec.tolerance) >= set(spec.dtypes)
    inputs = [spec.inputs(case, spec.dtypes[0], torch.device("cpu"), 0) for case in spec.cases]
    assert set(spec.differentiable) <= {name for each in inputs for name in each}
    assert max(map(spec.traffic, inputs)) > 0


# --- the check itself finds what is wrong


class _Doubled(torch.autograd.Function):
    """y = 2 x, and z = x; ``fault`` says what is wrong with it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, fault: str) -> torch.Tensor:
        ctx.fault = fault
        if fault == "overwrites" and uses_triton(x):
            x.as_strided((1,), (1,), 35).zero_()  # between two rows of the view
        if fault == "infinite":
            return x / 0
        if fault == "wider":
            return x.float() * 2
        if fault == "coarse":
            return (x.float() * 2 * (1 + 3 * torch.finfo(x.dtype).eps)).to(x.dtype)
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return gradient.to(torch.bfloat16) * (3 if ctx.fault == "gradient" else 2), None


def _inputs(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    wider = torch.randn(case.sizes["rows"], 40, generator=generator).to(device, dtype)
    return {"x": wider[:, :33], "fault": case.sizes["fault"]}


TOY = KernelSpec(
    name="doubled",
    operation=lambda x, fault: _Doubled.apply(x, fault),
    reference=lambda x, fault: x * 2,
    inputs=_inputs,
    cases=(),
    timed=(),
    tolerance={torch.bfloat16: 5e-2},
    traffic=lambda inputs: 1,
    differentiable=("x",),
)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("none", ""),
        ("overwrites", "inputs were changed"),
        ("infinite", "output 0: relative error inf"),
        ("wider", "output 0: (5, 33) float32, reference (5, 33) bfloat16"),
        ("coarse", "output 0: relative error 0.02"),  # within the tolerance, far from plain torch's own
        ("gradient", "gradient of x: relative error 0.5"),
    ],
)
def test_the_check_finds(fault: str, said: str) -> None:
    case = Case("toy", {"rows": 5, "fault": fault})
    outcome = check(TOY, case, torch.bfloat16, torch.device("cpu"))
    assert (said in outcome.problems[0]) if said else not outcome.problems


def test_empty_inputs_are_compared_by_shape() -> None:
    outcome = check(TOY, Case("empty", {"rows": 0, "fault": "none"}), torch.bfloat16, torch.device("cpu"))
    assert [deviation.error for deviation in outcome.deviations] == [0.0, 0.0] and not outcome.problems
