"""Padding goes, and nothing else: what a padded batch computes is what its documents compute."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers.integrations.neftune import neftune_post_forward_hook
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from whet.engine.methods.sft.collation import PackingCollator, PaddingCollator
from whet.engine.methods.sft.embedding_noise import EmbeddingNoise
from whet.engine.methods.sft.packed_steps import PaddingFreeCollator, TokenRow, micro_batch, micro_batches
from whet.engine.methods.sft.unpadding import UnpaddingCollator, token_rows

ROWS = [
    {"input_ids": [5, 6, 7], "labels": [5, -100, 7]},
    {"input_ids": [8, 9, 10, 11, 12], "labels": [-100, -100, 10, 11, 12]},
    {"input_ids": [13, 14], "labels": [-100, 14]},
]
DOCUMENTS = [
    ([5, 6, 7], [-100, -100, 7]),
    ([8, 9, 10, 11, 12], [-100, -100, 10, 11, 12]),
    ([13, 14], [-100, 14]),
]
Batch = dict[str, Any]


def said(rows: list[TokenRow] | None) -> list[tuple[list[int], list[int]]]:
    assert rows is not None
    return [(row.input_ids.tolist(), row.labels.tolist()) for row in rows]


def tensors(**values: Any) -> Batch:
    return {name: torch.tensor(value) for name, value in values.items()}


@pytest.mark.parametrize(
    "collate",
    [
        PaddingCollator(0),
        DataCollatorForLanguageModeling(pad_token_id=0),
        DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True),
        DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True, pad_to_multiple_of=8),
    ],
    ids=["ours", "TRL's", "TRL's without padding", "TRL's without padding, filled up"],
)
def test_every_collator_gives_the_same_documents(collate: Any) -> None:
    batch = UnpaddingCollator(collate)(ROWS)
    assert said(batch["rows"]) == DOCUMENTS
    assert batch["labels"].tolist() == [[label for _, labels in DOCUMENTS for label in labels]]


def test_packed_bins_come_apart() -> None:
    bins = [{"rows": [0, 1]}, {"rows": [2]}]
    apart = UnpaddingCollator(PackingCollator(Dataset.from_list(ROWS), 0))(bins)["rows"]
    straight = PaddingFreeCollator(Dataset.from_list(ROWS))(bins)["rows"]
    assert said(apart) == said(straight) == DOCUMENTS
    assert [row.width for row in apart] == [row.width for row in straight] == [8, 8, 8]


def test_trls_packed_rows_come_apart() -> None:
    row = {
        "input_ids": [i for ids, _ in DOCUMENTS for i in ids],
        "labels": [label for _, labels in DOCUMENTS for label in labels],
        "seq_lengths": [3, 5, 2],
    }
    collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    assert said(UnpaddingCollator(collate)([row])["rows"]) == DOCUMENTS


def test_padding_may_be_on_the_left() -> None:
    batch = tensors(input_ids=[[0, 5, 6], [7, 8, 9]], labels=[[-100, 5, 6], [7, 8, 9]])
    batch["attention_mask"] = torch.tensor([[0, 1, 1], [1, 1, 1]])
    assert said(token_rows(batch)) == [([5, 6], [-100, 6]), ([7, 8, 9], [-100, 8, 9])]


@pytest.mark.parametrize(
    "batch",
    [
        tensors(input_ids=[[5, 6, 7]], labels=[[5, 6, 7]], attention_mask=[[1, 0, 1]]),
        tensors(input_ids=[[5, 6, 0]], labels=[[5, 6, 0]], attention_mask=[[1, 1, 0]]),
        tensors(input_ids=[[5, 6, 7]], labels=[[5, 6, 7]], position_ids=[[3, 4, 5]]),
        tensors(input_ids=[[5, 6, 7]], labels=[[5, 6, 7]], position_ids=[[0, 1, 3]]),
        tensors(input_ids=[[5]], labels=[[5]], position_ids=[[0]], attention_mask=[[1]]),
        tensors(input_ids=[[5, 6]], labels=[[5, 6]], token_type_ids=[[0, 1]]),
        tensors(input_ids=[[5, 6]]),
        tensors(input_ids=[[5, 6]], labels=[[5, 6]], attention_mask=[[[[0, 1], [0, 0]]]]),
    ],
    ids=[
        "a hole in the mask",
        "labels on padding",
        "positions from elsewhere",
        "a gap in the positions",
        "mask and positions",
        "another column",
        "no labels",
        "a mask of its own",
    ],
)
def test_a_batch_that_says_more_stays_as_it_is(batch: Batch) -> None:
    assert token_rows(batch) is None
    assert UnpaddingCollator(lambda rows: batch)([]) is batch


def test_a_step_is_regrouped_by_budget_in_order() -> None:
    rows = [TokenRow(np.arange(n), np.arange(n)) for n in (5, 6, 20, 3, 3)]
    groups = micro_batches(rows, budget=11)
    assert [[len(row.input_ids) for row in batch.rows] for batch in groups] == [[5, 6], [20], [3, 3]]
    assert [batch.tokens for batch in groups] == [11, 20, 6]


def noisy(noise: EmbeddingNoise, embedding: nn.Module, ids_1T: torch.Tensor) -> torch.Tensor:
    with noise.on(embedding):
        embedded_1TD: torch.Tensor = embedding(ids_1T)
    return embedded_1TD


def test_noise_on_a_padded_batch_is_transformers() -> None:
    embedding = nn.Embedding(20, 16)
    ids_BT = torch.tensor([[1, 2, 3], [4, 5, 6]])
    torch.manual_seed(0)
    ours = noisy(EmbeddingNoise(5.0), embedding, ids_BT)
    embedding.neftune_noise_alpha = 5.0  # type: ignore[assignment]
    handle = embedding.register_forward_hook(neftune_post_forward_hook)
    torch.manual_seed(0)
    assert torch.allclose(ours, embedding(ids_BT), atol=1e-6)
    handle.remove()
    assert torch.equal(embedding(ids_BT), embedding.weight[ids_BT])  # ours went with its context


def test_noise_on_a_packed_row_is_that_of_the_padded_rows() -> None:
    """Each document's noise is as large as in the padded row it comes from; of filling up, nobody asks."""
    embedding, alpha = nn.Embedding(20, 64), 5.0
    embedding.weight.data.zero_()
    rows = PaddingFreeCollator()([{"input_ids": [1] * n, "labels": [1] * n} for n in (3, 30)])["rows"]
    rows += PaddingFreeCollator()([{"input_ids": [1] * 4, "labels": [1] * 4}])["rows"]
    assert [row.width for row in rows] == [32, 32, 8]
    batch = micro_batch(rows)
    noise = EmbeddingNoise(alpha)
    noise.expect(batch.rows, len(batch.packed.input_ids_T), torch.device("cpu"))
    size_T = noisy(noise, embedding, batch.packed.input_ids_T[None])[0].abs().amax(1)
    for start, stop, width in ((0, 33, 32), (33, 37, 8)):
        largest = alpha / math.sqrt(width * 64)
        assert 0.8 * largest < float(size_T[start:stop].min()) <= float(size_T[start:stop].max()) <= largest


def test_answers_are_without_noise() -> None:
    embedding = nn.Embedding(20, 16).eval()
    ids_1T = torch.tensor([[1, 2, 3]])
    assert torch.equal(noisy(EmbeddingNoise(5.0), embedding, ids_1T), embedding.weight[ids_1T])
