"""Mixtures of experts on the fast path compute what transformers and PEFT compute, forward and backward."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from support.fast_models import gradients, packed_loss, plain_loss, random_rows
from support.tiny_families import DECODER_CONFIGS, build
from torch import nn
from transformers import AutoModelForCausalLM

from whet.engine.models.fast_path import apply_fast_path, program_of
from whet.engine.models.fast_path.moe_half import MoeHalf
from whet.kernels.backend import forced, interpreting
from whet.kernels.spec import relative_error

FAMILIES = ("qwen3_moe", "mixtral")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
EXPERTS = {
    "qwen3_moe": ("gate_proj", "up_proj", "down_proj"),
    "mixtral": ("w1", "w2", "w3"),
}
LENGTHS = (19, 5, 11, 1)


def targets(name: str, what: str) -> list[str]:
    chosen: dict[str, tuple[str, ...]] = {
        "all": ATTENTION + EXPERTS[name],
        "attention": ATTENTION,
        "experts": EXPERTS[name],
        "down": (EXPERTS[name][2 if name == "qwen3_moe" else 1],),
    }
    return list(chosen[what])


def adapted(model: Any, names: Sequence[str], **options: Any) -> PeftModel:
    """With LoRA whose B is not zero."""
    settings = {"r": 4, "lora_alpha": 6, "lora_dropout": 0.0} | options
    model = get_peft_model(model, LoraConfig(target_modules=list(names), **settings))
    assert isinstance(model, PeftModel)
    randomise(model)
    return model.train()


def randomise(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for path, param in model.named_parameters():
            if "lora_B" in path:
                param.copy_(0.1 * torch.randn(param.shape, generator=generator))


def assert_same_gradients(found: nn.Module, wanted: nn.Module, tolerance: float) -> None:
    expected, actual = gradients(wanted), gradients(found)
    assert expected.keys() == actual.keys() and expected
    for key, gradient in expected.items():
        assert relative_error(actual[key], gradient) < tolerance, key


@pytest.mark.parametrize("what", ["all", "attention", "experts", "down"])
@pytest.mark.parametrize("name", FAMILIES)
def test_like_transformers_and_peft(name: str, what: str) -> None:
    """Packed rows give the loss and the LoRA gradients of the rows one by one, whatever is adapted."""
    plain = adapted(build(name), targets(name, what))
    fast = copy.deepcopy(plain)
    report = apply_fast_path(fast, torch.float32)
    assert report.complete, str(report)
    documents = random_rows(plain.config.vocab_size)
    expected, loss = plain_loss(plain, documents), packed_loss(fast, documents)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    expected.backward()
    loss.backward()
    assert_same_gradients(fast, plain, 2e-4)


def test_weights_that_do_not_sum_to_one() -> None:
    config = DECODER_CONFIGS["qwen3_moe"]()
    config.norm_topk_prob = False
    torch.manual_seed(0)
    base: Any = AutoModelForCausalLM.from_config(config)
    plain = adapted(base, targets("qwen3_moe", "all"))
    fast = copy.deepcopy(plain)
    apply_fast_path(fast, torch.float32)
    documents = random_rows(config.vocab_size)
    expected, loss = plain_loss(plain, documents), packed_loss(fast, documents)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    expected.backward()
    loss.backward()
    assert_same_gradients(fast, plain, 2e-4)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    ("keep", "chunk", "offload"), [(False, 1 << 30, False), (True, 7, False), (False, 5, True)]
)
def test_memory_choices_change_nothing(name: str, keep: bool, chunk: int, offload: bool) -> None:
    """What is kept, chunked or put away changes neither the loss nor a gradient."""
    everything = adapted(build(name), targets(name, "all"))
    saving = copy.deepcopy(everything)
    documents = random_rows(everything.config.vocab_size)
    for model in (everything, saving):
        apply_fast_path(model, torch.float32)
    program = program_of(saving)
    assert program is not None
    count = len(program.layers)
    program.set_keep([keep] * count, [keep] * count, [offload] * count)
    program.chunk = chunk
    losses = [packed_loss(model, documents) for model in (everything, saving)]
    for loss in losses:
        loss.backward()
    assert float(losses[1]) == pytest.approx(float(losses[0]), rel=1e-6)
    assert_same_gradients(saving, everything, 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", FAMILIES)
def test_sixteen_bits_stay_as_near_as_transformers(name: str, dtype: torch.dtype) -> None:
    """Beside the fp32 gradients, the fast path's are no farther off than the reference's own 16 bits are."""
    exact = adapted(build(name), targets(name, "all"))
    rounded: Any = build(name)
    plain = adapted(rounded.to(dtype), targets(name, "all"))
    for param in plain.parameters():
        if param.requires_grad:
            param.data = param.data.float()
    fast = copy.deepcopy(plain)
    assert apply_fast_path(fast, dtype).complete
    documents = random_rows(exact.config.vocab_size)
    with torch.autocast("cpu", dtype):
        plain_loss(plain, documents).backward()
    plain_loss(exact, documents).backward()
    packed_loss(fast, documents).backward()
    wanted = gradients(exact)

    def distance(model: nn.Module) -> float:
        errors = [relative_error(found, wanted[key]) ** 2 for key, found in gradients(model).items()]
        return float(sum(errors) / len(errors)) ** 0.5

    assert gradients(fast).keys() == wanted.keys()
    assert distance(fast) < 1.25 * distance(plain)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_adapter_that_is_off_or_merged(name: str) -> None:
    """Switching it off and merging it are followed without reading the model anew."""
    plain = adapted(build(name), targets(name, "all"))
    fast = copy.deepcopy(plain)
    apply_fast_path(fast, torch.float32)
    documents = random_rows(plain.config.vocab_size)
    with torch.no_grad():
        on = float(plain_loss(plain, documents))
        with plain.disable_adapter(), fast.disable_adapter():
            off = float(plain_loss(plain, documents))
            assert float(packed_loss(fast, documents)) == pytest.approx(off, rel=1e-5)
        assert abs(on - off) > 1e-3 * on
        assert float(packed_loss(fast, documents)) == pytest.approx(on, rel=1e-5)
        fast.merge_adapter()
        assert float(packed_loss(fast, documents)) == pytest.approx(on, rel=1e-5)
        with fast.disable_adapter():
            assert float(packed_loss(fast, documents)) == pytest.approx(off, rel=1e-5)


def test_a_reference_pass_before_the_backward_pass() -> None:
    """The backward pass has the factors of its own forward pass, whatever ran in between."""
    plain = adapted(build("mixtral"), targets("mixtral", "all"))
    fast = copy.deepcopy(plain)
    apply_fast_path(fast, torch.float32)
    documents = random_rows(plain.config.vocab_size)
    program = program_of(fast)
    assert program is not None
    program.set_keep([False] * 3, [False] * 3)
    loss = packed_loss(fast, documents)
    with fast.disable_adapter(), torch.no_grad():
        packed_loss(fast, documents)
    loss.backward()
    plain_loss(plain, documents).backward()
    assert_same_gradients(fast, plain, 2e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_through_the_causal_model(name: str) -> None:
    """The whole model's own call, with labels, runs the fast decoder and returns what the class returns."""
    plain = adapted(build(name), targets(name, "all"))
    fast = copy.deepcopy(plain)
    apply_fast_path(fast, torch.float32)
    ids = torch.tensor([random_rows(plain.config.vocab_size)[0]])
    expected, output = plain(input_ids=ids, labels=ids), fast(input_ids=ids, labels=ids)
    assert output.router_logits is None
    assert relative_error(output.logits, expected.logits) < 1e-5
    routed = fast(input_ids=ids, labels=ids, output_router_logits=True)
    assert float(routed.aux_loss) > 0 and len(routed.router_logits) == sum(program_sparse(fast))


