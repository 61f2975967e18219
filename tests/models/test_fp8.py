"""An FP8 base: what is rounded while loading, layer by layer as a module, and multiplied on the fast path."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.fast_models import gradients, packed_loss, random_rows, with_random_adapter
from support.tiny_families import build
from support.tiny_models import build_tiny_model
from torch import nn

from whet.engine.models.adapters import add_adapter, save_weights
from whet.engine.models.fast_path import apply_fast_path, program_of
from whet.engine.models.fast_path.comparison import fused_projections
from whet.engine.models.fp8 import Fp8Linear
from whet.engine.models.loading import Precision, load_model
from whet.engine.recipe import AdapterSection
from whet.kernels.lora_base import DenseBase, ExpandedBase, ExpandedFp8Base, Fp8Base
from whet.kernels.spec import relative_error

PROMPT = torch.tensor([[5, 17, 99, 42, 8]])
FP8 = Precision(compute_dtype="bf16", base_precision="fp8")


def in_fp8(model: Any) -> Any:
    """The decoder's linear layers rounded, in place."""
    for path, part in list(model.named_modules()):
        if type(part) is nn.Linear and part is not model.get_output_embeddings():
            model.set_submodule(path, Fp8Linear.of(part))
    return model


def expanded(model: Any) -> Any:
    """A copy with dense layers of the rounded values."""
    dense = copy.deepcopy(model)
    for path, part in list(dense.named_modules()):
        if isinstance(part, Fp8Linear):
            plain = nn.Linear(part.in_features, part.out_features, part.bias is not None)
            plain.weight, plain.bias = nn.Parameter(part.dense(torch.float32), requires_grad=False), part.bias
            dense.set_submodule(path, plain)
    return dense


@pytest.mark.parametrize("tied", [False, True])
def test_a_checkpoint_is_rounded_on_the_way_in(tmp_path: Path, tied: bool) -> None:
    """All linear layers but the head, to the same bits as rounding them afterwards; the rest stays."""
    path = build_tiny_model(tmp_path / "model", "qwen2", wide=True, dtype="bfloat16", tied=tied)
    exact = load_model(path, Precision(compute_dtype="bf16", base_precision="bf16")).model
    model = load_model(path, FP8).model
    rounded = {name: part for name, part in model.named_modules() if isinstance(part, Fp8Linear)}
    assert len(rounded) == 14 and "lm_head" not in rounded
    for name, part in rounded.items():
        after = Fp8Linear.of(exact.get_submodule(name))
        assert torch.equal(part.weight.view(torch.uint8), after.weight.view(torch.uint8))
        assert torch.equal(part.scale, after.scale)
        # Half a unit in the last of four bits is 2^-4 at most, and 0.026 in the mean square.
        assert 0.015 < relative_error(part.dense(torch.float32), exact.get_submodule(name).weight) < 0.03
    assert torch.equal(model.get_input_embeddings().weight, exact.get_input_embeddings().weight)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    linear = sum(part.weight.numel() + 4 * part.out_features for part in rounded.values())
    halved = exact.get_memory_footprint() - sum(part.weight.numel() * 2 for part in rounded.values()) + linear
    assert model.get_memory_footprint() == halved


def test_a_layer_computes_as_a_dense_one_of_its_values() -> None:
    torch.manual_seed(0)
    dense = nn.Linear(48, 32)
    layer = Fp8Linear.of(dense)
    dense.weight.data = layer.dense()
    x = torch.randn(3, 5, 48)
    left, right = (x.clone().requires_grad_() for _ in range(2))
    expected, found = dense(left), layer(right)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(expected)
    expected.backward(upstream)
    found.backward(upstream)
    torch.testing.assert_close(right.grad, left.grad)
    assert layer.weight.grad is None


def test_the_backward_pass_keeps_no_expanded_weight() -> None:
    layer = Fp8Linear.of(nn.Linear(64, 256, bias=False))
    kept: list[int] = []
    x = torch.randn(2, 64, requires_grad=True)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(x)
    assert sum(kept) == layer.weight.numel() + 4 * 256


