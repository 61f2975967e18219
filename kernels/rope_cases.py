"""Inputs with which the rotary embedding is checked and timed."""

from __future__ import annotations

import torch

from .spec import Case, Inputs, bytes_of


def rotary_tables(
    positions: int, width: int, theta: float = 10000.0, *, device: torch.device | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain tables cos and sin (positions, width) in float32: angle = position / theta^(2 i / width)."""
    inverse = theta ** -(torch.arange(0, width, 2, device=device, dtype=torch.float64) / width)
    angles = torch.arange(positions, device=device, dtype=torch.float64)[:, None] * inverse
    both = torch.cat((angles, angles), dim=-1)
    return both.cos().float(), both.sin().float()


def rope_inputs(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    """Tokens of a wider buffer, positions of two packed documents, and weights where the case has a norm."""
    sizes = {"width": case.sizes["size"], "norm": False, "offset": 0.0, "padding": 0, **case.sizes}
    generator = torch.Generator(device).manual_seed(seed)
    tokens, heads, kv_heads, size = (int(sizes[name]) for name in ("tokens", "heads", "kv_heads", "size"))
    total = heads + 2 * kv_heads
    buffer = torch.randn(tokens, total * size + sizes["padding"], generator=generator, device=device).to(
        dtype
    )
    cos, sin = rotary_tables(max(tokens, 1), sizes["width"], device=device)
    inputs: Inputs = {
        "qkv": buffer[:, : total * size].unflatten(1, (total, size)),
        "cos": cos,
        "sin": sin,
        "positions": torch.arange(tokens, device=device) % max(tokens // 2, 1),
        "heads": heads,
        "kv_heads": kv_heads,
        "offset": sizes["offset"],
    }
    if sizes["norm"]:
        pair = torch.randn(2, size, generator=generator, device=device).mul_(0.3).add_(1 - sizes["offset"])
        inputs["q_weight"], inputs["k_weight"] = pair.to(dtype)
    return inputs


def rope_traffic(inputs: Inputs) -> int:
    """Queries, keys and values, of each table one half row a token, positions."""
    angles = len(inputs["positions"]) * inputs["cos"].shape[1] * inputs["cos"].element_size()
    return 2 * bytes_of(inputs["qkv"]) + angles + bytes_of(inputs["positions"])


def rope_backward_traffic(inputs: Inputs) -> int:
    """The same, and with a norm the queries and keys before it."""
    turned = inputs["qkv"][:, : inputs["heads"] + inputs["kv_heads"]]
    return rope_traffic(inputs) + (bytes_of(turned) if "q_weight" in inputs else 0)


_SMALL = {"tokens": 5, "heads": 4, "kv_heads": 2, "size": 32}
_LARGE = {"tokens": 8192, "heads": 32, "kv_heads": 8, "size": 128}

CASES = (
    Case("plain", _SMALL),
    Case("norm", {**_SMALL, "norm": True}),
    Case("norm offset strided", {**_SMALL, "norm": True, "offset": 1.0, "padding": 16}),
    Case("partial", {**_SMALL, "width": 12}),
    Case("partial norm", {"tokens": 3, "heads": 9, "kv_heads": 1, "size": 40, "width": 24, "norm": True}),
    Case("odd", {"tokens": 7, "heads": 11, "kv_heads": 1, "size": 48, "padding": 5}),
    Case("empty", {**_SMALL, "tokens": 0, "norm": True}),
)
TIMED = (
    Case("8b", _LARGE),
    Case("0.6b", {**_LARGE, "heads": 16, "norm": True}),
    Case("8b norm", {**_LARGE, "norm": True}),
    Case("gemma", {"tokens": 8192, "heads": 8, "kv_heads": 4, "size": 256, "norm": True, "offset": 1.0}),
)
