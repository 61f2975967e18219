"""Embedding models as runs: they learn, go on where they stopped, and load without whet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from support.live_runs import attempt
from support.tiny_embedders import build_embedder, save_transformer
from support.tiny_runs import create_run, events_of

from whet.engine import api
from whet.engine.errors import WhetError
from whet.engine.methods.embedding.job import EmbeddingTraining
from whet.engine.plan import make_plan
from whet.engine.recipe import Recipe
from whet.engine.runs.context import RunContext
from whet.engine.runs.events import EvalEvent, FindingEvent, PhaseEvent, StepEvent
from whet.engine.runs.store import RunDir

COLOURS = ["red", "green", "blue", "yellow", "black", "white", "brown", "purple", "orange", "grey"]
THINGS = ["car", "house", "tree", "boat", "lamp", "chair", "shirt", "stone", "river", "cloud"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_embedder(tmp_path_factory.mktemp("model") / "bert", "bert")


def pairs() -> list[dict[str, Any]]:
    """What no model knows: a thing's number in another word order."""
    return [
        {"anchor": f"{colour} {thing}", "positive": f"number {i * 10 + j} is {thing} {colour}"}
        for i, colour in enumerate(COLOURS)
        for j, thing in enumerate(THINGS)
    ]


def recipe(model: Path, folder: Path, rows: list[dict[str, Any]], **sections: dict[str, Any]) -> Recipe:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    values: dict[str, dict[str, Any]] = {
        "model": {"name": str(model), "max_length": 32},
        "data": {"train": str(path)},
        "method": {"kind": "embedding"},
        "adapter": {"rank": 8, "alpha": 16},
        "training": {
            "max_steps": 8, "batch_size": 8, "gradient_accumulation": 2, "learning_rate": 5e-3,
            "optimizer": "adamw", "save_every": 3, "warmup": 0, "threads": 1,
        },
    }  # fmt: skip
    return Recipe.model_validate({name: values.get(name, {}) | sections.get(name, {}) for name in
                                  values | sections})  # fmt: skip


def losses(run: RunDir) -> list[float]:
    return [event.loss for event in events_of(run) if isinstance(event, StepEvent)]


def finished(wanted: Recipe) -> RunDir:
    run = create_run(wanted)
    assert attempt(run, method=EmbeddingTraining) == "finished"
    return run


@pytest.mark.parametrize("kind", ["lora", "none"])
def test_it_learns_and_plain_sentence_transformers_gives_the_same_vectors(
    bert: Path, tmp_path: Path, kind: str
) -> None:
    run = finished(
        recipe(
            bert, tmp_path, pairs(),
            data={"eval_fraction": 0.2}, adapter={"kind": kind}, eval={"every": 20, "batch_size": 16},
            training={"max_steps": 40, "learning_rate": 5e-3 if kind == "lora" else 1e-3},
        )
    )  # fmt: skip
    seen = losses(run)
    assert sum(seen[-5:]) < 0.6 * sum(seen[:5])
    first, *_, last = [event for event in events_of(run) if isinstance(event, EvalEvent)]
    assert last.loss < first.loss and last.metrics["ndcg@10"] > first.metrics["ndcg@10"] + 0.05
    folder = run.export / ("adapter" if kind == "lora" else "model")
    loaded = SentenceTransformer(str(folder), device="cpu")
    again = finished_vectors(run, folder)
    np.testing.assert_allclose(loaded.encode(["red car", "blue boat"]), again, atol=1e-6)
    assert not np.allclose(
        again, SentenceTransformer(str(bert), device="cpu").encode(["red car", "blue boat"])
    )


def finished_vectors(run: RunDir, folder: Path) -> Any:
    """Of a fresh attempt's model with the trained weights put in."""
    from support.tiny_runs import next_attempt

    training = EmbeddingTraining(next_attempt(run))
    training.trainer.load_weights(folder)
    return training.model.encode(["red car", "blue boat"])


