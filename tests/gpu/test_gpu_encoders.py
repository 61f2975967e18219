"""Encoders on a GPU: their gradients, and steps of embeddings and heads as CUDA graphs against eager ones.

Run by hand: `PYTHONPATH=src:tests python -P -m pytest -q -m gpu tests/gpu/test_gpu_encoders.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainingArguments as Arguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from support.fast_encoders import adapted, padded_rows, pairs, weighed
from support.head_runs import CASES, recipe
from support.live_runs import attempt
from support.tiny_embedders import build_embedder, save_transformer
from support.tiny_runs import create_run, events_of

from whet.engine import FastSentenceTransformer, SentenceTransformerTrainer
from whet.engine.models.fast_path.encoders import apply_fast_encoder
from whet.engine.runs.events import StepEvent

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", ["bert", "xlm-r", "modernbert"])
def test_gradients_are_transformers(tmp_path: Path, name: str) -> None:
    folder = save_transformer(tmp_path / name, name)
    found: dict[str, torch.Tensor] = {}
    for kind, dtype in (("exact", torch.float32), ("ours", torch.float32), ("half", torch.bfloat16)):
        model = adapted(folder, dtype=dtype).cuda()
        if kind != "exact":
            assert apply_fast_encoder(model, dtype).complete
        inputs = {key: value.cuda() for key, value in padded_rows(model.config.pad_token_id).items()}
        _, gradients = weighed(model, inputs)
        found[kind] = torch.cat([gradient.float().flatten() for gradient in gradients.values()])
    exact = found["exact"]
    errors = {kind: float((each - exact).norm() / exact.norm()) for kind, each in found.items()}
    assert errors["ours"] < 1e-5 and errors["half"] < 3e-2, errors


def steps(folder: Path, output: Path, graphs: bool, **config: Any) -> Any:
    """Losses, trained weights, and how many graphs there were."""
    model = FastSentenceTransformer.from_pretrained(str(folder))
    for name, value in config.items():
        setattr(model[0].model.config, name, value)
    model = FastSentenceTransformer.get_peft_model(model, r=8, lora_alpha=16, random_state=1)
    trainer = SentenceTransformerTrainer(
        model=model,
        train_dataset=Dataset.from_list(pairs(400)),
        loss=MultipleNegativesRankingLoss(model),
        args=Arguments(
            output_dir=str(output), max_steps=12, per_device_train_batch_size=32, learning_rate=1e-3,
            bf16=True, logging_steps=1, report_to="none", save_strategy="no", disable_tqdm=True,
        ),
    )  # fmt: skip
    assert trainer.fast is not None, trainer.plain_reason
    if not graphs:
        trainer.fast.graphed.stopped = "the test"
    trainer.train()
    assert graphs is (trainer.fast.graphed.stopped is None)
    weights = torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, weights, len(trainer.fast.graphed.graphs)


@pytest.mark.parametrize("config", [{}, {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}])
def test_graphs_change_nothing(tmp_path: Path, config: dict[str, float]) -> None:
    folder = build_embedder(tmp_path / "bert", "bert")
    graphed, eager = (steps(folder, tmp_path / "out", graphs, **config) for graphs in (True, False))
    assert graphed[2] > 0 and eager[2] == 0
    assert graphed[0] == eager[0] and torch.equal(graphed[1], eager[1])


DROPPING = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}


def head_steps(case: str, model: Path, folder: Path, graphs: bool) -> Any:
    """Losses of a run, trained weights, and how many graphs there were."""
    kind, made = CASES[case][0], []

    def method(context: Any) -> Any:
        made.append(kind(context))
        trainer = made[-1].trainer
        assert trainer.packing is not None and trainer.graph_reason is None, trainer.plain_reason
        if not graphs:
            trainer.graphed.stopped = "the test"
        return made[-1]

    run = create_run(recipe(case, model, folder, training={"max_steps": 16, "save_every": 16}))
    assert attempt(run, method=method) == "finished"
    trainer = made[0].trainer
    assert graphs is (trainer.graphed.stopped is None), trainer.graphed.stopped
    weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters() if p.requires_grad])
    losses = [event.loss for event in events_of(run) if isinstance(event, StepEvent)]
    return losses, weights, len(trainer.graphed.graphs)


@pytest.mark.parametrize(
    ("name", "case", "config"),
    [
        ("bert", "classes", {}),
        ("bert", "classes", DROPPING),
        ("bert", "pairs", {}),
        ("bert", "label sets", {}),
        ("modernbert", "classes", {"classifier_pooling": "mean", "classifier_dropout": 0.1}),
        ("bert", "tags", DROPPING),
        ("modernbert", "tags", {}),
        ("xlm-r", "triplets", {}),
        ("bert", "scores", DROPPING),
        ("roberta", "distances", {}),
    ],
)
def test_graphs_change_no_step_of_a_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, case: str, config: dict[str, Any]
) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    model = save_transformer(tmp_path / name, name)
    written = json.loads((model / "config.json").read_text(encoding="utf-8")) | config
    (model / "config.json").write_text(json.dumps(written), encoding="utf-8")
    graphed, eager = (head_steps(case, model, tmp_path, graphs) for graphs in (True, False))
    assert graphed[2] > 0 and eager[2] == 0
    assert len(graphed[0]) == 16 and graphed[0] == eager[0]
    assert torch.equal(graphed[1], eager[1])
