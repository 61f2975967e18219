"""Linear layers as PEFT and bitsandbytes leave them, read as one product for the kernels.

The modules stay where they are and keep their names; a dense base moves into side-by-side storage of which
their weights become views, so that plain transformers, PEFT and saving go on as before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from whet.kernels.decode_linear import ScaledWeight, Weight
from whet.kernels.fp8 import converts_natively
from whet.kernels.int8 import dequantize_int8
from whet.kernels.lora_base import Base, DenseBase, ExpandedBase, ExpandedFp8Base, Fp8Base
from whet.kernels.lora_linear import Factor, LoraStack, padded_rank
from whet.kernels.lora_refresh import Refresh
from whet.kernels.nf4 import Nf4Weight, dequantize_nf4
from whet.kernels.nf4_fp8 import dequantize_nf4_fp8

from ..fp8 import Fp8Linear

FP8_STEP = 16
"""Elements: what the FP8 units want a matrix's sides to be multiples of."""


class NotFusedError(Exception):
    """Why a module stays on the plain path; the text is for people."""


class Workspace:
    """One buffer a device that quantised weights are expanded into, one product after another."""

    def __init__(self, device: torch.device) -> None:
        self.buffer: torch.Tensor | None = None
        self.device = device

    def __call__(self, rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
        """(rows, columns) in ``dtype``; whatever was there before is lost."""
        size = rows * columns * dtype.itemsize
        if self.buffer is None or self.buffer.numel() < size:
            self.buffer = torch.empty(size, dtype=torch.uint8, device=self.device)
        return self.buffer[:size].view(dtype).view(rows, columns)


class Projection:
    """One or several linear layers that read the same input.

    Args:
        modules: PEFT layers or plain ones, in the order of their outputs.
        workspace: shared by all projections of a model.
        dtype: what the model computes in.
        fp8: names of the layers' classes whose products run in FP8; of :func:`fp8_classes`.

    Raises:
        NotFusedError: with the reason, when a layer is of a kind the kernels do not compute.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        workspace: Workspace,
        dtype: torch.dtype,
        fp8: Collection[str] | None = None,
    ) -> None:
        self.dtype, self.fp8 = dtype, fp8_classes(workspace.device) if fp8 is None else fp8
        self.modules: list[Any] = list(modules)
        self.layers = [_base_layer(module) for module in modules]
        self.adapters = [_adapter_name(module) for module in modules]
        shapes = [_shape(layer) for layer in self.layers]
        self.outputs = tuple(outputs for outputs, _ in shapes)
        self.inputs = shapes[0][1]
        self.has_bias = any(layer.bias is not None for layer in self.layers)
        pairs = list(zip(self.modules, self.adapters, strict=True))
        ranks = [0 if name is None else _rank(module, name) for module, name in pairs]
        like = torch.empty((), dtype=dtype, device=workspace.device)
        self.stack = LoraStack(self._base(workspace, padded_rank(ranks)), self.outputs, ranks, like)

    def parameters(self) -> list[torch.Tensor | None]:
        """A_1, B_1, A_2, B_2, ...; None where a layer's adapter is absent or switched off."""
        found: list[torch.Tensor | None] = []
        for module, name in zip(self.modules, self.adapters, strict=True):
            if name is not None and module.merged and module.disable_adapters:
                module.unmerge()  # as PEFT's own forward pass does it
            if name is None or module.disable_adapters or module.merged:
                found += [None, None]
            else:
                found += _weights(module, name)
        return found

    def refreshes(self) -> list[Refresh]:
        """Put the adapters as they are now in force; what has to be copied for that."""
        factors: list[Factor | None] = []
        parameters = self.parameters()
        for index, (module, name) in enumerate(zip(self.modules, self.adapters, strict=True)):
            a, b = parameters[2 * index : 2 * index + 2]
            if name is None or a is None or b is None:
                factors.append(None)
                continue
            dropout: Any = module.lora_dropout[name]
            drops = isinstance(dropout, nn.Dropout) and dropout.training
            factors.append(Factor(a, b, module.scaling[name], dropout.p if drops else 0.0))
        return self.stack.put(factors)

    @property
    def has_dropout(self) -> bool:
        """Whether an adapter that was read drops elements while it trains."""
        named = zip(self.modules, self.adapters, strict=True)
        drops: list[Any] = [module.lora_dropout[name] for module, name in named if name is not None]
        return any(isinstance(drop, nn.Dropout) and drop.p > 0 for drop in drops)

    def knows(self, adapter: str) -> bool:
        """Whether another adapter can take the place of the one that was read."""
        for module, name, rank in zip(self.modules, self.adapters, self.stack.ranks, strict=True):
            has = isinstance(module, LoraLayer) and adapter in module.lora_A
            if has != (name is not None):
                return False
            if has and (_rank(module, adapter) != rank or adapter in module.lora_variant):
                return False
        return True

    def refreshes_of(self, adapter: str) -> list[Refresh]:
        """Put another adapter, one that it :meth:`knows`, in force without dropout; what is to be copied."""
        return self.stack.put(
            [
                None if name is None else Factor(*_weights(module, adapter), module.scaling[adapter], 0.0)
                for module, name in zip(self.modules, self.adapters, strict=True)
            ]
        )

    def stored(self) -> list[Weight]:
        """The frozen weights as they are held, for products with few rows: side by side as one, or one a
        layer."""
        base = self.stack.base
        if isinstance(base, DenseBase):
            return [base.wide_NX[:, : self.inputs]]
        return [_stored(layer) for layer in self.layers]

    def bias(self) -> torch.Tensor | None:
        """All biases beside one another, (N,); zeros for a layer without one."""
        if not self.has_bias:
            return None
        like = next(layer.bias for layer in self.layers if layer.bias is not None)
        parts = [
            layer.bias if layer.bias is not None else like.new_zeros(outputs)
            for layer, outputs in zip(self.layers, self.outputs, strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _base(self, workspace: Workspace, rank: int) -> Base:
        kinds = {type(layer).__name__ for layer in self.layers}
        aligned = not any(size % FP8_STEP for size in (self.inputs, *self.outputs))
        in_fp8 = aligned and kinds <= set(self.fp8)
        if kinds == {"Linear4bit"}:
            weights = [_four_bits(layer) for layer in self.layers]
            if in_fp8:
                pairs = list(zip(self.outputs, map(_to_fp8, weights), strict=True))
                return ExpandedFp8Base(pairs, self.inputs, workspace, workspace.device)
            expanders = [_expand_4bit(weight) for weight in weights]
        elif kinds == {"Linear8bitLt"}:
            expanders = [_expand_8bit(layer) for layer in self.layers]
        elif kinds == {"Fp8Linear"}:
            if in_fp8:
                return self._fp8_side_by_side()
            expanders = [_expand_fp8(layer) for layer in self.layers]
        elif all(type(layer) is nn.Linear for layer in self.layers):
            return self._side_by_side(rank)
        else:
            raise NotFusedError(f"{', '.join(sorted(kinds))} is no layer the kernels know")
        return ExpandedBase(list(zip(self.outputs, expanders, strict=True)), self.inputs, workspace)

    def _fp8_side_by_side(self) -> Fp8Base:
        """One matrix of which the layers' weights become views; a layer by itself stays where it is."""
        layers: list[Fp8Linear] = self.layers
        if len(layers) == 1:
            return Fp8Base(layers[0].weight.data, layers[0].scale)
        bits_NK = torch.cat([layer.weight.data.view(torch.uint8) for layer in layers])
        base = Fp8Base(bits_NK.view(torch.float8_e4m3fn), torch.cat([layer.scale for layer in layers]))
        outputs = list(self.outputs)
        views = zip(layers, base.w8_NK.split(outputs), base.scale_N.split(outputs), strict=True)
        for layer, w8_NK, scale_N in views:
            layer.weight.data, layer.scale = w8_NK, scale_N
        return base

    def _side_by_side(self, rank: int) -> DenseBase:
        if any(layer.weight.requires_grad for layer in self.layers):
            raise NotFusedError("the base weights train")
        held = self.layers[0].weight.dtype
        if held != self.dtype:
            raise NotFusedError(f"weights are held in {held} and computed in {self.dtype}")
        base = DenseBase([layer.weight.data for layer in self.layers], rank)
        for layer, view in zip(self.layers, base.views(self.outputs), strict=True):
            layer.weight.data = view
        return base


def _base_layer(module: nn.Module) -> Any:
    return module.base_layer if isinstance(module, LoraLayer) else module


def _adapter_name(module: Any) -> str | None:
    """The one active LoRA adapter of a layer, None for a layer without."""
    if not isinstance(module, LoraLayer):
        if not isinstance(module, nn.Linear):
            raise NotFusedError(f"{type(module).__name__} is no linear layer")
        return None
    active = [name for name in module.active_adapters if name in module.lora_A]
    if len(active) != 1:
        raise NotFusedError(f"{len(active)} adapters are active on one layer")
    name = active[0]
    if name in module.lora_variant:
        raise NotFusedError(
            f"{type(module.lora_variant[name]).__name__.removesuffix('LinearVariant')} adapter"
        )
    if module.lora_bias.get(name):
        raise NotFusedError("the adapter has a bias of its own")
    return str(name)


def _weights(module: Any, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    return module.lora_A[name].weight, module.lora_B[name].weight


def _rank(module: Any, name: str) -> int:
    return int(module.lora_A[name].weight.shape[0])


def _shape(layer: Any) -> tuple[int, int]:
    """(outputs, inputs); a packed weight's own shape says nothing."""
    if layer.bias is not None and layer.bias.requires_grad:
        raise NotFusedError("biases train")
    return layer.out_features, layer.in_features


def fp8_classes(device: torch.device, *, four_bits: bool = False) -> frozenset[str]:
    """Classes of layers whose products run in FP8 on a device; none before compute capability 8.9.

    Args:
        four_bits: bitsandbytes' 4-bit layers too, which otherwise are multiplied in 16 bits.
    """
    if not converts_natively(device):
        return frozenset()
    return frozenset({"Fp8Linear", "Linear4bit"} if four_bits else {"Fp8Linear"})


def _four_bits(layer: Any) -> Nf4Weight:
    if layer.weight.quant_state is None:
        raise NotFusedError("a 4-bit weight that is not quantised yet")
    if vars(layer.weight.quant_state).get("packing_format_for_cpu"):
        raise NotFusedError("a 4-bit weight that bitsandbytes repacked for this CPU's products")
    return Nf4Weight.from_bnb(layer.weight.quant_state, layer.weight.data)


def _expand_4bit(weight: Nf4Weight) -> Callable[[torch.Tensor], None]:
    return lambda out_NK: _discard(dequantize_nf4(weight, out_NK=out_NK, dtype=out_NK.dtype))


def _to_fp8(weight: Nf4Weight) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda out_NK: dequantize_nf4_fp8(weight, out=out_NK)[1]


def _expand_fp8(layer: Fp8Linear) -> Callable[[torch.Tensor], None]:
    return lambda out_NK: _discard(layer.dense(out=out_NK))


def _expand_8bit(layer: Any) -> Callable[[torch.Tensor], None]:
    if layer.weight.data.dtype != torch.int8:
        raise NotFusedError("an 8-bit weight that is not quantised yet")

    def expand(out_NK: torch.Tensor) -> None:
        dequantize_int8(layer.weight.data, _row_scales(layer), out_NK)

    return expand


def _row_scales(layer: Any) -> torch.Tensor:
    """bitsandbytes moves them from the weight into its own state at the first plain forward."""
    scale: torch.Tensor = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    return scale


def _stored(layer: Any) -> Weight:
    kind = type(layer).__name__
    if kind == "Linear4bit":
        return _four_bits(layer)
    return ScaledWeight(layer.weight.data, layer.scale if kind == "Fp8Linear" else _row_scales(layer))


def _discard(_: object) -> None:
    """The result lies in the output that was given."""