def test_a_stopped_run_goes_on_where_it_was(bert: Path, tmp_path: Path) -> None:
    wanted = recipe(bert, tmp_path, pairs(), adapter={"dropout": 0.1}, training={"max_steps": 9})
    whole = losses(finished(wanted))
    run = create_run(wanted)
    assert attempt(run, stop_after=5, method=EmbeddingTraining) == "stopped"
    assert attempt(run, method=EmbeddingTraining) == "finished"
    steps = {event.step: event.loss for event in events_of(run) if isinstance(event, StepEvent)}
    assert list(steps.values()) == whole


@pytest.mark.parametrize(
    ("rows", "method"),
    [
        ([{**pair, "negative": "nothing of the kind"} for pair in pairs()], {}),
        ([{**pair, "negative": "nothing of the kind"} for pair in pairs()], {"loss": "triplet"}),
        (pairs(), {"loss": "cached_multiple_negatives", "mini_batch_size": 4}),
        (pairs(), {"matryoshka": [64, 16], "query_prompt": "query: "}),
        ([{**pair, "score": number % 3 / 2} for number, pair in enumerate(pairs())], {}),
        ([{"text": pair["anchor"], "label": pair["anchor"].split()[0]} for pair in pairs()], {}),
    ],
)
def test_every_layout_trains(
    bert: Path, tmp_path: Path, rows: list[dict[str, Any]], method: dict[str, Any]
) -> None:
    run = finished(recipe(bert, tmp_path, rows, method=method, training={"max_steps": 3}))
    seen = losses(run)
    assert len(seen) == 3 and all(np.isfinite(seen)) and seen[0] > 0
    assert all(event.tokens > 0 for event in events_of(run) if isinstance(event, StepEvent))


def test_a_decoder_embeds_by_its_last_token(tmp_path: Path) -> None:
    plain = save_transformer(tmp_path / "qwen3", "qwen3")
    run = finished(recipe(plain, tmp_path, pairs(), training={"max_steps": 2}))
    with pytest.raises(WhetError, match="answers nothing"):
        api.chat_target(run.id)
    kinds = ("sft", "preference", "embedding", "reranker")
    assert [api.usual_target(kind) for kind in kinds] == ["q4_k_m", "q4_k_m", "f16", "merged"]
    pooling = json.loads((run.export / "adapter" / "1_Pooling" / "config.json").read_text())
    assert "lasttoken" in json.dumps(pooling)


def test_rows_that_do_not_suit_the_loss_are_refused(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(WhetError, match="no layout"):
        make_plan(recipe(bert, tmp_path, [{"prompt": "a", "completion": "b"}]))


def test_texts_that_are_packed_ahead_count_as_time_of_rows(bert: Path, tmp_path: Path) -> None:
    """A check asks whether a run waits for its rows."""
    made: list[EmbeddingTraining] = []

    def method(context: RunContext) -> EmbeddingTraining:
        made.append(EmbeddingTraining(context))
        return made[0]

    assert attempt(create_run(recipe(bert, tmp_path, pairs())), method=method) == "finished"
    trainer = made[0].trainer
    assert trainer.data_seconds >= trainer._ahead.seconds > 0


def test_a_run_says_how_its_batches_go(bert: Path, tmp_path: Path) -> None:
    for method, said, noted in (
        ({}, "fast path: attention 3/3, mlp 3/3", False),
        ({"loss": "cached_multiple_negatives"}, "steps 0/1; steps: Cached", True),
    ):
        run = finished(recipe(bert, tmp_path, pairs(), method=method, training={"max_steps": 1}))
        details = [event.detail for event in events_of(run) if isinstance(event, PhaseEvent)]
        assert any(said in str(detail) for detail in details)
        found = {event.finding.id for event in events_of(run) if isinstance(event, FindingEvent)}
        assert ("L08" in found) is noted


def test_recomputing_changes_no_loss(bert: Path, tmp_path: Path) -> None:
    seen = [
        losses(finished(recipe(bert, tmp_path, pairs(),
                               training={"max_steps": 3, "gradient_checkpointing": switch})))
        for switch in ("on", "off")
    ]  # fmt: skip
    assert seen[0] == pytest.approx(seen[1], rel=1e-6)
