"""Classifiers as runs: they learn, go on where they stopped, and answer the same without whet."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from support.live_runs import attempt
from support.tiny_embedders import save_transformer
from support.tiny_runs import create_run, events_of, next_attempt
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from whet.engine.errors import WhetError
from whet.engine.methods.classification.classes import class_names, numbers_of
from whet.engine.methods.classification.job import ClassificationTraining
from whet.engine.plan import make_plan
from whet.engine.recipe import Recipe
from whet.engine.recipe_files import patched
from whet.engine.runs.events import EvalEvent, StepEvent
from whet.engine.runs.store import RunDir

ANIMALS = ["dog", "cat", "horse", "bird", "fish"]
THINGS = ["car", "house", "lamp", "chair", "boat"]
PLACES = ["paris", "rome", "oslo", "vienna", "madrid"]
KINDS = {"animal": ANIMALS, "thing": THINGS, "place": PLACES}
TEXTS = ["dog horse bird", "lamp car", "rome oslo"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: save_transformer(root / name, name) for name in ("bert", "xlm-r", "modernbert", "qwen3")}


def rows() -> list[dict[str, Any]]:
    """Two things of a kind and the kind; which pairs are held out nobody has seen."""
    return [
        {"text": f"{one} {other}", "label": kind}
        for kind, words in KINDS.items()
        for one in words
        for other in words
    ]


def recipe(model: Path, folder: Path, examples: list[dict[str, Any]], **sections: dict[str, Any]) -> Recipe:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in examples), encoding="utf-8")
    values: dict[str, dict[str, Any]] = {
        "model": {"name": str(model), "max_length": 32},
        "data": {"train": str(path)},
        "method": {"kind": "classification"},
        "adapter": {"rank": 8, "alpha": 16},
        "training": {
            "max_steps": 8, "batch_size": 8, "gradient_accumulation": 2, "learning_rate": 5e-3,
            "optimizer": "adamw", "save_every": 3, "warmup": 0, "threads": 1,
        },
    }  # fmt: skip
    return Recipe.model_validate(
        {name: values.get(name, {}) | sections.get(name, {}) for name in values | sections}
    )


def losses(run: RunDir) -> list[float]:
    return [event.loss for event in events_of(run) if isinstance(event, StepEvent)]


def evaluations(run: RunDir) -> list[EvalEvent]:
    return [event for event in events_of(run) if isinstance(event, EvalEvent)]


def finished(wanted: Recipe) -> RunDir:
    run = create_run(wanted)
    assert attempt(run, method=ClassificationTraining) == "finished"
    return run


def logits(model: Any, tokenizer: Any, texts: list[str]) -> Any:
    with torch.no_grad():
        return model.eval()(**tokenizer(texts, padding=True, return_tensors="pt")).logits.numpy()


def of_run(run: RunDir, folder: Path, texts: list[str]) -> Any:
    """A fresh attempt's model with the trained weights put in."""
    training = ClassificationTraining(next_attempt(run))
    training.trainer.load_weights(folder)
    return logits(training.headed.model, training.headed.tokenizer, texts)


def long(steps: int = 50, learning_rate: float = 5e-3) -> dict[str, dict[str, Any]]:
    return {
        "data": {"eval_fraction": 0.2},
        "eval": {"every": 100, "batch_size": 16},
        "training": {"max_steps": steps, "learning_rate": learning_rate, "save_every": 100},
    }


