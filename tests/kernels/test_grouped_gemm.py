"""Mixture-of-experts kernels beside transformers' experts and PEFT's LoRA on their parameters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import ParamWrapper
from torch import nn
from transformers import MixtralConfig, Qwen3MoeConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from whet.kernels import grouped_gemm, grouped_gemm_tiles
from whet.kernels.backend import forced, interpreting
from whet.kernels.descriptors import describable
from whet.kernels.grouped_gemm import grouped_linear, grouped_matmul, grouped_outer, stacked_factors
from whet.kernels.grouped_gemm_tiles import matmul_tile
from whet.kernels.moe import ExpertLinear, moe_mlp
from whet.kernels.moe_routing import route
from whet.kernels.spec import relative_error


@pytest.fixture(params=["reference", *(["triton"] if interpreting() else [])])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with forced(request.param):
        yield request.param


def qwen3() -> nn.Module:
    config = Qwen3MoeConfig(
        hidden_size=24, moe_intermediate_size=20, num_experts=6, num_experts_per_tok=3, norm_topk_prob=True
    )
    config._experts_implementation = "eager"
    return Qwen3MoeSparseMoeBlock(config)


def mixtral() -> nn.Module:
    config = MixtralConfig(hidden_size=24, intermediate_size=20, num_local_experts=4, num_experts_per_tok=2)
    config._experts_implementation = "eager"
    return MixtralSparseMoeBlock(config)


class Block(nn.Module):
    """A sparse block under a name that `target_parameters` can match."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mlp = make()
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mlp(x)


def with_lora(make: Any, rank: int = 4) -> nn.Module:
    targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    config = LoraConfig(r=rank, lora_alpha=8, target_modules=[], target_parameters=targets)
    model = get_peft_model(Block(make), config)  # type: ignore[arg-type]
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def factors(model: nn.Module) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """lora_A and lora_B of each wrapped expert parameter, by its name."""
    wrappers: list[Any] = [m for m in model.modules() if isinstance(m, ParamWrapper)]
    return {m.parameter_name: (m.lora_A["default"].weight, m.lora_B["default"].weight) for m in wrappers}


@pytest.mark.parametrize("make", [qwen3, mixtral])
def test_like_transformers_and_peft(make: Any, backend: str) -> None:
    """Output, and gradients of x (through the router too) and of all LoRA factors in PEFT's own layout."""
    model = with_lora(make)
    block = next(m for m in model.modules() if isinstance(m, Block)).mlp
    experts = block.experts.get_base_layer()
    lora = factors(model)
    assert set(lora) == {"gate_up_proj", "down_proj"}
    x = torch.randn(2, 5, 24, requires_grad=True)
    leaves = [x, *(factor for pair in lora.values() for factor in pair)]
    expected = model(x)
    upstream = torch.randn_like(expected)
    exact = torch.autograd.grad(expected, leaves, upstream)

    def layer(name: str) -> ExpertLinear:
        a, b = stacked_factors(*lora[name], experts.num_experts)
        return ExpertLinear(getattr(experts, name), a, b, scaling=2.0)

    tokens = x.reshape(-1, 24)
    _, weights, chosen = block.gate(tokens)
    ours = moe_mlp(tokens, chosen, weights, layer("gate_up_proj"), layer("down_proj")).view_as(expected)
    assert relative_error(ours, expected) < 1e-6
    for gradient, truth in zip(torch.autograd.grad(ours, leaves, upstream), exact, strict=True):
        assert relative_error(gradient, truth) < 1e-5


def test_routing() -> None:
    experts = torch.tensor([[2, 0], [0, 3], [2, 3], [3, 0]])
    routing = route(experts, 5)
    assert routing.offsets_X1.tolist() == [0, 3, 3, 5, 8, 8]
    assert routing.tokens_S.tolist() == [0, 1, 3, 0, 2, 1, 2, 3]
    assert torch.equal(experts.flatten()[routing.slots_S], experts.flatten().sort().values)
    for token in range(4):
        for slot in range(2):
            row = int(routing.positions_TK[token, slot])
            assert routing.tokens_S[row] == token
            start, stop = routing.offsets_X1[experts[token, slot] :][:2]
            assert start <= row < stop


def test_one_expert_is_a_linear_layer_with_lora(backend: str) -> None:
    """Several row tiles, a remainder in each direction."""
    torch.manual_seed(1)
    x, w, a, b = torch.randn(150, 70), torch.randn(1, 90, 70), torch.randn(1, 5, 70), torch.randn(1, 90, 5)
    offsets = torch.tensor([0, 150], dtype=torch.int32)
    y = grouped_linear(x, w, offsets, a, b, 0.5)
    assert relative_error(y, x @ (w[0] + 0.5 * b[0] @ a[0]).T) < 1e-6


