"""Put a model on the fast path: its decoder is read by the family's layout and gets a program."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from torch import nn

from ..families import FastLayout, Unsupported, family_of
from ..families.fast_layout import FastSettings, fast_settings
from ..reduced_ends import ReducedHead
from .attention_half import AttentionHalf, AttentionShape
from .decoder import FastDecoder
from .experts import read_experts
from .mlp_half import MlpHalf
from .moe_half import MoeHalf
from .norms import Norm
from .plain_halves import PlainAttentionHalf, PlainMlpHalf
from .program import DecoderProgram, Layer
from .projections import NotFusedError, Projection, Workspace, fp8_classes
from .report import FastPathReport
from .subclass import fast_subclass

PLAIN_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def apply_fast_path(model: Any, dtype: torch.dtype, *, fp8: Collection[str] | None = None) -> FastPathReport:
    """Let a causal model (with or without a LoRA adapter) train and evaluate on whet's kernels.

    A decoder with a task's head, such as one that scores, goes through it too, the head itself staying plain;
    so does one without any head, which embeds.

    Changes the instance in place; it stays the PEFT model it was, saves the same adapter and generates by
    transformers' own code. Calling it again, say after adding an adapter, reads the modules anew.

    Args:
        model: transformers' causal model, or PEFT's wrapper around one.
        dtype: what it computes in; 16- and 32-bit base weights must be of this type.
        fp8: classes of layers whose products run in FP8; by default what the device is made for
            (:func:`.projections.fp8_classes`), or what was asked for before.

    Returns:
        What is fused and, for the rest, why not. A model of an unknown family is left untouched.
    """
    report = FastPathReport()
    causal = causal_model(model)
    config = causal.config.get_text_config()
    layout = family_of(config.model_type).fast
    if isinstance(layout, Unsupported):
        return _left_plain(model, report, layout.reason)
    settings = fast_settings(layout, config.to_dict())
    if isinstance(settings, Unsupported):
        return _left_plain(model, report, settings.reason)
    decoder = decoder_of(causal, layout)
    reason = _whole_refusal(model, causal, decoder, dtype)
    if reason is not None:
        return _left_plain(model, report, reason)
    before = decoder.program if isinstance(decoder, FastDecoder) else None
    device = next(decoder.parameters()).device
    if fp8 is None:
        fp8 = fp8_classes(device) if before is None else before.fp8
    workspace = Workspace(device)
    builder = _Builder(layout, settings, config, dtype, report, workspace, fp8)
    layers = [builder.layer(module, index) for index, module in enumerate(decoder.layers)]
    head = causal.get_output_embeddings()
    if head is not None:
        report.count("loss", None)
    norm = builder.norm(decoder.norm)
    program = DecoderProgram(decoder, head, settings, layers, norm, dtype, report, workspace, fp8)
    if not isinstance(decoder, FastDecoder):
        decoder.__class__ = fast_subclass(FastDecoder, type(decoder))
    decoder.program = program
    if before is not None:
        program.keep, program.chunk = before.keep, before.chunk
    return report


def _left_plain(model: Any, report: FastPathReport, reason: str) -> FastPathReport:
    report.count("decoder", reason)
    take_off_fast_path(model)
    return report


def take_off_fast_path(model: Any) -> None:
    """Give a model that was on the fast path its decoder's own class back."""
    program = program_of(model)
    if program is not None:
        decoder: Any = program.decoder
        decoder.__class__ = next(c for c in type(decoder).__mro__[1:] if not issubclass(c, FastDecoder))
        del decoder.program


def program_of(model: Any) -> DecoderProgram | None:
    """The program of a model on the fast path, None for any other."""
    causal = causal_model(model)
    family = family_of(causal.config.get_text_config().model_type)
    if isinstance(family.fast, Unsupported):
        return None
    decoder = decoder_of(causal, family.fast)
    return decoder.program if isinstance(decoder, FastDecoder) else None


def decoder_of(causal: Any, layout: FastLayout) -> Any:
    """The decoder below a head, or the model itself where it has none, as an embedder's."""
    return getattr(causal, layout.decoder, causal)


