"""What a layout declares is enough to compute the model: a decoder written from the declarations alone gives
transformers' own logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.tiny_families import DECODERS, FAMILY_CONFIGS, WINDOW, build
from torch.nn.functional import gelu, silu

from whet.engine.models.families import (
    FAMILIES,
    FastLayout,
    FastSettings,
    Unsupported,
    family_of,
    fast_settings,
)
from whet.engine.models.families.fast_layout import layer_types, sparse_layers

FUSED = [name for name in DECODERS if not name.startswith("deepseek")]
TOKENS = 3 * WINDOW

GATES = {"swiglu": silu, "geglu": gelu, "geglu_tanh": lambda x: gelu(x, approximate="tanh")}


def layout_of(name: str) -> FastLayout:
    fast = family_of(FAMILY_CONFIGS[name]().model_type).fast
    assert isinstance(fast, FastLayout)
    return fast


def read(name: str, **changed: Any) -> FastSettings | Unsupported:
    return fast_settings(layout_of(name), FAMILY_CONFIGS[name]().to_dict() | changed)


class Declared:
    """The decoder of the declarations, over a real model's weights (T tokens, D width, H heads, E a head)."""

    def __init__(self, name: str, model: Any) -> None:
        settings = read(name)
        assert isinstance(settings, FastSettings)
        self.layout, self.settings, self.model = layout_of(name), settings, model
        self.decoder, self.eps = getattr(model, self.layout.decoder), model.config.rms_norm_eps

    def norm(self, owner: Any, name: str, x: Any) -> Any:
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        return x * scale * (self.layout.norm_offset + getattr(owner, name).weight)

    def logits(self, ids_1T: Any) -> Any:
        settings = self.settings
        x_TD = torch.nn.functional.embedding(ids_1T[0], self.decoder.embed_tokens.weight)
        x_TD = x_TD * settings.embed_scale * settings.embedding_multiplier
        for index, layer in enumerate(self.decoder.layers):
            halves = (self.attention, self.layout.input_norm), (self.mlp, self.layout.mlp_norm)
            for half, (compute, norm) in enumerate(halves):
                y_TD = compute(layer, index, self.norm(layer, norm, x_TD))
                if self.layout.post_norms:
                    y_TD = self.norm(layer, self.layout.post_norms[half], y_TD)
                x_TD = x_TD + settings.residual_multiplier * y_TD
        logits = self.model.lm_head(self.norm(self.decoder, "norm", x_TD)) * settings.logit_scale
        cap = settings.final_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def attention(self, layer: Any, index: int, x_TD: Any) -> Any:
        inner, config, settings = layer.self_attn, self.model.config, self.settings
        heads, kv_heads, tokens = config.num_attention_heads, config.num_key_value_heads, len(x_TD)
        if self.layout.fused_qkv:
            qkv = getattr(inner, self.layout.fused_qkv)(x_TD)
            head_dim = qkv.shape[1] // (heads + 2 * kv_heads)
            q, k, v = qkv.split([heads * head_dim, kv_heads * head_dim, kv_heads * head_dim], 1)
        else:
            q, k, v = inner.q_proj(x_TD), inner.k_proj(x_TD), inner.v_proj(x_TD)
        q_THE, k_THE, v_THE = (
            part.view(tokens, n, -1) for part, n in ((q, heads), (k, kv_heads), (v, kv_heads))
        )
        if self.layout.qk_norm:
            q_THE = self.norm(inner, self.layout.qk_norm[0], q_THE)
            k_THE = self.norm(inner, self.layout.qk_norm[1], k_THE)
        if settings.ropes[index] is not None:
            q_THE, k_THE = self.rotated(q_THE, index), self.rotated(k_THE, index)
        k_THE, v_THE = (part.repeat_interleave(heads // kv_heads, 1) for part in (k_THE, v_THE))
        scores_HTT = torch.einsum("the,she->hts", q_THE, k_THE) * settings.attention_scale
        cap, window = settings.attention_softcap, settings.windows[index]
        if cap is not None:
            scores_HTT = cap * torch.tanh(scores_HTT / cap)
        seen = torch.ones(tokens, tokens, dtype=torch.bool).tril()
        if window is not None:
            seen &= ~torch.ones_like(seen).tril(-window)
        weights_HTT = scores_HTT.masked_fill(~seen, -torch.inf).softmax(-1)
        return inner.o_proj(torch.einsum("hts,she->the", weights_HTT, v_THE).reshape(tokens, -1))

    def rotated(self, x_THE: Any, index: int) -> Any:
        positions = torch.arange(len(x_THE))[None]
        kind = self.settings.ropes[index]
        arguments = (x_THE, positions, kind) if kind else (x_THE, positions)
        cos, sin = (table[0, :, None] for table in self.decoder.rotary_emb(*arguments))
        width = self.settings.rotary_dim
        assert cos.shape[-1] == width
        turned, rest = x_THE[..., :width], x_THE[..., width:]
        first, second = turned.chunk(2, -1)
        return torch.cat([turned * cos + torch.cat([-second, first], -1) * sin, rest], -1)

    def mlp(self, layer: Any, index: int, x_TD: Any) -> Any:
        gated: Any
        inner, gated = layer.mlp, GATES[self.settings.activation]
        if self.settings.sparse[index]:
            _, weights, chosen = inner.gate(x_TD)
            rows = []
            for token, x_D in enumerate(x_TD):
                parts = []
                for weight, expert in zip(weights[token], chosen[token], strict=True):
                    gate, up = (inner.experts.gate_up_proj[expert] @ x_D).chunk(2)
                    parts.append(weight * (inner.experts.down_proj[expert] @ (gated(gate) * up)))
                rows.append(torch.stack(parts).sum(0))
            return torch.stack(rows)
        if self.layout.fused_gate_up:
            gate, up = getattr(inner, self.layout.fused_gate_up)(x_TD).chunk(2, -1)
        else:
            gate, up = inner.gate_proj(x_TD), inner.up_proj(x_TD)
        return inner.down_proj(gated(gate) * up)


@pytest.mark.parametrize("name", FUSED)
def test_declarations_are_the_model(name: str) -> None:
    model: Any = build(name)
    model.set_attn_implementation("eager")
    ids = torch.randint(3, 128, (1, TOKENS), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, declared = model(input_ids=ids).logits[0], Declared(name, model).logits(ids)
    assert float(expected.std()) > 0.01
    torch.testing.assert_close(declared, expected, rtol=1e-4, atol=1e-4 * float(expected.std()))


@pytest.mark.parametrize("name", FUSED)
def test_named_attributes_exist(name: str) -> None:
    """A layout names modules of the class it is for, and each config key it names is one of the class."""
    layout, model = layout_of(name), build(name)
    layer = getattr(model, layout.decoder).layers[0]
    for attribute in (layout.input_norm, layout.mlp_norm, *(layout.post_norms or ())):
        assert isinstance(layer.get_submodule(attribute), torch.nn.Module)
    inner = {name for name, _ in layer.self_attn.named_children()}
    assert {*(layout.qk_norm or ()), *([layout.fused_qkv] if layout.fused_qkv else ())} <= inner
    config = FAMILY_CONFIGS[name]().to_dict()
    for key in (layout.activation_key, layout.query_scale, layout.residual_multiplier, layout.logits_divisor):
        assert key is None or key in config


def test_windows_and_tables_follow_the_layers() -> None:
    gemma3, smollm3, qwen2 = read("gemma3"), read("smollm3"), read("qwen2-window")
    assert isinstance(gemma3, FastSettings) and gemma3.windows == (WINDOW, None, WINDOW)
    assert gemma3.ropes == ("sliding_attention", "full_attention", "sliding_attention")
    assert isinstance(smollm3, FastSettings) and smollm3.ropes == ("", None, "")
    assert isinstance(qwen2, FastSettings) and qwen2.windows == (None, WINDOW, WINDOW)


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "qwen2-window", "qwen3", "smollm3"])
def test_older_files_state_a_pattern(name: str) -> None:
    """Without ``layer_types`` the family's defaults give the layers that the class would."""
    from transformers import CONFIG_MAPPING

    config = FAMILY_CONFIGS[name]().to_dict()
    stated = {
        key: config[key] for key in config if key not in ("layer_types", "no_rope_layers", "rope_parameters")
    }
    stated = {key: value for key, value in stated.items() if value is not None} | {"num_hidden_layers": 13}
    raw = {**family_of(config["model_type"]).defaults, **stated}
    assert layer_types(raw) == tuple(CONFIG_MAPPING[config["model_type"]](**stated).layer_types)


@pytest.mark.parametrize(
    "name, changed, word",
    [
        ("llama", {"hidden_act": "relu2"}, "relu2"),
        ("llama", {"attention_dropout": 0.1}, "attention_dropout"),
        ("phi3", {"resid_pdrop": 0.1}, "resid_pdrop"),
        ("mixtral", {"router_jitter_noise": 0.01}, "router_jitter_noise"),
        ("qwen3_moe", {"output_router_logits": True}, "balancing"),
        ("gemma3", {"use_bidirectional_attention": True}, "causal"),
    ],
)
def test_what_the_fused_layer_lacks_is_refused_by_name(name: str, changed: dict[str, Any], word: str) -> None:
    settings = read(name, **changed)
    assert isinstance(settings, Unsupported) and word in settings.reason


def test_activations_as_the_classes_read_them() -> None:
    old_gemma, exact = read("gemma", hidden_act="gelu"), read("llama", hidden_act="gelu")
    assert isinstance(old_gemma, FastSettings) and old_gemma.activation == "geglu_tanh"
    assert isinstance(exact, FastSettings) and exact.activation == "geglu"


def test_tables_that_follow_the_length_are_marked() -> None:
    factors = [1.0] * 8
    longrope = {"rope_type": "longrope", "short_factor": factors, "long_factor": factors, "rope_theta": 1e4}
    marked, plain = read("phi3", rope_parameters=longrope), read("phi3")
    assert isinstance(marked, FastSettings) and marked.rope_follows_length
    assert isinstance(plain, FastSettings) and not plain.rope_follows_length


def test_sparse_layers_by_all_three_rules() -> None:
    assert sparse_layers({"num_hidden_layers": 4, "first_k_dense_replace": 1}) == (False, True, True, True)
    assert sparse_layers({"num_hidden_layers": 4, "decoder_sparse_step": 2}) == (False, True, False, True)
    assert sparse_layers({"num_hidden_layers": 3, "mlp_only_layers": [1]}) == (True, False, True)


def test_every_refusal_has_its_reason() -> None:
    reasons = {family.name: family.fast.reason for family in FAMILIES if isinstance(family.fast, Unsupported)}
    assert {"deepseek_v2", "deepseek_v3", "bert", "xlm_roberta", "mpnet", "modernbert"} < reasons.keys()
    assert all(len(reason) > 20 for reason in reasons.values())
