"""What the planner says that an encoder keeps, against what its nodes hold after a forward pass."""

from __future__ import annotations

import random
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.plan_inputs import adapter, gpu, machine, recipe, report

from whet.engine.methods.filling import TOKENS, coarser
from whet.engine.models import encoder_memory
from whet.engine.models.encoder_memory import (
    CONTRAST_CHUNK,
    batch_tokens,
    contrast_bytes,
    fast_encoder_bytes,
    head_parameters,
    on_fast_path,
    packs_batches,
    replays,
)
from whet.engine.models.facts import ModelFacts, read_model_facts
from whet.engine.models.families import family_of
from whet.engine.models.fast_path.encoders import apply_fast_encoder
from whet.engine.models.memory import ADAMW_8BIT_BYTES, CUDA_CONTEXT, CUDA_WORKSPACE, estimate_memory
from whet.engine.recipe import AdapterSection
from whet.engine.resolve import Resolved, resolve
from whet.kernels.contrastive import CHUNK_BYTES

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


def test_the_loss_counts_where_it_holds_more_than_passes_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many short texts of a narrow model."""
    from transformers import BertConfig

    BertConfig(**SIZES).save_pretrained(tmp_path)
    facts, section, data = read_model_facts(tmp_path), adapter(rank=8), lengths_report([6] * 4000, texts=2)
    few = resolved_for(facts, section, False).model_copy(update={"texts_per_row": 2})
    many = few.model_copy(update={"batch_size": 8192})
    assert CONTRAST_CHUNK == CHUNK_BYTES
    assert contrast_bytes(facts, few) == 4 * TEXTS * TEXTS + 8 * 128 * 2 * TEXTS
    assert contrast_bytes(facts, many) == CONTRAST_CHUNK + 8 * 128 * 2 * 8192
    assert contrast_bytes(facts, many.model_copy(update={"method": "reranker"})) == 0
    counted = [fast_encoder_bytes(facts, section, one, data) for one in (few, many)]
    passing = [batch_tokens(one, data) * _moments(facts, one)[1] for one in (few, many)]
    monkeypatch.setattr(encoder_memory, "contrast_bytes", lambda *_: 0)
    alone = [fast_encoder_bytes(facts, section, one, data) for one in (few, many)]
    more = [with_it - without for with_it, without in zip(counted, alone, strict=True)]
    assert more == [0, contrast_bytes(facts, many) - passing[1]] and more[1] > 0


@pytest.fixture
def bert(tmp_path: Path) -> ModelFacts:
    """The base shape."""
    from transformers import BertConfig

    BertConfig().save_pretrained(tmp_path)
    return read_model_facts(tmp_path)


def lengths_report(lengths: list[int], texts: int = 1) -> Any:
    """Of rows that are so long; with their quantiles."""
    ranked = sorted(lengths)
    p50, p95, p99 = (ranked[round(share * (len(ranked) - 1))] for share in (0.5, 0.95, 0.99))
    found = report().train.length.model_copy(update={"p50": p50, "p95": p95, "p99": p99, "max": ranked[-1]})
    update = {"length": found, "rows": len(ranked), "token_rows": len(ranked), "tokens": sum(ranked)}
    return report(report().train.model_copy(update=update), texts_per_row=texts)


@pytest.mark.parametrize("shape", ["uniform", "long tail", "few long", "some long", "half long", "equal"])
def test_planned_tokens_are_hardly_ever_exceeded_and_near(shape: str, bert: ModelFacts) -> None:
    draw = random.Random(7)
    lengths = {
        "uniform": [draw.randint(50, 146) for _ in range(4000)],
        "long tail": [min(512, max(3, int(draw.lognormvariate(4, 0.6)))) for _ in range(4000)],
        "few long": [512 if draw.random() < 0.03 else draw.randint(8, 24) for _ in range(4000)],
        "some long": [500] * 160 + [10] * 3840,
        "half long": [500] * 1960 + [10] * 2040,
        "equal": [100] * 4000,
    }[shape]
    resolved = on_gpu(bert, lengths_report(lengths), "classification")
    planned = batch_tokens(resolved, lengths_report(lengths))
    largest = max(sum(draw.sample(lengths, 64)) for _ in range(2000))
    assert planned % TOKENS == 0
    near = 1.6 if "long" in shape.split()[1:] else 1.15  # what is between quantiles is not seen
    assert largest <= planned < near * largest + coarser(TOKENS, planned)


def on_gpu(facts: ModelFacts, data: Any, kind: str) -> Resolved:
    """64 rows a batch of BERT's base shape on a GPU."""
    wanted = recipe(method={"kind": kind}, training__batch_size=64)
    return resolve(wanted, facts, machine(gpu()), data, 4000)[0]


def test_heads_and_graphs_are_counted_where_they_are(bert: ModelFacts) -> None:
    facts, section, on = bert, adapter(rank=16), machine(gpu())
    data = lengths_report([100] * 4000)
    of = {kind: on_gpu(bert, data, kind) for kind in ("embedding", "classification", "token_classification")}
    need = {kind: estimate_memory(facts, section, one, data, on).components for kind, one in of.items()}
    head = 768 * 769
    assert head_parameters(facts, "reranker") == head_parameters(facts, "classification") == head
    more = {
        name: need["classification"][name] - need["token_classification"][name] for name in need["embedding"]
    }
    assert more == dict.fromkeys(more, 0) | {
        "base": 2 * head, "adapter": 4 * head, "gradients": 4 * head,
        "optimizer": int(ADAMW_8BIT_BYTES * head),
    }  # fmt: skip
    assert need["embedding"]["runtime"] == CUDA_CONTEXT + 2 * CUDA_WORKSPACE
    drops = section.model_copy(update={"dropout": 0.1})
    eager = estimate_memory(facts, drops, of["classification"], data, on)
    assert eager.components["runtime"] == CUDA_CONTEXT + CUDA_WORKSPACE
    assert eager.allocated == eager.peak - CUDA_CONTEXT


def test_only_batches_that_are_not_packed_are_padded_before_the_head(bert: ModelFacts) -> None:
    facts, section = bert, adapter(rank=16)
    data = lengths_report([draw % 90 + 10 for draw in range(4000)])
    packed = on_gpu(bert, data, "reranker")
    assert packs_batches(packed, data) and packs_batches(on_gpu(bert, data, "embedding"), data)
    for change in ({"compute_dtype": "fp16", "base_precision": "fp16"}, {"texts_per_row": 5}):
        plain = packed.model_copy(update=change)
        assert not packs_batches(plain, data) and not replays(facts, section, plain, data)
        padded = fast_encoder_bytes(facts, section, plain, data) / batch_tokens(plain, data)
        assert padded > fast_encoder_bytes(facts, section, packed, data) / batch_tokens(packed, data)
