"""Batches of an embedding model on the fast path: the same losses, gradients and vectors as the library's."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers import SentenceTransformerTrainingArguments as Arguments
from sentence_transformers.base.training_args import BatchSamplers
from sentence_transformers.sentence_transformer import losses
from support.fast_encoders import TARGETS, pairs
from support.tiny_embedders import build_embedder

from whet.engine import FastSentenceTransformer
from whet.engine import SentenceTransformerTrainer as FastTrainer
from whet.engine.methods.embedding.fast_step import fused_contrast, plain_reason
from whet.engine.methods.embedding.token_texts import NotPlainTextError, TokenTexts
from whet.engine.methods.flat_optimizer import FlatAdamW
from whet.engine.models.fast_path import take_off_fast_path
from whet.engine.models.fast_path.encoders import apply_fast_encoder

LABELS = ["label", "labels", "score", "scores"]
BOTH_WAYS: Any = ("query_to_doc", "doc_to_query")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("embedders")
    return {name: build_embedder(root / name, name) for name in ("bert", "xlm-r", "modernbert", "qwen3")}


def embedder(folder: Path, *, fast: bool) -> SentenceTransformer:
    """With an adapter that is not zero, the same on every call."""
    model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    leaves = {path.rsplit(".", 1)[-1] for path, _ in model.named_modules()}
    torch.manual_seed(5)
    model.add_adapter(
        LoraConfig(r=4, lora_alpha=8, target_modules=sorted(leaves & set(TARGETS)),
                   task_type="FEATURE_EXTRACTION")
    )  # fmt: skip
    for path, parameter in model.named_parameters():
        if "lora_B" in path:
            parameter.data.normal_(0, 0.05)
        if ".pooler." in path:
            parameter.requires_grad = False
    if fast:
        assert apply_fast_encoder(model[0].model, torch.float32).complete
    return model


def arguments(folder: Path, **more: Any) -> Arguments:
    given = {
        "max_steps": 12, "per_device_train_batch_size": 8, "learning_rate": 2e-3, "warmup_steps": 2,
        "logging_steps": 1, "report_to": "none", "save_strategy": "no", "seed": 11, "disable_tqdm": True,
        "use_cpu": True, "batch_sampler": BatchSamplers.NO_DUPLICATES, "prompts": {"anchor": "w1 "},
    }  # fmt: skip
    return Arguments(output_dir=str(folder), **{**given, **more})


def trained(kind: Any, model: SentenceTransformer, folder: Path, **more: Any) -> tuple[Any, Any]:
    """(trainer, what it logged of every step)."""
    rows = Dataset.from_list(pairs(60))
    trainer = kind(
        model=model,
        args=arguments(folder, **more),
        train_dataset=rows,
        eval_dataset=rows.select(range(10)),
        loss=losses.MultipleNegativesRankingLoss(model),
    )
    trainer.train()
    logged = [(h["loss"], h["grad_norm"]) for h in trainer.state.log_history if "loss" in h]
    return trainer, np.array(logged)


@pytest.mark.parametrize(
    ("name", "more"),
    [("bert", {}), ("xlm-r", {"gradient_accumulation_steps": 3}), ("modernbert", {"max_steps": 6})],
)
def test_the_same_steps_as_the_librarys_trainer(
    folders: dict[str, Path], tmp_path: Path, name: str, more: dict[str, Any]
) -> None:
    plain, ours = (embedder(folders[name], fast=fast) for fast in (False, True))
    (theirs, wanted), (trainer, seen) = (
        trained(SentenceTransformerTrainer, plain, tmp_path / "plain", **more),
        trained(FastTrainer, ours, tmp_path / "fast", **more),
    )
    assert trainer.fast is not None and isinstance(trainer._flat, FlatAdamW)
    assert len(seen) == (6 if name == "modernbert" else 12)
    np.testing.assert_allclose(seen, wanted, rtol=2e-5)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(theirs.evaluate()["eval_loss"], rel=1e-5)
    texts = ["w1 w2", "w3 w4 w5"]
    np.testing.assert_allclose(ours.encode(texts), plain.encode(texts), atol=1e-5)


def test_a_decoder_that_embeds_takes_the_same_steps(folders: dict[str, Path], tmp_path: Path) -> None:
    found = []
    for kind in (SentenceTransformerTrainer, FastTrainer):
        model = FastSentenceTransformer.from_pretrained(str(folders["qwen3"]))
        model = FastSentenceTransformer.get_peft_model(model, r=4, lora_alpha=8, random_state=3)
        if kind is SentenceTransformerTrainer:
            take_off_fast_path(model[0].model)
        trainer, seen = trained(kind, model, tmp_path, max_steps=6)
        found.append((seen, model.encode(["w1 w2", "w3 w4 w5"])))
    assert trainer.fast is not None and trainer.fast.mode == "last"
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=2e-5)
    np.testing.assert_allclose(found[1][1], found[0][1], atol=1e-5)


def test_a_changed_model_that_leaves_the_fast_path_is_said(folders: dict[str, Path], tmp_path: Path) -> None:
    model = embedder(folders["bert"], fast=True)
    trainer, _ = trained(FastTrainer, model, tmp_path, max_steps=1)
    assert trainer.fast is not None
    model.add_adapter(LoraConfig(r=2, target_modules=["query"]), adapter_name="second")
    with pytest.warns(UserWarning, match="slower from now on: the encoder is not on the fast path"):
        assert trainer.train().global_step == 1
    assert trainer.fast is None


ROWS: dict[str, list[dict[str, Any]]] = {
    "pairs": [dict(row) for row in pairs(6)],
    "triplets": [{**row, "negative": f"w{n} w9"} for n, row in enumerate(pairs(6))],
    "scored": [{**row, "score": n / 5} for n, row in enumerate(pairs(6))],
    "binary": [{**row, "label": n % 2} for n, row in enumerate(pairs(6))],
    "labelled": [{"text": row["anchor"], "label": n % 3} for n, row in enumerate(pairs(6))],
}


@pytest.mark.parametrize(
    ("rows", "make", "fused"),
    [
        ("pairs", losses.MultipleNegativesRankingLoss, True),
        ("triplets", losses.MultipleNegativesRankingLoss, True),
        ("pairs", lambda model: losses.MultipleNegativesRankingLoss(
            model, scale=7.0, directions=BOTH_WAYS, partition_mode="per_direction"), True),
        ("pairs", lambda model: losses.MultipleNegativesRankingLoss(
            model, directions=("query_to_doc", "query_to_query")), False),
        ("pairs", lambda model: losses.MultipleNegativesRankingLoss(
            model, hardness_mode="in_batch_negatives", hardness_strength=2.0), False),
        ("triplets", losses.TripletLoss, False),
        ("scored", losses.CoSENTLoss, False),
        ("scored", losses.CosineSimilarityLoss, False),
        ("binary", losses.OnlineContrastiveLoss, False),
        ("labelled", losses.BatchAllTripletLoss, False),
    ],
)  # fmt: skip
def test_every_loss_has_the_librarys_value_and_gradients(
    folders: dict[str, Path], tmp_path: Path, rows: str, make: Any, fused: bool
) -> None:
    found = []
    kinds: list[tuple[Any, bool]] = [(SentenceTransformerTrainer, False), (FastTrainer, True)]
    for kind, fast in kinds:
        model = embedder(folders["bert"], fast=fast)
        loss = make(model)
        trainer = kind(
            model=model,
            args=arguments(tmp_path, batch_sampler=BatchSamplers.BATCH_SAMPLER),
            train_dataset=Dataset.from_list(ROWS[rows]),
            loss=loss,
        )
        assert not fast or (trainer.fast is not None and (fused_contrast(loss) is not None) == fused)
        model.train()
        batch = next(iter(trainer.get_train_dataloader()))
        value = trainer.compute_loss(model, batch)
        value.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        found.append((float(value), torch.cat([gradient.flatten() for gradient in gradients])))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    assert float((found[1][1] - found[0][1]).norm() / found[0][1].norm()) < 2e-5


def test_what_goes_the_librarys_way_has_a_reason(folders: dict[str, Path], tmp_path: Path) -> None:
    model = embedder(folders["bert"], fast=True)
    base = losses.MultipleNegativesRankingLoss(model)
    assert plain_reason(model, base) is None
    for loss, reason in (
        (losses.CachedMultipleNegativesRankingLoss(model), "Cached"),
        (losses.MatryoshkaLoss(model, losses.CoSENTLoss(model), [32, 16]), "MatryoshkaLoss calls the model"),
    ):
        assert reason in str(plain_reason(model, loss))
    assert "not on the fast path" in str(plain_reason(embedder(folders["bert"], fast=False), base))
    pooling: Any = model[1]
    pooling.pooling_mode = "max"
    assert "pooling_mode='max'" in str(plain_reason(model, base))
    with pytest.warns(UserWarning, match="library's own steps"):
        slow, seen = trained(FastTrainer, model, tmp_path, max_steps=2)
    assert slow.fast is None and np.isfinite(seen).all()


# --- texts


def test_texts_are_tokenised_as_the_model_does_it(folders: dict[str, Path]) -> None:
    model = embedder(folders["bert"], fast=True)
    model.max_seq_length = 9
    rows = pairs(5)
    texts = TokenTexts(model, Dataset.from_list(rows), LABELS, {"anchor": "w7 w8 "})
    batch = texts.batch([4, 0, 4], 1, 0)
    assert (batch.rows, batch.columns, batch.texts) == (3, 2, 6) and texts.labels is None
    starts = batch.packed.offsets.tolist()
    ours = [batch.packed.input_ids_T[a:b].tolist() for a, b in pairwise(starts)]
    given = [("w7 w8 ", "anchor"), ("", "positive")]
    wanted = [
        model.preprocess([rows[number][column]], prompt=prompt)["input_ids"][0].tolist()
        for prompt, column in given
        for number in (4, 0, 4)
    ]
    assert ours == wanted and max(map(len, ours)) == 9
    assert batch.tokens == sum(map(len, wanted))


def test_what_is_no_text_is_told(folders: dict[str, Path]) -> None:
    model = embedder(folders["bert"], fast=True)
    with pytest.raises(NotPlainTextError, match="something else"):
        TokenTexts(model, Dataset.from_dict({"anchor": ["a"], "positive": [None]}), LABELS, {})
    labelled = TokenTexts(model, Dataset.from_list(ROWS["scored"]), LABELS, {})
    assert labelled.labels is not None and labelled.labels.tolist() == pytest.approx(
        [0, 0.2, 0.4, 0.6, 0.8, 1]
    )
