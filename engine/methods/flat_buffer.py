"""Parameters of one device as views of one flat fp32 buffer, their gradients as views of another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from whet.kernels.adamw import adamw_update
from whet.kernels.dynamic_code import BLOCK, BlockState

from ..errors import WhetError

Moment = torch.Tensor | BlockState


@dataclass(frozen=True)
class Slot:
    """Where a parameter lies: ``start`` is a multiple of 256, so that no 8-bit block holds two of them."""

    parameter: torch.nn.Parameter
    start: int
    view: torch.Tensor
    gradient: torch.Tensor
    shadow: torch.Tensor | None
    eight_bit: bool

    @property
    def stop(self) -> int:
        return self.start + self.parameter.numel()


class FlatBuffer:
    """Parameters, gradients, moments and optionally a 16-bit copy, one tensor each.

    Parameters with 8-bit moments lie first, those with fp32 moments behind them: a launch for each kind.

    Args:
        parameters: fp32 and of one device; their ``data`` becomes views of the buffer.
        eight_bit: which of them keep 8-bit moments.
        shadow_dtype: type of a copy that every step refreshes; None for none.
    """

    def __init__(
        self,
        parameters: Sequence[torch.nn.Parameter],
        eight_bit: Callable[[torch.nn.Parameter], bool],
        shadow_dtype: torch.dtype | None,
    ) -> None:
        ordered = sorted(parameters, key=lambda parameter: not eight_bit(parameter))
        room = [-(-parameter.numel() // BLOCK) * BLOCK for parameter in ordered]
        self.device, total = ordered[0].device, sum(room)
        self.boundary = sum(r for r, parameter in zip(room, ordered, strict=True) if eight_bit(parameter))
        self.parameters_P = torch.zeros(total, device=self.device)
        self.gradients_P = torch.zeros(total, device=self.device)
        self.shadow_P = (
            None if shadow_dtype is None else torch.zeros_like(self.parameters_P, dtype=shadow_dtype)
        )
        wide = total - self.boundary
        self.moments_8bit = tuple(
            BlockState.zeros(self.boundary, signed=s, device=self.device) for s in (True, False)
        )
        self.moments_32bit = tuple(torch.zeros(wide, device=self.device) for _ in range(2))
        self.slots: list[Slot] = []
        start = 0
        for parameter, size in zip(ordered, room, strict=True):
            self.slots.append(self._place(parameter, start, eight_bit(parameter)))
            start += size
        self.table_G8 = torch.zeros(1, 8, device=self.device)
        self.rows_B: torch.Tensor | None = None

    def _place(self, parameter: torch.nn.Parameter, start: int, eight_bit: bool) -> Slot:
        def view(flat: torch.Tensor) -> torch.Tensor:
            return flat[start : start + parameter.numel()].view(parameter.shape)

        data = view(self.parameters_P)
        data.copy_(parameter.data)
        parameter.data = data
        shadow = None if self.shadow_P is None else view(self.shadow_P).copy_(data)
        return Slot(parameter, start, data, view(self.gradients_P), shadow, eight_bit)

    def set_rows(self, row_of: Sequence[int], rows: int) -> None:
        """Give each slot its row of the table of scalars."""
        self.table_G8 = torch.zeros(rows, 8, device=self.device)
        if rows == 1:
            self.rows_B = None
            return
        blocks = [-(-(slot.stop - slot.start) // BLOCK) for slot in self.slots]
        each = torch.tensor(row_of, dtype=torch.int32).repeat_interleave(torch.tensor(blocks))
        self.rows_B = each.to(self.device)

    def zero_gradients(self) -> None:
        """Zero the buffer and make every ``grad`` its view."""
        self.gradients_P.zero_()
        for slot in self.slots:
            if slot.parameter.grad is not slot.gradient:  # setting costs more than looking
                slot.parameter.grad = slot.gradient

    def collect_gradients(self) -> None:
        """Bring every gradient into the buffer and make every ``grad`` its view.

        ``grad`` is None where nothing was accumulated since a ``zero_grad(set_to_none=True)`` of the module,
        and another tensor where autograd then put its own.

        Raises:
            WhetError: ``optimizer.moved`` if a parameter's ``data`` is no longer the buffer's.
        """
        missing: list[torch.Tensor] = []
        foreign: list[tuple[torch.Tensor, torch.Tensor]] = []
        for slot in self.slots:
            parameter = slot.parameter
            if parameter.data_ptr() != slot.view.data_ptr():
                raise WhetError(
                    "optimizer.moved",
                    f"A parameter of shape {tuple(parameter.shape)} was given other memory on "
                    f"{parameter.device} after the optimizer was built; its steps would be lost.",
                    "Move or replace the model's parameters first, then build the optimizer.",
                )
            gradient = parameter.grad
            if gradient is slot.gradient:
                continue
            if gradient is None:
                missing.append(slot.gradient)
            else:
                foreign.append((slot.gradient, gradient))
            parameter.grad = slot.gradient
        if missing:
            torch._foreach_zero_(missing)
        if foreign:
            torch._foreach_copy_([ours for ours, _ in foreign], [theirs for _, theirs in foreign])

    def moments(self, slot: Slot) -> tuple[Moment, Moment]:
        """The first and second moment of one parameter, flat views."""
        if slot.eight_bit:
            first, second = self.moments_8bit
            return first.slice(slot.start, slot.stop), second.slice(slot.start, slot.stop)
        m, v = self.moments_32bit
        span = slice(slot.start - self.boundary, slot.stop - self.boundary)
        return m[span], v[span]

    def step(self, clip: torch.Tensor | None) -> None:
        """One step of AdamW by the table as it is on the device; at most two launches."""
        for start, stop, (m, v) in (
            (0, self.boundary, self.moments_8bit),
            (self.boundary, self.parameters_P.numel(), self.moments_32bit),
        ):
            rows = None if self.rows_B is None else self.rows_B[start // BLOCK : stop // BLOCK]
            adamw_update(
                self.parameters_P[start:stop],
                self.gradients_P[start:stop],
                m,
                v,
                self.table_G8,
                rows_B=rows,
                clip=clip,
                shadow_P=None if self.shadow_P is None else self.shadow_P[start:stop],
            )

    def refresh_shadow(self) -> None:
        """Copy the parameters to the 16-bit copy, after something else than a step changed them."""
        if self.shadow_P is not None:
            self.shadow_P.copy_(self.parameters_P)
