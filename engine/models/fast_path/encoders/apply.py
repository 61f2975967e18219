"""Put an encoder on the fast path: it is read by the family's layout and gets a program."""

from __future__ import annotations

from typing import Any, cast

import torch
from peft import PeftModel
from torch import nn

from ...families import family_of
from ...families.descriptor import EncoderLayout
from ...families.fast_layout import layer_types
from ..apply import apply_fast_path, program_of
from ..program import DecoderProgram
from ..projections import NotFusedError, Projection, Workspace
from ..report import FastPathReport
from ..subclass import fast_subclass
from .attention import EncoderAttention
from .mlp import EncoderMlp
from .module import FastEncoder
from .norms import LayerNorm
from .program import Embeddings, EncoderProgram, Layer

GELU = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu_fast": "tanh"}
"""transformers' names of the MLP's function -> the kernel's form of GELU."""


def apply_fast_encoder(model: Any, dtype: torch.dtype) -> FastPathReport:
    """Let an encoder (with or without LoRA, alone or under a task's head) run on whet's kernels.

    Changes the instance in place; it stays the module it was and saves the same. Calling it again reads the
    modules anew.

    Args:
        model: transformers' model, or PEFT's wrapper around one.
        dtype: what it computes in; 16- and 32-bit base weights must be of this type.

    Returns:
        What is fused, or why nothing is; the model is untouched then.
    """
    report = FastPathReport()
    encoder: Any = base_encoder(model)
    take_off(encoder)
    layout = family_of(encoder.config.model_type).encoder
    try:
        if layout is None:
            raise NotFusedError(f"{encoder.config.model_type} is no encoder that the fast path knows")
        reason = _refusal(encoder.config.to_dict(), layout)
        if reason is not None:
            raise NotFusedError(reason)
        program = _read(encoder, layout, dtype, report)
    except NotFusedError as error:
        report.fused.clear()
        report.total.clear()
        report.count("encoder", str(error))
        return report
    encoder.__class__ = cast(Any, fast_subclass(FastEncoder, type(encoder)))
    encoder.program = program
    return report


def apply_fast_embedder(model: Any, dtype: torch.dtype) -> FastPathReport:
    """The fast path of encoders, or that of decoders for one that embeds; arguments as both have them."""
    if family_of(base_encoder(model).config.model_type).encoder is not None:
        return apply_fast_encoder(model, dtype)
    return apply_fast_path(model, dtype)


def embedder_program_of(model: Any) -> EncoderProgram | DecoderProgram | None:
    """What runs an embedding model's transformer on the fast path; None where nothing does."""
    return encoder_program_of(model) or program_of(model)