@pytest.mark.parametrize("name", ["bert", "xlm-r", "modernbert", "qwen3"])
def test_an_adapter_and_its_head_learn_and_plain_peft_gives_the_same_logits(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    run = finished(
        recipe(folders[name], tmp_path, rows(), **long(learning_rate=2e-3 if name == "qwen3" else 5e-3))
    )
    first, last = evaluations(run)
    assert last.loss < 0.5 * first.loss
    assert last.metrics["accuracy"] > 0.8 and last.metrics["macro_f1"] > 0.8 > first.metrics["macro_f1"]
    folder = run.export / "adapter"
    config = AutoConfig.from_pretrained(folder)
    assert config.id2label == {0: "animal", 1: "place", 2: "thing"}
    base = AutoModelForSequenceClassification.from_pretrained(folders[name], config=config)
    plain = PeftModel.from_pretrained(base, str(folder))
    again = logits(plain, AutoTokenizer.from_pretrained(folder), TEXTS)
    np.testing.assert_allclose(again, of_run(run, folder, TEXTS), atol=1e-5)
    assert [config.id2label[int(row.argmax())] for row in again] == ["animal", "thing", "place"]


def test_all_weights_train_and_the_pipeline_gives_the_same_scores(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    wanted = recipe(folders["bert"], tmp_path, rows(), adapter={"kind": "none"}, **long(50, 1e-3))
    run = finished(wanted)
    assert evaluations(run)[-1].metrics["accuracy"] > 0.8
    folder = run.export / "model"
    answer: Any = pipeline("text-classification", model=str(folder), device="cpu", top_k=None)
    said = answer(TEXTS)
    scores = torch.tensor(of_run(run, folder, TEXTS)).softmax(-1)
    names = AutoConfig.from_pretrained(folder).label2id
    for row, answers in zip(scores, said, strict=True):
        for one in answers:
            assert one["score"] == pytest.approx(float(row[names[one["label"]]]), abs=1e-5)
    assert [answers[0]["label"] for answers in said] == ["animal", "thing", "place"]


@pytest.mark.parametrize("kind", ["lora", "none"])
def test_a_stopped_run_goes_on_where_it_was(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    adapter = {"dropout": 0.1} if kind == "lora" else {"kind": "none"}
    wanted = recipe(folders["bert"], tmp_path, rows(), adapter=adapter, training={"max_steps": 9})
    whole = losses(finished(wanted))
    run = create_run(wanted)
    assert attempt(run, stop_after=5, method=ClassificationTraining) == "stopped"
    assert attempt(run, method=ClassificationTraining) == "finished"
    steps = {event.step: event.loss for event in events_of(run) if isinstance(event, StepEvent)}
    assert list(steps.values()) == whole and len(whole) == 9


def test_a_row_may_have_any_number_of_classes(folders: dict[str, Path], tmp_path: Path) -> None:
    words = [(kind, word) for kind, words in KINDS.items() for word in words]
    many: list[dict[str, Any]] = [
        {"text": f"{one} and {other}", "labels": sorted({kind, also})}
        for kind, one in words
        for also, other in words
    ] + [{"text": text, "labels": []} for text in ("and", "nothing", "and so on", "of it")]
    method = {"class_weights": "balanced"}
    run = finished(recipe(folders["bert"], tmp_path, many, method=method, **long(160, 5e-3)))
    first, *_, last = evaluations(run)
    assert last.metrics["micro_f1"] > 0.85, last.metrics
    assert last.metrics["accuracy"] > first.metrics["accuracy"] + 0.3
    config = AutoConfig.from_pretrained(run.export / "adapter")
    assert config.problem_type == "multi_label_classification"


def test_pairs_of_texts_are_read_together(folders: dict[str, Path], tmp_path: Path) -> None:
    second = [
        {"premise": f"the {other}", "hypothesis": f"a {word}", "label": number}
        for number, kind in enumerate(KINDS)
        for word in KINDS[kind]
        for other in [*ANIMALS, *THINGS]
    ]
    names = {"label_names": [*KINDS]}
    run = finished(recipe(folders["bert"], tmp_path, second, method=names, **long()))
    assert evaluations(run)[-1].metrics["macro_f1"] > 0.8
    assert AutoConfig.from_pretrained(run.export / "adapter").id2label == dict(enumerate(KINDS))


def test_balanced_weights_lift_the_rare_class(folders: dict[str, Path], tmp_path: Path) -> None:
    rare = [row for row in rows() if row["label"] != "place"] * 4 + [
        r for r in rows() if r["label"] == "place"
    ]
    plan = recipe(folders["bert"], tmp_path, rare, method={"class_weights": "balanced"})
    training = ClassificationTraining(next_attempt(create_run(plan)))
    outputs = type("Outputs", (), {"logits": torch.zeros(2, 3)})()
    weights = training._weights()
    assert weights.tolist() == pytest.approx([225 / (3 * 100), 225 / (3 * 25), 225 / (3 * 100)])
    loss = training.loss()(outputs, torch.tensor([0, 1]))
    assert float(loss) == pytest.approx(np.log(3) * (0.75 + 3.0) / 2)


def test_a_head_of_the_same_classes_is_kept(folders: dict[str, Path], tmp_path: Path) -> None:
    wanted = recipe(folders["bert"], tmp_path, rows(), adapter={"kind": "none"}, **long(50, 1e-3))
    trained = finished(wanted).export / "model"
    again = create_run(recipe(trained, tmp_path, rows(), **long()))
    assert attempt(again, method=ClassificationTraining) == "finished"
    assert evaluations(again)[0].metrics["accuracy"] > 0.8


def test_bad_rows_are_refused_with_the_reason(folders: dict[str, Path], tmp_path: Path) -> None:
    bert = folders["bert"]
    with pytest.raises(WhetError, match=r"no layout that method.kind=classification") as caught:
        make_plan(recipe(bert, tmp_path, [{"prompt": "a", "completion": "b"}]))
    assert "label" in caught.value.hint
    with pytest.raises(WhetError, match="fewer than two classes in 'label': 'x'"):
        make_plan(recipe(bert, tmp_path, [{"text": f"a {n}", "label": "x"} for n in range(9)]))
    broken: list[dict[str, Any]] = [*rows(), {"text": "a", "label": 0.5}, {"text": "a"}]
    plan = make_plan(recipe(bert, tmp_path, broken))
    assert plan.data.report.bad_rows == 2 and "0.5" in plan.data.report.bad[0].reason
    assert plan.data.report.labels == {"animal": 25, "place": 25, "thing": 25}


def test_numbered_classes() -> None:
    labels = {"10": 1, "2": 3}
    assert class_names(labels, []) == ["2", "10"]
    assert numbers_of(labels, ["2", "10"]) == {"10": 1, "2": 0}
    named = class_names({"0": 1, "1": 1}, ["no", "yes"])
    assert numbers_of({"0": 1, "1": 1}, named) == {"0": 0, "1": 1}
    with pytest.raises(WhetError, match="no name for 2"):
        class_names({"2": 1}, ["no", "yes"])


@pytest.mark.parametrize("precision", ["nf4", "int8"])
def test_a_rounded_base_trains_and_its_head_is_not_rounded(
    folders: dict[str, Path], tmp_path: Path, precision: str
) -> None:
    wanted = recipe(folders["modernbert"], tmp_path, rows(), training={"max_steps": 2})
    run = finished(patched(wanted, {"model.precision": precision}))
    assert all(np.isfinite(losses(run)))
    model = ClassificationTraining(next_attempt(run)).headed.model
    kinds = {path: type(part).__name__ for path, part in model.named_modules()}
    assert any(kind.startswith("Linear") and kind != "Linear" for kind in kinds.values())
    ends = ("head.modules_to_save.default.dense", "classifier.modules_to_save.default")
    heads = [path for path in kinds if path.endswith(ends)]
    assert len(heads) == 2 and {kinds[path] for path in heads} == {"Linear"}
    with pytest.raises(WhetError, match="fp8"):
        make_plan(patched(wanted, {"model.precision": "fp8"}))


@pytest.mark.parametrize("name", ["bert", "qwen3"])
def test_recomputing_activations_changes_no_loss(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    seen = [
        losses(finished(recipe(folders[name], tmp_path, rows(),
                               training={"max_steps": 3, "gradient_checkpointing": switch})))
        for switch in ("on", "off")
    ]  # fmt: skip
    assert seen[0] == pytest.approx(seen[1], rel=1e-5)


def test_a_pooler_that_the_checkpoint_lacks_trains_whole_and_holes_are_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    def without(part: str) -> Path:
        folder = tmp_path / f"without-{part}"
        shutil.copytree(folders["bert"], folder)
        weights = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items()
                   if part not in name}  # fmt: skip
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    run = finished(recipe(without("pooler"), tmp_path, rows(), training={"max_steps": 2}))
    saved = load_file(run.export / "adapter" / "adapter_model.safetensors")
    assert {"base_model.model.bert.pooler.dense.weight", "base_model.model.classifier.weight"} <= set(saved)
    broken = create_run(recipe(without("layer.1.intermediate"), tmp_path, rows()))
    assert attempt(broken, method=ClassificationTraining) == "model.load"