def program_sparse(model: Any) -> tuple[bool, ...]:
    program = program_of(model)
    assert program is not None
    assert [isinstance(layer.mlp, MoeHalf) for layer in program.layers] == list(program.settings.sparse)
    return program.settings.sparse


def test_what_stays_plain_says_why() -> None:
    """A router that is adapted, experts in another type and two adapters run on transformers' module."""
    router = adapted(build("mixtral"), [*targets("mixtral", "experts"), "gate"])
    assert "ParamWrapper is no router" in str(apply_fast_path(router, torch.float32))
    held: Any = adapted(build("mixtral"), ATTENTION)
    for layer in held.get_base_model().model.layers:
        layer.mlp.experts.bfloat16()
    assert "held in torch.bfloat16" in str(apply_fast_path(held, torch.float32))
    several: Any = adapted(build("mixtral"), targets("mixtral", "all"))
    several.add_adapter("second", copy.deepcopy(several.peft_config["default"]))
    several.base_model.set_adapter(["default", "second"])
    assert "mixture of experts" in str(report := apply_fast_path(several, torch.float32))
    assert "2 adapters are active" in str(report)


def test_experts_of_an_unknown_kind_stay_plain_and_right() -> None:
    class OtherExperts(type(build("mixtral").model.layers[0].mlp.experts)):  # type: ignore[misc]
        """A subclass may compute anything."""

    plain: Any = adapted(build("mixtral"), ATTENTION)
    for layer in plain.get_base_model().model.layers:
        layer.mlp.experts.__class__ = OtherExperts
    fast = copy.deepcopy(plain)
    report = apply_fast_path(fast, torch.float32)
    assert report.fused["mlp"] == 0 and "OtherExperts" in str(report)
    documents = random_rows(plain.config.vocab_size)
    assert float(packed_loss(fast, documents)) == pytest.approx(float(plain_loss(plain, documents)), rel=1e-5)


@pytest.mark.skipif(not interpreting(), reason="Triton's interpreter")
@pytest.mark.parametrize("keep", [True, False])
def test_on_the_kernels(keep: bool) -> None:
    """One Triton pass beside the reference pass, every kernel of the half among them."""
    reference = adapted(build("qwen3_moe"), targets("qwen3_moe", "experts"))
    kernels = copy.deepcopy(reference)
    documents = random_rows(reference.config.vocab_size)[1:3]
    for model, backend in ((reference, "reference"), (kernels, "triton")):
        apply_fast_path(model, torch.float32)
        program = program_of(model)
        assert program is not None
        program.set_keep([keep] * 3, [keep] * 3)
        with forced(backend):
            packed_loss(model, documents).backward()
    assert_same_gradients(kernels, reference, 1e-4)
