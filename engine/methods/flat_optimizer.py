"""AdamW whose whole step is a launch or two: parameters, gradients and moments lie in flat buffers.

It stands in for ``torch.optim.AdamW`` and for bitsandbytes' ``AdamW8bit``: same groups, same arithmetic, and
state dicts in their layouts, so that a checkpoint goes on with either.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch.optim.adamw import adamw

from whet.kernels.adamw import adamw_scalars
from whet.kernels.dynamic_code import BlockState, dequantize_blocks, dynamic_code, quantize_blocks
from whet.kernels.gradient_norm import clip_coefficient, gradient_norm, norm_and_clip

from ..errors import WhetError
from .flat_buffer import FlatBuffer, Moment, Slot

# bitsandbytes keeps fp32 moments for parameters smaller than this, and wraps quantised ones under this key.
LEAST_8BIT = 4096
QUANTISED = "__bnb_optimizer_quant_state__"


@dataclass
class _Row:
    """A row of the table of scalars: a parameter group, and how many steps its parameters have taken."""

    group: int
    steps: int


class FlatAdamW(torch.optim.Optimizer):
    """AdamW (decoupled weight decay) over flat buffers.

    fp32 parameters that train become views of one buffer a device, aligned to 256 elements, and their
    ``grad`` views of another. Others (16-bit, or frozen when the optimizer is built) are stepped by torch's
    own AdamW. A parameter without a gradient counts as one with a zero gradient, as after
    ``zero_grad(set_to_none=False)`` in torch.

    A step in parts, for CUDA graphs: :meth:`advance` counts the step and uploads the rates outside of the
    graph, :meth:`apply` only launches and may be captured.

    Args:
        params: parameters, (name, parameter) pairs, or groups of them, as for every torch optimizer.
        lr: learning rate; groups may have their own, and schedulers change ``group["lr"]``.
        betas: decay of the first and second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled decay; groups may have their own.
        bits: 32, or 8 for block-wise 8-bit moments of parameters of at least 4096 numbers.
        fp32_moments: parameters that keep fp32 moments even so, e.g. embeddings.
        shadow_dtype: type of a 16-bit copy of the parameters that each step writes too (:meth:`shadow`).

    Raises:
        ValueError: for ``bits`` other than 32 and 8, or what ``torch.optim.Optimizer`` refuses.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        bits: int = 32,
        fp32_moments: Collection[torch.Tensor] = (),
        shadow_dtype: torch.dtype | None = None,
    ) -> None:
        if bits not in (32, 8):
            raise ValueError(f"bits={bits}; AdamW's states have 32 or 8")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.bits = bits
        wide = {id(parameter) for parameter in fp32_moments}
        parameters = list(self._parameters())
        flat = [p for p in parameters if p.dtype == torch.float32 and p.requires_grad]
        placed = {id(p) for p in flat}
        self._others = [p for p in parameters if id(p) not in placed]

        def eight_bit(parameter: torch.nn.Parameter) -> bool:
            return bits == 8 and parameter.numel() >= LEAST_8BIT and id(parameter) not in wide

        with torch.no_grad():
            devices = dict.fromkeys(p.device for p in flat)
            self.buffers = [
                FlatBuffer([p for p in flat if p.device == device], eight_bit, shadow_dtype)
                for device in devices
            ]
        self._slots: dict[torch.Tensor, Slot] = {s.parameter: s for b in self.buffers for s in b.slots}
        self._clip: torch.Tensor | None = None
        self._regroup({})

    def _parameters(self) -> Iterable[torch.nn.Parameter]:
        return chain.from_iterable(group["params"] for group in self.param_groups)

    # --- the step

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Zero the gradient buffers and attach the views again; ``set_to_none`` does not matter for them."""
        self._clip = None
        for buffer in self.buffers:
            buffer.zero_gradients()
        for parameter in self._others:
            parameter.grad = None

    @torch.no_grad()
    def gradient_norm(self) -> torch.Tensor:
        """The Euclidean norm of all gradients, fp32 0-d on the device."""
        self._collect()
        norms = [gradient_norm(buffer.gradients_P) for buffer in self.buffers]
        for gradient in self._other_gradients():
            wide = torch.promote_types(gradient.dtype, torch.float32)
            norms.append(torch.linalg.vector_norm(gradient, dtype=wide).float())
        if len(norms) == 1:
            return norms[0]
        return torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))

    @torch.no_grad()
    def clip_(self, max_norm: float) -> torch.Tensor:
        """Let the next step clip gradients to ``max_norm``; returns their norm before, 0-d on the device.

        The gradients themselves stay as they are: the step multiplies while it reads them.
        """
        if len(self.buffers) == 1 and not self._other_gradients():
            self._collect()
            norm, self._clip = norm_and_clip(self.buffers[0].gradients_P, max_norm)
        else:
            norm = self.gradient_norm()
            self._clip = clip_coefficient(norm, max_norm)
        return norm

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step of AdamW; no synchronisation with the device."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._collect()
        self.advance()
        self.apply()
        self._clip = None
        return loss

    def advance(self) -> None:
        """Count a step and send learning rates and bias corrections to the devices."""
        if self._grouping != self._group_sizes():
            self._regroup({parameter: self._rows[row].steps for parameter, row in self._row_of.items()})
        table = []
        for row in self._rows:
            row.steps += 1
            group = self.param_groups[row.group]
            beta1, beta2 = group["betas"]
            rate, eps, decay = float(group["lr"]), group["eps"], group["weight_decay"]
            table.append(adamw_scalars(rate, beta1, beta2, eps, decay, row.steps))
        for buffer in self.buffers:
            host = torch.tensor(table, dtype=torch.float32)
            # Pinned and fresh each time: the copy is asynchronous, and the last one may still be under way.
            host = host.pin_memory() if buffer.device.type == "cuda" else host
            buffer.table_G8.copy_(host, non_blocking=True)

    @torch.no_grad()
    def apply(self) -> None:
        """Launch the step that :meth:`advance` prepared, on gradients that are already in the buffers."""
        for buffer in self.buffers:
            clip = None if self._clip is None else self._clip.to(buffer.device)
            buffer.step(clip)
        if self._other_gradients():
            self._step_others()

    @torch.no_grad()
    def collected_gradients(self) -> list[torch.Tensor]:
        """The buffers that hold all gradients but those of :attr:`others`."""
        self._collect()
        return [buffer.gradients_P for buffer in self.buffers]

    @property
    def others(self) -> list[torch.nn.Parameter]:
        """Parameters that have no place in a flat buffer."""
        return [parameter for parameter in self._others if parameter.requires_grad]

    def _collect(self) -> None:
        for buffer in self.buffers:
            buffer.collect_gradients()

    def _other_gradients(self) -> list[torch.Tensor]:
        return [parameter.grad for parameter in self._others if parameter.grad is not None]

    def _step_others(self) -> None:
        """torch's AdamW on what has no place in a flat buffer, its states as torch keeps them."""
        others = {id(parameter) for parameter in self._others}
        for group in self.param_groups:
            chosen = [p for p in group["params"] if id(p) in others and p.grad is not None]
            for parameter in chosen:
                if not self.state[parameter]:
                    self.state[parameter] = {
                        "step": torch.tensor(0.0),
                        "exp_avg": torch.zeros_like(parameter),
                        "exp_avg_sq": torch.zeros_like(parameter),
                    }
            if not chosen:
                continue
            gradients = [p.grad if self._clip is None else p.grad * self._clip.to(p.device) for p in chosen]
            states = [[self.state[p][key] for p in chosen] for key in ("exp_avg", "exp_avg_sq", "step")]
            adamw(
                chosen, [g.to(p.dtype) for g, p in zip(gradients, chosen, strict=True)], states[0], states[1],
                [], states[2], amsgrad=False, beta1=group["betas"][0], beta2=group["betas"][1],
                lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"], maximize=False,
            )  # fmt: skip

    # --- 16-bit copy

    def shadow(self, parameter: torch.Tensor) -> torch.Tensor | None:
        """The 16-bit copy of a parameter, a view that every step refreshes; None where there is none."""
        slot = self._slots.get(parameter)
        return None if slot is None else slot.shadow

    @torch.no_grad()
    def refresh_shadow(self) -> None:
        """Make the 16-bit copies follow parameters that were loaded or set by hand."""
        for buffer in self.buffers:
            buffer.refresh_shadow()

    # --- groups

    def _group_sizes(self) -> list[int]:
        return [len(group["params"]) for group in self.param_groups]

    def _regroup(self, steps: Mapping[torch.Tensor, int]) -> None:
        """Rows of the table for the groups as they are now, and each parameter's row."""
        known = {id(parameter) for parameter in self._others}
        rows: dict[tuple[int, int], int] = {}
        self._row_of: dict[torch.Tensor, int] = {}
        for index, group in enumerate(self.param_groups):
            for parameter in group["params"]:
                if parameter in self._slots:
                    key = (index, steps.get(parameter, 0))
                    self._row_of[parameter] = rows.setdefault(key, len(rows))
                elif id(parameter) not in known:
                    raise WhetError(
                        "optimizer.new_parameter",
                        f"A parameter of shape {tuple(parameter.shape)} was added to the optimizer after "
                        "its buffers were laid out.",
                        "Pass all parameters that train when FlatAdamW is built; groups may be split later.",
                    )
        dropped = next((p for p in self._slots if p not in self._row_of), None)
        if dropped is not None:
            raise WhetError(
                "optimizer.dropped_parameter",
                f"A parameter of shape {tuple(dropped.shape)} is in no parameter group any more.",
                "Keep every parameter in a group; set its lr and weight_decay to 0 to hold it still.",
            )
        self._rows = [_Row(group, count) for group, count in rows]
        self._grouping = self._group_sizes()
        for buffer in self.buffers:
            buffer.set_rows([self._row_of[slot.parameter] for slot in buffer.slots], len(rows))

    # --- state dict

    def state_dict(self) -> dict[str, Any]:
        """Per parameter: torch.optim.AdamW's layout, or with ``bits=8`` that of bitsandbytes' AdamW8bit.

        The tensors are views of the buffers. Empty before the first step, as torch's.
        """
        saved = super().state_dict()
        for index, parameter in enumerate(self._parameters()):
            slot = self._slots.get(parameter)
            steps = 0 if slot is None else self._rows[self._row_of[parameter]].steps
            if slot is not None and steps:
                moments = self._buffer_of(slot).moments(slot)
                saved["state"][index] = _packed(steps, moments, parameter.shape, self.bits)
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the state of this class, torch.optim.AdamW or AdamW8bit, of either number of bits.

        Raises:
            ValueError: for other groups than this optimizer's.
            WhetError: ``optimizer.state_unknown`` for another optimizer's state.
        """
        saved_ids = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        own = {key: p for key, p in zip(saved_ids, self._parameters(), strict=False) if p in self._slots}
        others = {key: value for key, value in state_dict["state"].items() if key not in own}
        super().load_state_dict({**state_dict, "state": others})
        steps: dict[torch.Tensor, int] = {}
        with torch.no_grad():
            for key, parameter in own.items():
                slot = self._slots[parameter]
                state = state_dict["state"].get(key)
                steps[parameter] = 0 if not state else int(state["step"])
                for moment, value in zip(self._buffer_of(slot).moments(slot), _unpacked(state), strict=True):
                    _restore(moment, value)
        self._regroup(steps)

    def _buffer_of(self, slot: Slot) -> FlatBuffer:
        return next(buffer for buffer in self.buffers if buffer.device == slot.view.device)


def _packed(steps: int, moments: tuple[Moment, Moment], shape: torch.Size, bits: int) -> dict[str, Any]:
    if bits == 32:
        m, v = (moment.view(shape) for moment in moments if isinstance(moment, torch.Tensor))
        return {"step": torch.tensor(float(steps)), "exp_avg": m, "exp_avg_sq": v}
    tensors: dict[str, torch.Tensor] = {}
    for number, moment in enumerate(moments, 1):
        if isinstance(moment, BlockState):
            tensors[f"state{number}"] = moment.codes.view(shape)
            tensors[f"absmax{number}"] = moment.absmax
            tensors[f"qmap{number}"] = dynamic_code(moment.signed, moment.codes.device)
        else:
            tensors[f"state{number}"] = moment.view(shape)
    return {"step": steps, QUANTISED: tensors}


def _unpacked(state: Mapping[str, Any] | None) -> tuple[Moment | None, Moment | None]:
    """First and second moment out of a saved state, flat; None for zeros."""
    if not state:
        return None, None
    flat = {**state, **state.get(QUANTISED, {})}
    if "exp_avg" in flat and "exp_avg_sq" in flat:
        return flat["exp_avg"].flatten(), flat["exp_avg_sq"].flatten()
    if "state1" in flat and "state2" in flat:
        return _moment(flat, 1, signed=True), _moment(flat, 2, signed=False)
    raise WhetError(
        "optimizer.state_unknown",
        f"The saved optimizer state holds {', '.join(sorted(map(str, state)))}; AdamW's is needed.",
        "Resume with the optimizer that wrote the checkpoint, or start with fresh states.",
    )


def plain_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter's saved state as ``torch.optim.AdamW`` keeps it, of either number of bits.

    Raises WhetError ``optimizer.state_unknown`` for another optimizer's state.
    """
    if "exp_avg" in state:
        return dict(state)
    moments = dict(zip(("exp_avg", "exp_avg_sq"), _unpacked(state), strict=True))
    shape = {**state, **state.get(QUANTISED, {})}["state1"].shape
    plain = {
        name: (dequantize_blocks(moment) if isinstance(moment, BlockState) else moment).view(shape)
        for name, moment in moments.items()
        if moment is not None
    }
    return {"step": torch.tensor(float(state["step"])), **plain}


def _moment(flat: Mapping[str, Any], number: int, *, signed: bool) -> Moment:
    values = flat[f"state{number}"].flatten()
    if f"absmax{number}" not in flat:
        return values
    return BlockState(values.to(torch.uint8), flat[f"absmax{number}"], signed)


def _restore(moment: Moment, value: Moment | None) -> None:
    """Write ``value`` into a view of the buffers, bit for bit where both have the same number of bits."""
    if isinstance(moment, torch.Tensor):
        if value is None:
            moment.zero_()
        else:
            moment.copy_(dequantize_blocks(value) if isinstance(value, BlockState) else value)
        return
    if value is None:
        value = BlockState.zeros(moment.codes.numel(), signed=moment.signed)
    elif isinstance(value, torch.Tensor):
        value = quantize_blocks(value, signed=moment.signed)
    moment.codes.copy_(value.codes)
    moment.absmax.copy_(value.absmax)