def test_frozen_weights_get_no_gradient(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def recorded(*args: Any, **kwargs: Any) -> torch.Tensor:
        made.append(args[0].shape)
        return grouped_outer(*args, **kwargs)

    monkeypatch.setattr("whet.kernels.grouped_gemm.grouped_outer", recorded)
    offsets = torch.tensor([0, 2, 5], dtype=torch.int32)
    x = torch.randn(5, 8, requires_grad=True)
    a, b = torch.randn(2, 3, 8, requires_grad=True), torch.randn(2, 4, 3)
    grouped_linear(x, torch.randn(2, 4, 8), offsets, a, b).sum().backward()
    assert made == [(5, 3)]  # A's alone
    assert a.grad is not None and x.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_with_fp32_factors(dtype: torch.dtype, backend: str) -> None:
    """LoRA kept in fp32 gets fp32 gradients."""
    torch.manual_seed(2)
    offsets = torch.tensor([0, 9, 9, 20], dtype=torch.int32)
    x, w = torch.randn(20, 32).to(dtype), torch.randn(3, 16, 32).to(dtype)
    a = torch.randn(3, 4, 32, requires_grad=True)
    b = torch.randn(3, 16, 4, requires_grad=True)
    y = grouped_linear(x, w, offsets, a, b)
    y.sum().backward()
    assert y.dtype == dtype and a.grad is not None and b.grad is not None
    assert a.grad.dtype == b.grad.dtype == torch.float32
    exact = grouped_outer(torch.ones(20, 16), x.float() @ torch.eye(32), offsets)
    exact_a = torch.einsum("xnr,xnd->xrd", b.detach(), exact)
    assert relative_error(a.grad, exact_a) < 2e-2
    assert not a.grad[1].any() and not b.grad[1].any()


@pytest.mark.parametrize("transposed", [False, True])
def test_a_sum_over_nothing_is_zero(backend: str, transposed: bool) -> None:
    """Of a width of 0 only the second product is left, if there is one."""
    offsets = torch.tensor([0, 2, 5], dtype=torch.int32)
    x, w = torch.zeros(5, 0), torch.zeros(2, *((0, 7) if transposed else (7, 0)))
    y = grouped_matmul(x, w, offsets, transposed=transposed)
    assert torch.equal(y, torch.zeros(5, 7))
    h, b = torch.ones(5, 3), torch.ones(2, *((3, 7) if transposed else (7, 3)))
    assert torch.equal(grouped_matmul(x, w, offsets, h, b, transposed=transposed), torch.full((5, 7), 3.0))


def test_refuses_what_does_not_fit() -> None:
    x, w, offsets = torch.zeros(4, 8), torch.zeros(2, 5, 8), torch.tensor([0, 2, 4], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"\(4, 7\)"):
        grouped_linear(x[:, :7], w, offsets)
    with pytest.raises(ValueError, match="both factors"):
        grouped_linear(x, w, offsets, torch.zeros(2, 3, 8))
    with pytest.raises(ValueError, match=r"\(2, 5, 4\)"):
        grouped_linear(x, w, offsets, torch.zeros(2, 3, 8), torch.zeros(2, 5, 4))


def test_tiles_fit_into_shared_memory() -> None:
    limits = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
    for capability, limit in limits.items():
        for rows, experts in ((65536, 128), (4096, 128), (8, 8)):
            for columns in (16, 1408, 1536, 28672):
                for dtype in (torch.float32, torch.bfloat16):
                    tile = matmul_tile(rows, experts, columns, dtype, capability)
                    step = (tile.rows + tile.columns) * tile.depth * dtype.itemsize
                    assert step * tile.stages <= limit * 1024, (capability, tile)


@pytest.mark.parametrize("transposed", [False, True])
def test_the_order_of_tiles_changes_nothing(
    backend: str, monkeypatch: pytest.MonkeyPatch, transposed: bool
) -> None:
    """Of more row tiles than a group has, in groups that experts share, some of them with no tile left."""
    sizes = torch.tensor([70, 0, 33, 150, 1])
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), sizes.cumsum(0)]).to(torch.int32)
    torch.manual_seed(0)
    x, w = torch.randn(254, 24), torch.randn(5, *((24, 200) if transposed else (200, 24)))
    h, b = torch.randn(254, 4), torch.randn(5, *((4, 200) if transposed else (200, 4)))
    found = []
    for cached in (1 << 40, 0):
        monkeypatch.setattr(grouped_gemm_tiles, "CACHED_BYTES", cached)
        found.append(grouped_matmul(x, w, offsets, h, b, transposed=transposed))
    assert grouped_gemm_tiles.row_group(1) == 8
    assert torch.equal(*found)
    first = x[:70] @ (w[0] if transposed else w[0].T) + h[:70] @ (b[0] if transposed else b[0].T)
    assert relative_error(found[1][:70], first) < 1e-5


@pytest.mark.skipif(not interpreting(), reason="the kernel alone")
@pytest.mark.filterwarnings("ignore:invalid value")  # of the infinite weights
@pytest.mark.parametrize("transposed", [False, True])
def test_descriptors_change_nothing(monkeypatch: pytest.MonkeyPatch, transposed: bool) -> None:
    """Tiles that go on into the next expert, or behind the last row, in either operand."""
    offsets = torch.tensor([0, 37, 37, 60], dtype=torch.int32)
    torch.manual_seed(0)
    x, w = torch.randn(60, 136)[:, :128], torch.randn(3, *((128, 200) if transposed else (200, 128)))
    h, b = torch.randn(60, 4), torch.randn(3, *((4, 200) if transposed else (200, 4)))
    x, w, h, b = (each.bfloat16() for each in (x, w, h, b))
    w[2] = torch.inf
    asked = []

    def recorded(*matrices: torch.Tensor) -> bool:
        asked.append(describable(*matrices))
        return asked[-1]

    found = []
    with forced("triton"):
        for answer in (recorded, lambda *matrices: False):
            monkeypatch.setattr(grouped_gemm, "describable", answer)
            found.append(grouped_matmul(x, w, offsets, h, b, transposed=transposed))
    assert asked == [True]
    assert torch.equal(found[0][:37], found[1][:37]) and found[0][:37].isfinite().all()
