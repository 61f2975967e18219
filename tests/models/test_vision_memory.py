"""What a plan says of a step on images, against what autograd keeps and what the rows' answers can reach."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.plan_inputs import machine, recipe, report
from support.tiny_models import build_tiny_model
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from whet.engine.data.inspection import ImageCounts
from whet.engine.models.facts import ModelFacts, read_model_facts
from whet.engine.models.vision_memory import answer_bytes, as_padded, mask_bytes
from whet.engine.resolve import Resolved, resolve

ROWS, TOKENS = 2, 24


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> ModelFacts:
    return read_model_facts(build_tiny_model(tmp_path_factory.mktemp("models") / "llama", "llama"))


@pytest.fixture
def resolved(facts: ModelFacts) -> Resolved:
    wanted = recipe(training__batch_size=ROWS, training__gradient_checkpointing="off")
    found = resolve(wanted, facts, machine(), report(), 1000)[0]
    return found.model_copy(update={"batch_size": ROWS, "longest": TOKENS, "compute_dtype": "fp32"})


def kept(facts: ModelFacts, mask_BHTT: torch.Tensor | None) -> int:
    """Bytes that autograd keeps of one attention, queries to output."""
    sizes = (facts.heads, facts.kv_heads, facts.kv_heads)
    tensors = [torch.rand(ROWS, heads, TOKENS, facts.head_dim, requires_grad=True) for heads in sizes]
    seen: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    groups = facts.heads // facts.kv_heads
    module: Any = torch.nn.Module()
    module.num_key_value_groups = groups
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        ALL_ATTENTION_FUNCTIONS["sdpa"](module, *tensors, mask_BHTT)
    return sum(tensor.untyped_storage().nbytes() for tensor in seen.values())


def test_a_mask_costs_repeated_keys_and_values_and_itself(facts: ModelFacts, resolved: Resolved) -> None:
    assert facts.kv_heads < facts.heads
    mask_BHTT = torch.ones(ROWS, 1, TOKENS, TOKENS, dtype=torch.bool).tril()
    heads, k = facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
    without = 4 * (2 * heads + 2 * k) + 4 * facts.heads
    more = kept(facts, mask_BHTT) - ROWS * TOKENS * without
    assert mask_bytes(facts, resolved) == facts.layers * more + mask_BHTT.nbytes
    one = resolved.model_copy(update={"gradient_checkpointing": True})
    assert mask_bytes(facts, one) == more + mask_BHTT.nbytes


def test_a_batch_is_as_long_as_it_is_padded(resolved: Resolved) -> None:
    assert as_padded(resolved).longest == TOKENS
    assert as_padded(resolved.model_copy(update={"longest": TOKENS + 1})).longest == TOKENS + 8


@pytest.mark.parametrize(("before", "answer", "places"), [(20, 3, 4), (10, 3, 6), (0, 24, 24)])
def test_logits_are_where_some_answer_can_be(
    facts: ModelFacts, resolved: Resolved, before: int, answer: int, places: int
) -> None:
    images = ImageCounts(fewest_before_answers=before, most_supervised_in_a_row=answer)
    assert answer_bytes(facts, resolved, images) == ROWS * places * facts.embedding_rows * 12
