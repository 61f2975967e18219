"""Linear layers rounded to FP8 while transformers reads a 16-bit checkpoint, one weight at a time.

Registered with transformers as a quantisation method of its own: each weight goes to the device in 16 bits,
is rounded there and let go, so that beside the finished layers one matrix stands in 16 bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.core_model_loading import ConversionOps
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from whet.kernels.fp8 import quantize_rows

from .fp8 import Fp8Linear

METHOD = "whet_fp8"


@register_quantization_config(METHOD)
class Fp8Config(QuantizationConfigMixin):
    """Row-scaled FP8 for all linear layers but the head."""

    def __init__(self, **_: Any) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]  # registered by name


@register_quantizer(METHOD)
class Fp8Quantizer(HfQuantizer):
    """What transformers asks while it loads."""

    requires_calibration = False

    def param_needs_quantization(self, model: Any, param_name: str, **_: Any) -> bool:
        path, name = param_name.rpartition(".")[::2]
        return name == "weight" and isinstance(model.get_submodule(path), Fp8Linear)

    def param_element_size(self, model: Any, param_name: str, param: torch.Tensor) -> float:
        """Bytes an element, for the room that transformers reserves beforehand."""
        return 1.0 if self.param_needs_quantization(model, param_name) else param.element_size()

    def get_quantize_ops(self) -> ConversionOps:
        return _Round()

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        """Exports read the 16-bit checkpoint; rounded weights are written nowhere."""
        return False

    @property
    def is_trainable(self) -> bool:
        """With an adapter on top."""
        return True

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> Any:
        head = model.get_output_embeddings()
        linear = [
            (path, part)
            for path, part in model.named_modules()
            if type(part) is nn.Linear and part is not head
        ]
        for path, part in linear:
            model.set_submodule(path, _empty(part))
        return model


def _empty(linear: nn.Linear) -> Fp8Linear:
    """A layer of the same shape whose weight comes. Its placeholder has the compute type: transformers casts
    what it reads to the placeholder's."""
    layer = Fp8Linear(
        linear.in_features, linear.out_features, linear.bias is not None, linear.weight.dtype, device="meta"
    )
    layer.weight = nn.Parameter(linear.weight, requires_grad=False)
    return layer


class _Round(ConversionOps):
    """One weight as it arrives to FP8 and its scales."""

    def convert(self, input_dict: dict[str, Any], *_: Any, model: Any = None, **__: Any) -> dict[str, Any]:
        rounded: dict[str, Any] = {}
        for name, found in input_dict.items():
            path = name.rpartition(".")[0]
            w8_NK, scale_N = quantize_rows(found[0] if isinstance(found, list) else found)
            model.get_submodule(path)._is_hf_initialized = True
            rounded[name] = nn.Parameter(w8_NK, requires_grad=False)
            rounded[f"{path}.scale"] = scale_N
        return rounded
