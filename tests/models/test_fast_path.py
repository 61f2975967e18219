"""The fast path computes what transformers and PEFT compute, for every family, forward and backward."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.tiny_families import DECODERS, build

from whet.engine.models.families import Unsupported, family_of
from whet.engine.models.fast_path import apply_fast_path, pack_rows, program_of
from whet.kernels.spec import relative_error

LENGTHS = (19, 5, 11, 1)
TARGETS = [
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
    "qkv_proj",
    "gate_up_proj",
]


def fused_families() -> list[str]:
    return [n for n in DECODERS if not isinstance(family_of(build(n).config.model_type).fast, Unsupported)]


def with_adapter(name: str, **options: Any) -> Any:
    """A tiny model with LoRA whose B is not zero."""
    model = build(name)
    leaves = {
        path.rsplit(".", 1)[-1] for path, part in model.named_modules() if isinstance(part, torch.nn.Linear)
    }
    settings = {"r": 4, "lora_alpha": 6, "lora_dropout": 0.0} | options
    adapted = get_peft_model(model, LoraConfig(target_modules=sorted(leaves & set(TARGETS)), **settings))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for path, param in adapted.named_parameters():
            if "lora_B" in path:
                param.copy_(0.1 * torch.randn(param.shape, generator=generator))
    return adapted.train()


def rows(vocabulary: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(3, vocabulary, (length,), generator=generator).tolist() for length in LENGTHS]


def plain_loss(model: Any, documents: list[list[int]]) -> torch.Tensor:
    """Summed next-token loss, one document at a time through transformers."""
    total = torch.zeros(())
    for row in documents:
        ids = torch.tensor([row])
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        total = total + torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
    return total


def fast_loss(model: Any, documents: list[list[int]]) -> torch.Tensor:
    program = program_of(model)
    assert program is not None
    packed = pack_rows(documents)
    places: list[int] = []
    labels: list[int] = []
    start = 0
    for row in documents:
        places += range(start, start + len(row) - 1)
        labels += row[1:]
        start += len(row)
    loss: torch.Tensor = program.loss(packed, torch.tensor(places), torch.tensor(labels))
    return loss


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: param.grad for name, param in model.named_parameters() if param.grad is not None}


@pytest.mark.parametrize("name", fused_families())
def test_same_loss_and_gradients(name: str) -> None:
    """Packed rows give the loss and LoRA gradients of the rows one by one through transformers and PEFT."""
    plain = with_adapter(name)
    fast = copy.deepcopy(plain)
    report = apply_fast_path(fast, torch.float32)
    documents = rows(plain.config.vocab_size)
    expected, loss = plain_loss(plain, documents), fast_loss(fast, documents)
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
    everything = with_adapter(name)
    saving = copy.deepcopy(everything)
    documents = rows(everything.config.vocab_size)
    for model in (everything, saving):
        apply_fast_path(model, torch.float32)
    program = program_of(saving)
    assert program is not None
    count = len(program.layers)
    program.set_keep([keep] * count, [keep] * count, [offload] * count)
    program.chunk = chunk
    losses = [fast_loss(model, documents) for model in (everything, saving)]
    for loss in losses:
        loss.backward()
    assert float(losses[1]) == pytest.approx(float(losses[0]), rel=1e-6)
    for key, gradient in gradients(everything).items():
        assert relative_error(gradients(saving)[key], gradient) < 1e-5, key
