"""What the planner says that an encoder keeps, against what its nodes hold after a forward pass."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.plan_inputs import adapter, machine, recipe, report

from whet.engine.models.encoder_memory import batch_tokens, fast_encoder_bytes, on_fast_path
from whet.engine.models.facts import ModelFacts, read_model_facts
from whet.engine.models.families import family_of
from whet.engine.models.fast_path.encoders import apply_fast_encoder
from whet.engine.recipe import AdapterSection
from whet.engine.resolve import Resolved, resolve

SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "vocab_size": 200,
    "pad_token_id": 0,
}
TEXTS, LENGTH = 8, 64


def resolved_for(facts: ModelFacts, section: AdapterSection, recomputes: bool) -> Resolved:
    wanted = recipe(
        method={"kind": "embedding"},
        adapter=section.model_dump(),
        training__batch_size=TEXTS,
        training__gradient_checkpointing="on" if recomputes else "off",
    )
    return resolve(wanted, facts, machine(), full_report(LENGTH), 1000)[0]


def full_report(mean: float, longest: int = LENGTH) -> Any:
    train = report().train
    length = train.length.model_copy(update={"max": longest})
    return report(train.model_copy(update={"length": length, "rows": 100, "tokens": int(100 * mean)}))


def held_bytes(grad_fn: Any, weights: set[int]) -> int:
    """Storages that the nodes behind a result hold, each once."""
    kept: dict[int, int] = {}

    def hold(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, tuple | list):
            for one in value:
                hold(one)
        elif is_dataclass(value):
            for field in fields(value):
                hold(getattr(value, field.name))

    seen, waiting = set(), [grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if "_NodeBackward" in node.name():
            for value in (node.saved_tensors, node.kept, node.statistics, node.t_into_TR, node.t_out_TR):
                hold(value)
        waiting += [after for after, _ in node.next_functions]
    return sum(kept.values())


@pytest.mark.parametrize("model_type", ["bert", "xlm-roberta", "modernbert"])
@pytest.mark.parametrize("recomputes", [False, True])
def test_what_the_nodes_hold(model_type: str, recomputes: bool, tmp_path: Path) -> None:
    from transformers import CONFIG_MAPPING, AutoModel

    config: Any = CONFIG_MAPPING[model_type](**SIZES)
    if model_type != "modernbert":
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    config.save_pretrained(tmp_path)
    facts = read_model_facts(tmp_path)
    targets = list(family_of(model_type).target_modules)
    section = adapter(rank=8, target_modules=targets)
    resolved = resolved_for(facts, section, recomputes)
    assert on_fast_path(facts, section, resolved)
    model: Any = get_peft_model(AutoModel.from_config(config), LoraConfig(r=8, target_modules=targets))
    assert apply_fast_encoder(model, torch.float32).complete
    if recomputes:
        model.get_base_model().gradient_checkpointing_enable()
    ids = torch.randint(1, 200, (TEXTS, LENGTH))
    out = model.train()(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    measured = held_bytes(out.grad_fn, weights)
    one_layer, passing = _moments(facts, resolved)
    planned = fast_encoder_bytes(facts, section, resolved, full_report(LENGTH))
    planned -= TEXTS * LENGTH * (passing + (one_layer if recomputes else 0))
    assert planned == pytest.approx(measured, rel=0.03)


def _moments(facts: ModelFacts, resolved: Resolved) -> tuple[int, int]:
    """A token's bytes of the layer that is computed again, and of what passes in the backward pass."""
    layout = family_of(facts.model_type).encoder
    assert layout is not None and resolved.compute_dtype == "fp32"
    inner = (2 if layout.gated else 1) * facts.mlp_width
    ranks = 8 * (len(layout.qkv) + 3)
    again = 4 * (8 * facts.hidden_size + inner + ranks) + 4 * facts.heads + 16
    return again, 4 * (facts.mlp_width + 4 * facts.hidden_size)


def test_a_batch_has_the_tokens_of_its_texts(tmp_path: Path) -> None:
    from transformers import BertConfig

    BertConfig(**SIZES).save_pretrained(tmp_path)
    section, facts = adapter(rank=8), read_model_facts(tmp_path)
    resolved = resolved_for(facts, section, False)
    assert batch_tokens(resolved, full_report(LENGTH)) == TEXTS * LENGTH
    many = resolved.model_copy(update={"batch_size": 512, "longest": 512})
    short = batch_tokens(many, full_report(15, 512))
    assert 512 * 15 < short < 512 * 512 / 5
    for change in ({"kind": "dora"}, {"kind": "none"}, {"bias": "all"}):
        assert not on_fast_path(facts, section.model_copy(update=change), resolved)