def base_encoder(model: Any) -> Any:
    """transformers' base model inside PEFT's wrapper and under a task's head."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    return inner.base_model  # transformers' property: itself where it has no head


def encoder_program_of(model: Any) -> EncoderProgram | None:
    """The program of an encoder on the fast path, None for any other model."""
    encoder = base_encoder(model)
    return encoder.program if isinstance(encoder, FastEncoder) else None


def take_off(encoder: Any) -> None:
    """Give an encoder that was on the fast path its own class back."""
    if isinstance(encoder, FastEncoder):
        own: Any = encoder
        own.__class__ = next(c for c in type(encoder).__mro__[1:] if not issubclass(c, FastEncoder))
        del own.program


def _refusal(config: dict[str, Any], layout: EncoderLayout) -> str | None:
    """What the layers of a configuration do that the fused ones do not."""
    if layout.slow is not None:
        return layout.slow
    kind = config.get("hidden_activation") or config.get("hidden_act")
    if kind not in GELU:
        return f"no fused kernel for the activation {kind!r}"
    if config.get("is_decoder") or config.get("add_cross_attention"):
        return "it is set up as a decoder"
    if config.get("position_embedding_type", "absolute") not in ("absolute", None):
        return f"positions are {config['position_embedding_type']}"
    for key in ("attention_dropout", "mlp_dropout", "embedding_dropout"):
        if config.get(key):
            return f"{key}={config[key]}"
    return None


def _read(encoder: Any, layout: EncoderLayout, dtype: torch.dtype, report: FastPathReport) -> EncoderProgram:
    """Raises NotFusedError with the reason where a part is of another kind."""
    config = encoder.config
    words: nn.Embedding = encoder.get_submodule(layout.words)
    workspace = Workspace(words.weight.device)
    windows, ropes = _windows(config, layout), _ropes(config, layout)
    modules: list[Any] = list(encoder.get_submodule(layout.layers))
    heads, approximate = int(config.num_attention_heads), GELU[_activation(config)]
    norms: list[tuple[LayerNorm | None, LayerNorm]] = [_norms(module, layout) for module in modules]
    if not layout.pre_norm:
        # Each half is led by the norm after the half before; the first one's input is normed already.
        last = norms[-1][1]
        behind = [_norm(module.get_submodule(layout.norms[0])) for module in modules]
        norms = list(zip([None, *(second for _, second in norms[:-1])], behind, strict=True))
    else:
        last = _norm(encoder.get_submodule(str(layout.final_norm)))
    layers = []
    for module, pair, window, rope in zip(modules, norms, windows, ropes, strict=True):
        common: dict[str, Any] = {"post_norm": not layout.pre_norm}

        def projection(*names: str, of: Any = module) -> Projection:
            return Projection([of.get_submodule(name) for name in names], workspace, dtype)

        attention = EncoderAttention(
            pair[0], projection(*layout.qkv), projection(layout.output), heads=heads, window=window, **common
        )
        mlp = EncoderMlp(
            pair[1],
            projection(layout.mlp[0]),
            projection(layout.mlp[1]),
            approximate=approximate,
            gated=layout.gated,
            **common,
        )
        layers.append(Layer(attention, mlp, rope, module))
        report.count("attention")
        report.count("mlp")
    return EncoderProgram(
        encoder,
        _embeddings(encoder, layout, words),
        layers,
        last,
        dtype,
        report,
        workspace,
        hidden_dropout=float(getattr(config, "hidden_dropout_prob", 0.0)),
        attention_dropout=float(getattr(config, "attention_probs_dropout_prob", 0.0)),
    )


def _embeddings(encoder: Any, layout: EncoderLayout, words: nn.Embedding) -> Embeddings:
    absolute = layout.positions == "absolute"
    inside = layout.words.rpartition(".")[0]
    tables = encoder.get_submodule(inside)
    return Embeddings(
        words,
        tables.position_embeddings if absolute else None,
        tables.token_type_embeddings if layout.token_types else None,
        LayerNorm(encoder.get_submodule(layout.embedding_norm)),
        first=int(encoder.config.pad_token_id) + 1 if layout.after_padding else 0,
    )


def _norms(module: Any, layout: EncoderLayout) -> tuple[LayerNorm | None, LayerNorm]:
    first, second = (module.get_submodule(name) for name in layout.norms)
    return None if isinstance(first, nn.Identity) else _norm(first), _norm(second)


def _norm(module: Any) -> LayerNorm:
    if type(module) is not nn.LayerNorm:
        raise NotFusedError(f"{type(module).__name__} is no layer norm")
    norm = LayerNorm(module)
    norm.check_frozen()
    return norm


def _activation(config: Any) -> str:
    return str(config.to_dict().get("hidden_activation") or config.to_dict()["hidden_act"])


def _windows(config: Any, layout: EncoderLayout) -> list[int | None]:
    layers = int(config.num_hidden_layers)
    if layout.positions != "rotary":
        return [None] * layers
    kinds = layer_types(config.to_dict())
    return [int(config.sliding_window) if kind == "sliding_attention" else None for kind in kinds]


def _ropes(config: Any, layout: EncoderLayout) -> list[str | None]:
    layers = int(config.num_hidden_layers)
    return list(layer_types(config.to_dict())) if layout.positions == "rotary" else [None] * layers
