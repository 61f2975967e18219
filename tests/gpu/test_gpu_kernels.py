"""Kernels on the device: parity of every case, and tensors of more than 2**31 elements.

Run by hand: `PYTHONPATH=src:tests python -P -m pytest -q -m gpu tests/gpu/test_gpu_kernels.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from whet.kernels import decode_linear
from whet.kernels.attention_choice import starts_early
from whet.kernels.parity import check, dtype_name, tensors_of
from whet.kernels.registry import SPECS
from whet.kernels.spec import Case, Inputs, KernelSpec, relative_error

pytestmark = pytest.mark.gpu

GPU = torch.device("cuda")


def all_checks() -> Iterator[Any]:
    """Spec, case and dtype."""
    for spec in SPECS.values():
        for case in spec.cases:
            for dtype in spec.dtypes:
                yield pytest.param(spec, case, dtype, id=f"{spec.name}-{case}-{dtype_name(dtype)}")


@pytest.mark.parametrize(("spec", "case", "dtype"), list(all_checks()))
def test_parity_on_the_device(spec: KernelSpec, case: Case, dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("no bf16 before compute capability 8.0")
    outcome = check(spec, case, dtype, GPU)
    torch.cuda.synchronize()
    assert outcome.deviations
    assert not outcome.problems, "\n".join(outcome.problems)


@pytest.mark.parametrize(
    ("held", "rows", "outputs"),
    [
        ("dense", 1, 9000),
        ("int8", 1, 30000),
        ("fp8", 1, 30000),
        ("nf4", 1, 9000),
        ("nf4", 1, 30000),
        ("nf4", 8, 30000),
        ("nf4", 16, 30000),
    ],
)
def test_a_product_that_starts_beside_lora_s_a_waits_for_what_it_writes(
    held: str, rows: int, outputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a CUDA graph that is replayed with other inputs; t is no number until A's kernel has written it."""
    if not starts_early(GPU):
        pytest.skip("kernels start early from compute capability 9.0")
    early: list[bool] = []
    start = decode_linear._start

    def noted(*given: Any) -> dict[str, bool]:
        found = start(*given)
        early.append(found["WAITS"])
        return found

    monkeypatch.setattr(decode_linear, "_start", noted)
    spec, sizes = decode_linear.SPEC, {"B": rows, "K": 256, "N": outputs, "R": 8, "held": held}
    inputs = spec.inputs(Case("early", sizes), torch.bfloat16, GPU, 0)
    t_BR = torch.full((rows, 8), float("nan"), dtype=torch.bfloat16, device=GPU)
    out_BN = torch.full((rows, outputs), float("nan"), dtype=torch.bfloat16, device=GPU)
    spec.operation(**inputs, t_BR=t_BR, out_BN=out_BN)
    assert early == [False, True], "A's own kernel, then the product"
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        spec.operation(**inputs, t_BR=t_BR, out_BN=out_BN)
    for _ in range(50):
        inputs["x_BK"].normal_()
        t_BR.fill_(float("nan"))
        out_BN.fill_(float("nan"))
        graph.replay()
        wanted = spec.reference(**inputs)
        assert relative_error(out_BN, wanted) < spec.tolerance[torch.bfloat16]


# --- beyond 2**31 elements: the first and last rows of row-wise operations

BEYOND = 2**31
LARGE: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "rms_norm": ({"T": BEYOND // 8192 + 3, "D": 8192, "residual": True}, ("x", "residual")),
    "layer_norm": ({"T": BEYOND // 8192 + 3, "D": 8192, "residual": True}, ("x", "residual")),
    "rope": (
        {"tokens": BEYOND // 6144 + 3, "heads": 32, "kv_heads": 8, "size": 128, "norm": True},
        ("qkv", "positions"),
    ),
    "glu": ({"tokens": BEYOND // 16384 + 3, "width": 8192, "kind": "swiglu"}, ("gate", "up")),
    "gelu": ({"tokens": BEYOND // 8192 + 3, "width": 8192, "approximate": "tanh"}, ("x",)),
    "fp8_quantize": ({"T": BEYOND // 8192 + 3, "K": 8192}, ("x_TK",)),
    "adamw": ({"P": BEYOND + 1027}, ("p_P", "g_P", "m_P", "v_P")),
}
"""Kernel -> sizes, and the inputs whose first dimension is rows."""
BYTES_AN_ELEMENT = {"adamw": 44}  # inputs, random numbers they are made from, outputs, gradients
FEW = 4
TIES = 1e-2


def ends(tensor: torch.Tensor) -> torch.Tensor:
    """The first and the last rows."""
    return torch.cat((tensor[:FEW], tensor[-FEW:]))


@pytest.mark.parametrize("name", LARGE)
def test_more_than_2_to_the_31_elements(name: str) -> None:
    spec, (sizes, by_row) = SPECS[name], LARGE[name]
    dtype = torch.bfloat16 if torch.bfloat16 in spec.dtypes else spec.dtypes[0]
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < BEYOND * BYTES_AN_ELEMENT.get(name, 16):
        pytest.skip("needs more memory than is free")
    inputs = spec.inputs(Case("beyond", sizes), dtype, GPU, 0)
    rows = inputs[by_row[0]].shape[0]
    first = inputs[by_row[0]]
    assert first.untyped_storage().nbytes() // first.element_size() > BEYOND

    wanted = [key for key in by_row if key in spec.differentiable]
    ours = _with_gradients(spec.operation, inputs, wanted)
    few = {key: ends(value) if key in by_row else value for key, value in inputs.items()}
    exact_inputs = {
        key: value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for key, value in few.items()
    }
    exact = _with_gradients(spec.reference, exact_inputs, wanted)
    assert len(ours) == len(exact)
    for value, truth in zip(ours, exact, strict=True):
        assert value.shape[0] == rows
        tied = value.dtype == torch.float8_e4m3fn  # a quotient between two of its numbers may go either way
        assert relative_error(ends(value), truth) <= (TIES if tied else spec.tolerance[dtype])


def _with_gradients(function: Callable[..., Any], inputs: Inputs, wanted: list[str]) -> list[torch.Tensor]:
    """Outputs, then gradients of ``wanted`` for an upstream gradient that is the output itself."""
    leaves = {key: inputs[key].detach().requires_grad_() for key in wanted}
    outputs = [out for out in tensors_of(function(**(inputs | leaves))) if out is not None]
    reached = [out for out in outputs if out.requires_grad]
    gradients: tuple[torch.Tensor, ...] = ()
    if wanted:
        gradients = torch.autograd.grad(reached, list(leaves.values()), [out.detach() for out in reached])
    return [*(out.detach() for out in outputs), *gradients]
