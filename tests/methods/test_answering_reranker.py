"""Rerankers that answer yes or no: they learn, resume, and plain CrossEncoder scores the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment
from sentence_transformers import CrossEncoder
from support.live_runs import attempt
from support.tiny_embedders import save_transformer
from support.tiny_runs import create_run, events_of, next_attempt
from transformers import AutoModelForCausalLM, AutoTokenizer

from whet.engine.errors import WhetError
from whet.engine.methods.reranker.asking import asks, template, written
from whet.engine.methods.reranker.job import RerankerTraining
from whet.engine.methods.reranker.section import RerankerSection
from whet.engine.plan import make_plan
from whet.engine.recipe import Recipe
from whet.engine.runs.events import StepEvent
from whet.engine.runs.store import RunDir

GOOD, BAD = ["fine", "good", "great", "nice"], ["bad", "awful", "poor", "dull"]
THINGS = ["car", "house", "lamp", "boat"]
PAIRS = [("what about the car", "good fine"), ("what about the car", "awful dull")]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def answering(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal language model whose vocabulary has yes and no."""
    root = tmp_path_factory.mktemp("answering")
    plain = save_transformer(root / "plain", "qwen3")
    tokenizer = AutoTokenizer.from_pretrained(plain)
    tokenizer.add_tokens(["yes", "no"])
    model: Any = AutoModelForCausalLM.from_pretrained(plain)
    model.resize_token_embeddings(len(tokenizer))
    torch.manual_seed(0)
    with torch.no_grad():  # fresh rows are nearly the same, and their difference would teach nothing
        for weight in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
            weight[len(tokenizer) - 2 : len(tokenizer)].normal_()
    for part in (model, tokenizer):
        part.save_pretrained(root / "tiny-Reranker")
    return root / "tiny-Reranker"


def recipe(model: Path, folder: Path, **sections: dict[str, Any]) -> Recipe:
    rows = [
        {"query": f"what about the {thing}", "document": word, "score": score}
        for thing in THINGS
        for words, score in ((GOOD, 1.0), (BAD, 0.0))
        for word in words
    ]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    values: dict[str, dict[str, Any]] = {
        "model": {"name": str(model), "max_length": 256},
        "data": {"train": str(path)},
        "method": {"kind": "reranker"},
        "adapter": {"rank": 16, "alpha": 32},
        "training": {
            "max_steps": 44, "batch_size": 16, "gradient_accumulation": 1, "learning_rate": 3e-3,
            "optimizer": "adamw", "save_every": 100, "warmup": 0, "threads": 1,
        },
    }  # fmt: skip
    return Recipe.model_validate(
        {name: values.get(name, {}) | sections.get(name, {}) for name in values | sections}
    )


def losses(run: RunDir) -> list[float]:
    return [event.loss for event in events_of(run) if isinstance(event, StepEvent)]


def test_it_learns_to_answer_and_plain_cross_encoder_scores_the_same(answering: Path, tmp_path: Path) -> None:
    run = create_run(recipe(answering, tmp_path))
    assert attempt(run, method=RerankerTraining) == "finished"
    seen = losses(run)
    assert np.mean(seen[-4:]) < 0.5 * seen[0]
    plain = CrossEncoder(str(run.export / "adapter"), device="cpu")
    scores = plain.predict(PAIRS)
    assert scores[0] > 0.5 > scores[1]
    training = RerankerTraining(next_attempt(run))
    training.trainer.load_weights(run.export / "adapter")
    np.testing.assert_allclose(training.model.predict(PAIRS), scores, atol=1e-5)


def test_a_stopped_run_goes_on_where_it_was(answering: Path, tmp_path: Path) -> None:
    wanted = recipe(answering, tmp_path, training={"max_steps": 4, "save_every": 2, "batch_size": 4})
    whole = create_run(wanted)
    assert attempt(whole, method=RerankerTraining) == "finished"
    run = create_run(wanted)
    assert attempt(run, method=RerankerTraining, stop_after=3) == "stopped"
    assert attempt(run, method=RerankerTraining) == "finished"
    again = {event.step: event.loss for event in events_of(run) if isinstance(event, StepEvent)}
    assert list(again.values()) == pytest.approx(losses(whole), abs=0)


def test_the_template_writes_what_is_counted_and_takes_another_instruction() -> None:
    jinja = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    pair = [{"role": "query", "content": "why?"}, {"role": "document", "content": "so\nthat"}]
    made = jinja.from_string(template('find "it"')).render(messages=pair)
    assert made == written("why?", "so\nthat", 'find "it"')
    told = [{"role": "system", "content": "other"}, *pair]
    assert jinja.from_string(template("x")).render(messages=told) == written("why?", "so\nthat", "other")


def test_which_models_answer_and_what_is_refused(answering: Path, tmp_path: Path) -> None:
    assert asks(RerankerSection(), answering, "Qwen/Qwen3-Reranker-0.6B")
    assert not asks(RerankerSection(), answering, "Qwen/Qwen3-0.6B")
    assert not asks(RerankerSection(head="score"), answering, "a-reranker")
    without = save_transformer(tmp_path / "qwen3", "qwen3")
    with pytest.raises(WhetError, match="no tokens of this model"):
        make_plan(recipe(without, tmp_path, method={"head": "yes_no"}))
    bert = save_transformer(tmp_path / "bert", "bert")
    with pytest.raises(WhetError, match="for models that answer"):
        make_plan(recipe(bert, tmp_path, method={"head": "yes_no"}))
    short = make_plan(recipe(answering, tmp_path, method={"head": "score"})).resolved.longest
    assert make_plan(recipe(answering, tmp_path)).resolved.longest > short + 50
