"""Token classifiers as runs: tags on the right tokens, entities counted right, whet not needed after."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from support.live_runs import attempt
from support.tiny_embedders import save_transformer
from support.tiny_runs import create_run, events_of, next_attempt
from transformers import AutoConfig, AutoModelForTokenClassification, AutoTokenizer, pipeline

from whet.engine.methods.token_classification.alignment import IGNORED, aligned, joined
from whet.engine.methods.token_classification.entities import entities, entity_scores, marks_entities
from whet.engine.methods.token_classification.job import TokenClassificationTraining
from whet.engine.plan import make_plan
from whet.engine.recipe import Recipe
from whet.engine.runs.events import EvalEvent, StepEvent
from whet.engine.runs.store import RunDir

PEOPLE = ["anna", "berta", "carl", "david", "emil"]
PLACES = ["paris", "rome", "oslo", "vienna", "madrid"]
NAMES = ["O", "B-PER", "I-PER", "B-LOC"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: save_transformer(root / name, name) for name in ("bert", "xlm-r", "modernbert")}


def rows() -> list[dict[str, Any]]:
    """Two people or one, and a place."""
    return [
        {"tokens": [one, other, "in", place], "ner_tags": ["B-PER", "I-PER", "O", "B-LOC"]}
        if number % 2
        else {"tokens": ["the", place, "of", one], "ner_tags": ["O", "B-LOC", "O", "B-PER"]}
        for place in PLACES
        for one in PEOPLE
        for number, other in enumerate(PEOPLE)
    ]


def recipe(model: Path, folder: Path, examples: list[dict[str, Any]], **sections: dict[str, Any]) -> Recipe:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in examples), encoding="utf-8")
    values: dict[str, dict[str, Any]] = {
        "model": {"name": str(model), "max_length": 32},
        "data": {"train": str(path), "eval_fraction": 0.2},
        "method": {"kind": "token_classification"},
        "adapter": {"rank": 8, "alpha": 16},
        "eval": {"every": 100, "batch_size": 16},
        "training": {
            "max_steps": 50, "batch_size": 8, "gradient_accumulation": 2, "learning_rate": 5e-3,
            "optimizer": "adamw", "save_every": 100, "warmup": 0, "threads": 1,
        },
    }  # fmt: skip
    return Recipe.model_validate(
        {name: values.get(name, {}) | sections.get(name, {}) for name in values | sections}
    )


def finished(wanted: Recipe) -> RunDir:
    run = create_run(wanted)
    assert attempt(run, method=TokenClassificationTraining) == "finished"
    return run


@pytest.mark.parametrize("name", ["bert", "xlm-r", "modernbert"])
def test_it_learns_and_plain_peft_gives_the_same_logits(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    run = finished(recipe(folders[name], tmp_path, rows()))
    first, last = [event for event in events_of(run) if isinstance(event, EvalEvent)]
    assert last.loss < 0.3 * first.loss
    assert last.metrics["f1"] > 0.9 > 0.5 > first.metrics["f1"] and last.metrics["token_accuracy"] > 0.9
    folder = run.export / "adapter"
    base = AutoModelForTokenClassification.from_pretrained(
        folders[name], config=AutoConfig.from_pretrained(folder)
    )
    plain = PeftModel.from_pretrained(base, str(folder)).eval()
    inputs = AutoTokenizer.from_pretrained(folder)("anna carl in oslo", return_tensors="pt")
    training = TokenClassificationTraining(next_attempt(run))
    training.trainer.load_weights(folder)
    with torch.no_grad():
        again = training.headed.model.eval()(**inputs).logits
        torch.testing.assert_close(plain(**inputs).logits, again, atol=1e-5, rtol=1e-5)


def test_the_pipeline_finds_the_entities(folders: dict[str, Path], tmp_path: Path) -> None:
    wanted = recipe(
        folders["bert"], tmp_path, rows(), adapter={"kind": "none"}, training={"learning_rate": 1e-3}
    )
    folder = finished(wanted).export / "model"
    find: Any = pipeline(
        "token-classification", model=str(folder), device="cpu", aggregation_strategy="simple"
    )
    said = find("anna carl in oslo")
    assert {(one["entity_group"], one["start"]) for one in said} >= {("PER", 0), ("LOC", 13)}


def test_numbered_tags_get_names(folders: dict[str, Path], tmp_path: Path) -> None:
    numbered = [{**row, "ner_tags": [NAMES.index(tag) for tag in row["ner_tags"]]} for row in rows()]
    wanted = recipe(folders["bert"], tmp_path, numbered, method={"label_names": NAMES},
                    training={"max_steps": 3})  # fmt: skip
    run = finished(wanted)
    assert AutoConfig.from_pretrained(run.export / "adapter").id2label == dict(enumerate(NAMES))
    last = [event for event in events_of(run) if isinstance(event, EvalEvent)][-1]
    assert {"f1", "precision", "recall"} <= last.metrics.keys()


def test_tags_without_entities_are_measured_by_tag(folders: dict[str, Path], tmp_path: Path) -> None:
    kinds = dict(zip(NAMES, ("WORD", "NAME", "NAME", "NAME"), strict=True))
    tagged = [{**row, "ner_tags": [kinds[tag] for tag in row["ner_tags"]]} for row in rows()]
    run = finished(recipe(folders["bert"], tmp_path, tagged))
    last = [event for event in events_of(run) if isinstance(event, EvalEvent)][-1]
    assert last.metrics["macro_f1"] > 0.9 and "f1" not in last.metrics


def test_a_stopped_run_goes_on_where_it_was(folders: dict[str, Path], tmp_path: Path) -> None:
    wanted = recipe(folders["bert"], tmp_path, rows(), adapter={"dropout": 0.1},
                    training={"max_steps": 9, "save_every": 3})  # fmt: skip

    def losses(run: RunDir) -> dict[int, float]:
        return {event.step: event.loss for event in events_of(run) if isinstance(event, StepEvent)}

    whole = losses(finished(wanted))
    run = create_run(wanted)
    assert attempt(run, stop_after=5, method=TokenClassificationTraining) == "stopped"
    assert attempt(run, method=TokenClassificationTraining) == "finished"
    assert losses(run) == whole and len(whole) == 9


def test_bad_rows_are_named(folders: dict[str, Path], tmp_path: Path) -> None:
    bad: list[dict[str, Any]] = [
        {"tokens": ["a", "b"], "ner_tags": ["O"]},
        {"tokens": [], "ner_tags": []},
        {"tokens": ["a", 3], "ner_tags": ["O", "O"]},
        {"tokens": ["a"], "ner_tags": "O"},
    ]
    report = make_plan(recipe(folders["bert"], tmp_path, [*rows(), *bad])).data.report
    reasons = [one.reason for one in report.bad]
    assert reasons == [
        "field 'tokens' has 2 entries, 'ner_tags' 1", "field 'tokens' is an empty list",
        "field 'tokens' holds 3, expected words", "field 'ner_tags' is 'O', expected a list",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["bert", "xlm-r", "modernbert"])
def test_each_word_has_its_tag_once_on_its_first_token(folders: dict[str, Path], name: str) -> None:
    words = ["unbelievable", "(paris)", "it's", "Überraschung", "a"]
    text, starts = joined(words)
    tokens = AutoTokenizer.from_pretrained(folders[name])(text, return_offsets_mapping=True)
    tags = aligned(tokens["offset_mapping"], starts, [1, 2, 3, 4, 5])
    assert len(tags) == len(tokens["input_ids"]) and [tag for tag in tags if tag != IGNORED] == [
        1,
        2,
        3,
        4,
        5,
    ]
    for place, (begin, end) in enumerate(tokens["offset_mapping"]):
        if tags[place] != IGNORED:
            word = starts[tags[place] - 1]
            assert text[begin:end].strip() and begin <= word < end


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("B-A I-A O B-A", {(0, 2, "A"), (3, 4, "A")}),
        ("B-A B-A I-B", {(0, 1, "A"), (1, 2, "A"), (2, 3, "B")}),
        ("I-A I-A O I-B", {(0, 2, "A"), (3, 4, "B")}),
        ("B-A E-A I-A S-B O", {(0, 2, "A"), (2, 3, "A"), (3, 4, "B")}),
        ("O O", set()),
        ("", set()),
    ],
)
def test_entities(tags: str, found: set[tuple[int, int, str]]) -> None:
    assert entities(tags.split()) == found


def test_entity_scores() -> None:
    right = [["B-A", "I-A", "O", "B-B"], ["B-A"]]
    given = [["B-A", "O", "O", "B-B"], ["O"]]
    assert entity_scores(given, right) == {"precision": 1 / 2, "recall": 1 / 3, "f1": 2 / 5}
    assert entity_scores([["O"]], [["O"]])["f1"] == 0.0
    assert marks_entities(["O", "B-A", "I-A"]) and not marks_entities(["O", "NOUN"])
    assert not marks_entities(["B-", "O"]) and not marks_entities(["O"])