def test_autocast_decides_the_type() -> None:
    layer = Fp8Linear.of(nn.Linear(48, 32))
    x = torch.randn(4, 48, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32


def test_casting_a_model_leaves_its_fp8_weights_alone() -> None:
    layer = Fp8Linear.of(nn.Linear(32, 16))
    before = layer.dense(torch.float32)
    nn.Sequential(layer).to(torch.float16)
    assert layer.weight.dtype == torch.float8_e4m3fn and layer.scale.dtype == torch.float32
    assert layer.bias.dtype == torch.float16
    assert torch.equal(layer.dense(torch.float32), before)


def test_adapters_start_as_on_16_bit_weights_and_are_saved(tmp_path: Path) -> None:
    """PEFT rounds a fresh adapter to its base's type; an FP8 layer stands for its compute type."""
    path = build_tiny_model(tmp_path / "model", dtype="bfloat16")
    adapted = [
        add_adapter(load_model(path, precision).model, AdapterSection(), seed=3)
        for precision in (Precision(compute_dtype="bf16", base_precision="bf16"), FP8)
    ]
    exact, rounded = (
        {name: p for name, p in model.named_parameters() if p.requires_grad} for model in adapted
    )
    assert exact.keys() == rounded.keys()
    assert all(torch.equal(exact[name], rounded[name]) for name in exact)
    save_weights(adapted[1], tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size < 200_000
    answer = adapted[1].generate(input_ids=PROMPT, max_new_tokens=4, do_sample=False)
    assert answer.shape[1] > PROMPT.shape[1]


FAMILIES = ["llama", "qwen2", "qwen3", "gemma2", "phi3", "granite"]


@pytest.mark.parametrize("name", FAMILIES)
def test_expanded_products_are_those_of_the_rounded_values(name: str) -> None:
    """Without FP8 units the fast path computes as on dense layers of the same values."""
    rounded = in_fp8(build(name))
    plain = with_random_adapter(expanded(rounded))
    fast = with_random_adapter(rounded)
    report = apply_fast_path(fast, torch.float32, fp8=())
    assert report.complete, str(report)
    bases = {type(p.stack.base) for p in projections(fast)}
    assert bases == {ExpandedBase}
    documents = random_rows(plain.config.vocab_size)
    apply_fast_path(plain, torch.float32)
    expected, loss = packed_loss(plain, documents), packed_loss(fast, documents)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    expected.backward()
    loss.backward()
    wanted, found = gradients(plain), gradients(fast)
    assert wanted.keys() == found.keys()
    assert all(relative_error(found[key], wanted[key]) < 2e-4 for key in wanted)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("keep", [True, False])
def test_fp8_products_stay_near_16_bit(name: str, keep: bool) -> None:
    """Both operands of a base product are off by about 0.026 each; nothing else is lost."""
    plain = with_random_adapter(build(name))
    fast = with_random_adapter(in_fp8(build(name)))
    apply_fast_path(plain, torch.float32)
    apply_fast_path(fast, torch.float32, fp8={"Fp8Linear"})
    assert {type(p.stack.base) for p in projections(fast)} == {Fp8Base}
    program = program_of(fast)
    assert program is not None
    program.set_keep([keep] * len(program.layers), [keep] * len(program.layers))
    documents = random_rows(plain.config.vocab_size)
    expected, loss = packed_loss(plain, documents), packed_loss(fast, documents)
    assert float(loss) != float(expected)
    assert float(loss) == pytest.approx(float(expected), rel=0.02)
    expected.backward()
    loss.backward()
    wanted, found = gradients(plain), gradients(fast)
    whole = [torch.cat([g.flatten() for g in group.values()]) for group in (found, wanted)]
    assert relative_error(*whole) < 0.3


def projections(model: Any) -> list[Any]:
    program = program_of(model)
    assert program is not None
    return [projection for layer in program.layers for projection in fused_projections(layer)]


def test_layers_stay_views_of_the_stacked_weight() -> None:
    """No second copy, and the modules still compute: reading the model again finds the same values."""
    model = in_fp8(build("llama")).requires_grad_(False)
    before = {n: p.dense(torch.float32) for n, p in model.named_modules() if isinstance(p, Fp8Linear)}
    apply_fast_path(model, torch.float32, fp8={"Fp8Linear"})
    qkv, out, *_ = projections(model)
    start = qkv.stack.base.w8_NK.untyped_storage().data_ptr()
    assert {layer.weight.untyped_storage().data_ptr() for layer in qkv.layers} == {start}
    assert out.stack.base.w8_NK.data_ptr() == out.layers[0].weight.data_ptr()
    assert all(torch.equal(model.get_submodule(n).dense(torch.float32), value) for n, value in before.items())


def test_reading_anew_keeps_how_products_run() -> None:
    model = in_fp8(build("llama")).requires_grad_(False)
    apply_fast_path(model, torch.float32, fp8={"Fp8Linear"})
    apply_fast_path(model, torch.float32)
    assert {type(p.stack.base) for p in projections(model)} == {Fp8Base}
    plain = build("llama").requires_grad_(False)
    apply_fast_path(plain, torch.float32)
    assert {type(p.stack.base) for p in projections(plain)} == {DenseBase}


def test_four_bits_may_be_multiplied_in_fp8(tmp_path: Path) -> None:
    """Expanded to FP8 instead of 16 bits: a rounding of 0.026 more on each operand, forward and backward."""
    path = build_tiny_model(tmp_path / "model", wide=True)
    ways: dict[str, Any] = {"16bit": (), "fp8": {"Linear4bit"}}
    losses: dict[str, torch.Tensor] = {}
    found: dict[str, torch.Tensor] = {}
    for way, classes in ways.items():
        model = with_random_adapter(load_model(path, Precision(base_precision="nf4")).model)
        apply_fast_path(model, torch.float32, fp8=classes)
        expected = ExpandedFp8Base if classes else ExpandedBase
        assert {type(p.stack.base) for p in projections(model)} == {expected}
        losses[way] = packed_loss(model, random_rows(390))
        losses[way].backward()
        found[way] = torch.cat([gradient.flatten() for gradient in gradients(model).values()])
    assert float(losses["fp8"]) == pytest.approx(float(losses["16bit"]), rel=0.02)
    assert 1e-3 < relative_error(found["fp8"], found["16bit"]) < 0.3
