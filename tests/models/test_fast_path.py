"""The fast path computes what transformers and PEFT compute, for every family, forward and backward."""

from __future__ import annotations

import copy

import pytest
import torch
from support.fast_models import gradients, packed_loss, plain_loss, random_rows, with_random_adapter
from support.tiny_families import DECODERS, build

from whet.engine.models.families import Unsupported, family_of
from whet.engine.models.fast_path import apply_fast_path, program_of
from whet.kernels.spec import relative_error


def fused_families() -> list[str]:
    return [n for n in DECODERS if not isinstance(family_of(build(n).config.model_type).fast, Unsupported)]


@pytest.mark.parametrize("name", fused_families())
def test_same_loss_and_gradients(name: str) -> None:
    """Packed rows give the loss and LoRA gradients of the rows one by one through transformers and PEFT."""
    plain = with_random_adapter(build(name))
    fast = copy.deepcopy(plain)
    report = apply_fast_path(fast, torch.float32)
    documents = random_rows(plain.config.vocab_size)
    expected, loss = plain_loss(plain, documents), packed_loss(fast, documents)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5), str(report)
    expected.backward()
    loss.backward()
    wanted, found = gradients(plain), gradients(fast)
    assert wanted.keys() == found.keys()
    for key, gradient in wanted.items():
        assert relative_error(found[key], gradient) < 2e-4, key


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "granite"])
@pytest.mark.parametrize(
    ("keep", "chunk", "offload"), [(False, 1 << 30, False), (True, 7, False), (False, 5, True)]
)
def test_memory_choices_change_nothing(name: str, keep: bool, chunk: int, offload: bool) -> None:
    """What is kept, chunked or put away changes neither the loss nor a gradient."""
    everything = with_random_adapter(build(name))
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
    for key, gradient in gradients(everything).items():
        assert relative_error(gradients(saving)[key], gradient) < 1e-5, key


def test_weights_of_another_type_are_left_to_autocast() -> None:
    """fp32 weights that are to compute in bf16: half a decoder would multiply the one by the other."""
    model = with_random_adapter(build("llama"))
    report = apply_fast_path(model, torch.bfloat16)
    assert program_of(model) is None and not report.complete
    assert "held in torch.float32" in str(report)
