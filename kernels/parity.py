"""Whether an operation computes what its reference computes: outputs and gradients against float64.

One check serves the tests (interpreter and GPU) and ``whet doctor --kernels``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch

from .backend import forced
from .spec import Case, Inputs, KernelSpec, relative_error

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SIXTEEN_BITS = (torch.bfloat16, torch.float16)
OWN_ERROR_FACTOR = 2.0
"""In 16 bits an operation may be this much worse than plain torch in the same type, or than half a unit in
the last place where plain torch is better than that: a tolerance alone would let a kernel lose the accuracy
that fp32 arithmetic inside of it is there for."""
FLOAT64_TOLERANCE = 1e-6
"""For reference paths run in float64, whose statistics may be kept in fp32 as they are beside a kernel."""


@dataclass(frozen=True)
class Deviation:
    """How far one output or one gradient is from the float64 reference.

    Args:
        of: e.g. ``output 0`` or ``gradient of x``.
        error: relative, see :func:`whet.kernels.spec.relative_error`.
        limit: the largest accepted.
    """

    of: str
    error: float
    limit: float


@dataclass(frozen=True)
class Parity:
    """The outcome of one check; right if there are no ``problems``."""

    kernel: str
    case: str
    dtype: str
    deviations: tuple[Deviation, ...]
    problems: tuple[str, ...]

    @property
    def worst(self) -> Deviation | None:
        """The deviation nearest to its limit, or farthest beyond it."""
        return max(self.deviations, key=lambda deviation: deviation.error / deviation.limit, default=None)


def dtype_name(dtype: torch.dtype) -> str:
    """``bfloat16`` for ``torch.bfloat16``."""
    return str(dtype).removeprefix("torch.")


def check(
    spec: KernelSpec,
    case: Case,
    dtype: torch.dtype,
    device: torch.device,
    *,
    backend: str = "triton",
    seed: int = 0,
) -> Parity:
    """Run the operation and its reference on the same fresh random inputs and compare.

    Compared are all outputs and, for random upstream gradients (row-strided, as a slice of a wider buffer
    hands them over), the gradients of ``spec.differentiable``. Shapes and dtypes must be the reference's,
    and the inputs' memory (bytes between strided rows included) must be untouched.
    """
    inputs = spec.inputs(case, dtype, device, seed)
    memory = [(storage, storage.clone()) for storage in _memory(inputs)]
    with forced(backend):
        ours = _Run(spec.operation, inputs, spec.differentiable, seed)
    problems = [] if all(torch.equal(now, before) for now, before in memory) else ["inputs were changed"]
    own = _Run(spec.reference, spec.inputs(case, dtype, device, seed), spec.differentiable, seed, ours)
    exact_inputs = _in_float64(spec.inputs(case, dtype, device, seed))
    exact = _Run(spec.reference, exact_inputs, spec.differentiable, seed, ours)

    tolerance = FLOAT64_TOLERANCE if dtype == torch.float64 else spec.tolerance[dtype]
    deviations = []
    for name in sorted(ours.results.keys() | exact.results.keys()):
        value, plain, truth = (run.results.get(name) for run in (ours, own, exact))
        if value is None or plain is None or truth is None:
            problems.append(f"{name}: only one of operation and reference has it")
        elif value.shape != truth.shape or value.dtype != plain.dtype:
            problems.append(f"{name}: {_described(value)}, reference {_described(plain)}")
        else:
            limit = min(tolerance, _own_limit(plain, truth, dtype))
            deviations.append(Deviation(name, relative_error(value, truth), limit))
    problems += [
        f"{d.of}: relative error {d.error:.3g}, limit {d.limit:.3g}"
        for d in deviations
        if not d.error <= d.limit
    ]
    return Parity(spec.name, case.name, dtype_name(dtype), tuple(deviations), tuple(problems))


def tensors_of(value: Any) -> Iterator[torch.Tensor | None]:
    """Tensors of an operation's result or inputs, in order; None where an optional one is left out."""
    if value is None or isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_of(item)
    elif isinstance(value, dict):
        yield from tensors_of(list(value.values()))
    elif is_dataclass(value):
        yield from tensors_of([getattr(value, field.name) for field in fields(value)])


def leaves(inputs: Inputs, differentiable: tuple[str, ...]) -> tuple[Inputs, dict[str, torch.Tensor]]:
    """The inputs with the differentiable ones as leaves that require gradients, same memory and strides."""
    wanted = {
        name: inputs[name].detach().requires_grad_()
        for name in differentiable
        if isinstance(inputs.get(name), torch.Tensor)
    }
    return inputs | wanted, wanted


class _Run:
    """One forward and backward pass.

    ``results`` maps ``output i`` and ``gradient of NAME`` to tensors; ``upstream`` maps an output's index
    to the gradient it was given, which a later run of ``like`` takes over, converted to its own types.
    """

    def __init__(
        self,
        function: Any,
        inputs: Inputs,
        differentiable: tuple[str, ...],
        seed: int,
        like: _Run | None = None,
    ) -> None:
        ready, wanted = leaves(inputs, differentiable)
        outputs = list(tensors_of(function(**ready)))
        self.results = {f"output {i}": out.detach() for i, out in enumerate(outputs) if out is not None}
        self.upstream: dict[int, torch.Tensor] = {}
        if not wanted:
            return
        reached = [(i, out) for i, out in enumerate(outputs) if out is not None and out.requires_grad]
        for i, out in reached:
            given = like.upstream.get(i) if like else _upstream(out, seed + i)
            # An output that only the reference differentiates counts for nothing here.
            self.upstream[i] = torch.zeros_like(out) if given is None else given.to(out.dtype)
        gradients: tuple[torch.Tensor | None, ...] = (None,) * len(wanted)
        if reached:
            gradients = torch.autograd.grad(
                [out for _, out in reached],
                list(wanted.values()),
                list(self.upstream.values()),
                allow_unused=True,
            )
        for (name, leaf), gradient in zip(wanted.items(), gradients, strict=True):
            self.results[f"gradient of {name}"] = torch.zeros_like(leaf) if gradient is None else gradient


def _upstream(out: torch.Tensor, seed: int) -> torch.Tensor:
    """A random gradient of ``out``, a slice of a wider buffer."""
    generator = torch.Generator().manual_seed(seed + 1000)
    width = out.shape[-1] if out.dim() else 1
    wider = torch.randn(*out.shape[:-1], width + 16, generator=generator).to(out.device, out.dtype)
    return wider[..., :width] if out.dim() else wider[0]


def _own_limit(plain: torch.Tensor, truth: torch.Tensor, dtype: torch.dtype) -> float:
    if dtype not in SIXTEEN_BITS:
        return float("inf")
    return OWN_ERROR_FACTOR * max(relative_error(plain, truth), torch.finfo(dtype).eps / 2)


def _in_float64(value: Any) -> Any:
    """Tensors of the usual float types in float64; 8-bit floats, integers and objects as they are."""
    if isinstance(value, torch.Tensor):
        return value.double() if value.dtype in FLOATS else value
    if isinstance(value, dict):
        return {key: _in_float64(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_in_float64(item) for item in value)
    return value


def _memory(inputs: Inputs) -> list[torch.Tensor]:
    """The bytes behind each input tensor, those that a strided view skips included."""
    return [
        torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())
        for tensor in tensors_of(inputs)
        if tensor is not None
    ]


def _described(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} {dtype_name(tensor.dtype)}"