def causal_model(model: Any) -> Any:
    """transformers' causal model inside PEFT's wrapper, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _whole_refusal(model: Any, causal: Any, decoder: Any, dtype: torch.dtype) -> str | None:
    """Why a model as a whole stays on plain transformers, None where it does not."""
    if not isinstance(model, PeftModel) and any(p.requires_grad for p in causal.parameters()):
        return "all weights train: plain transformers, in mixed precision"
    head = causal.get_output_embeddings()
    if type(head) is not nn.Linear and not isinstance(head, ModulesToSaveWrapper | ReducedHead | None):
        return f"{type(head).__name__} is no output layer whose loss is fused"
    # Autocast is wanted there, around the whole model; the halves expand reduced weights (4 and 8 bits).
    held = {
        module.weight.dtype
        for name, module in decoder.layers.named_modules()
        if isinstance(module, nn.Linear) and "lora_" not in name and module.weight.dtype in PLAIN_TYPES
    }
    if held - {dtype}:
        return f"weights are held in {min(held - {dtype}, key=str)} and computed in {dtype}"
    return None


class _Builder:
    """Reads a model's modules, layer by layer."""

    def __init__(
        self,
        layout: FastLayout,
        settings: FastSettings,
        config: Any,
        dtype: torch.dtype,
        report: FastPathReport,
        workspace: Workspace,
        fp8: Collection[str],
    ) -> None:
        self.layout, self.settings, self.config = layout, settings, config
        self.dtype, self.report = dtype, report
        self.workspace, self.fp8 = workspace, fp8

    def layer(self, module: Any, index: int) -> Layer:
        """Both halves of a decoder layer, each fused or with the reason why not."""
        return Layer(self.attention(module, index), self.mlp(module, index), self.settings.ropes[index])

    def norm(self, module: nn.Module) -> Norm:
        return Norm(module, float(self.config.rms_norm_eps), self.layout.norm_offset)

    def attention(self, module: Any, index: int) -> AttentionHalf | PlainAttentionHalf:
        layout, inner = self.layout, module.self_attn
        if layout.fused_qkv:
            projections = [getattr(inner, layout.fused_qkv)]
        else:
            projections = [inner.q_proj, inner.k_proj, inner.v_proj]
        norms = [getattr(inner, name) for name in layout.qk_norm or ()]
        common: dict[str, Any] = {
            "norm": self.norm(getattr(module, layout.input_norm)),
            "shape": self._shape(index),
            "q_norm": self.norm(norms[0]) if norms else None,
            "k_norm": self.norm(norms[1]) if norms else None,
            "post_norm": self._post_norm(module, 0),
            "multiplier": self.settings.residual_multiplier,
        }
        try:
            self._check_frozen(*(common[name] for name in ("norm", "q_norm", "k_norm", "post_norm")))
            qkv, out = self._projection(projections), self._projection([inner.o_proj])
        except NotFusedError as error:
            self.report.count("attention", str(error))
            return PlainAttentionHalf(qkv=projections, out=inner.o_proj, **common)
        self.report.count("attention")
        return AttentionHalf(qkv=qkv, out=out, **common)

    def mlp(self, module: Any, index: int) -> MlpHalf | MoeHalf | PlainMlpHalf:
        layout, inner = self.layout, module.mlp
        common: dict[str, Any] = {
            "norm": self.norm(getattr(module, layout.mlp_norm)),
            "kind": self.settings.activation,
            "post_norm": self._post_norm(module, 1),
            "multiplier": self.settings.residual_multiplier,
        }
        if self.settings.sparse[index]:
            return self.experts(inner, common)
        fused = layout.fused_gate_up
        gate_up = [getattr(inner, fused)] if fused else [inner.gate_proj, inner.up_proj]
        try:
            self._check_frozen(common["norm"], common["post_norm"])
            into, down = self._projection(gate_up), self._projection([inner.down_proj])
        except NotFusedError as error:
            self.report.count("mlp", str(error))
            return PlainMlpHalf(mlp=inner, gate_up=gate_up, down=inner.down_proj, **common)
        self.report.count("mlp")
        return MlpHalf(gate_up=into, down=down, **common)

    def experts(self, block: Any, common: dict[str, Any]) -> MoeHalf | PlainMlpHalf:
        """The MLP half of a sparse layer; no family with experts norms or scales its result."""
        try:
            self._check_frozen(common["norm"])
            experts = read_experts(block, self.dtype)
        except NotFusedError as error:
            self.report.count("mlp", f"a mixture of experts runs on transformers' own module: {error}")
            return PlainMlpHalf(mlp=block, gate_up=[], down=None, **common)
        self.report.count("mlp")
        return MoeHalf(common["norm"], experts, common["kind"])

    def _projection(self, modules: list[nn.Module]) -> Projection:
        return Projection(modules, self.workspace, self.dtype, self.fp8)

    def _check_frozen(self, *norms: Norm | None) -> None:
        for norm in norms:
            if norm is not None:
                norm.check_frozen()

    def _post_norm(self, module: Any, half: int) -> Norm | None:
        names = self.layout.post_norms
        return None if names is None else self.norm(getattr(module, names[half]))

    def _shape(self, index: int) -> AttentionShape:
        heads = int(self.config.num_attention_heads)
        head_dim = getattr(self.config, "head_dim", None) or self.config.hidden_size // heads
        return AttentionShape(
            heads=heads,
            kv_heads=int(self.config.num_key_value_heads),
            head_dim=int(head_dim),
            scale=self.settings.attention_scale,
            window=self.settings.windows[index],
            softcap=self.settings.attention_softcap,
        )
