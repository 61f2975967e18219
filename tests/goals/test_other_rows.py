"""Goals whose rows are no chats: what they look made for decides the method, and the method the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.plan_inputs import gpu, machine
from support.tiny_embedders import save_transformer

from whet.engine.data.rows import RawRow
from whet.engine.data.uses import uses_of
from whet.engine.errors import WhetError
from whet.engine.goals import Goal, propose
from whet.engine.recipe import Recipe

Rows = list[dict[str, Any]]
COUNT = 200
ROWS: dict[str, Rows] = {
    "pairs": [{"anchor": f"dog {n}", "positive": f"cat {n}"} for n in range(COUNT)],
    "labelled": [{"text": f"dog {n}", "label": "ab"[n % 2]} for n in range(COUNT)],
    "ranked": [{"query": f"dog {n}", "document": f"cat {n}", "score": n % 3 / 2} for n in range(COUNT)],
    "tagged": [{"tokens": ["Anna", f"dog{n}"], "tags": ["B-PER", "O"]} for n in range(COUNT)],
    "compared": [{"prompt": f"say {n}", "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(COUNT)],
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("WHET_OFFLINE", "1")


def write(folder: Path, rows: Rows) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read(rows: Rows, **columns: str) -> list[tuple[str, str]]:
    found = uses_of([RawRow("f", number, row) for number, row in enumerate(rows, 1)], columns)
    return [(one.method, one.layout) for one in found]


@pytest.mark.parametrize(
    ("rows", "first"),
    [
        (ROWS["pairs"], ("embedding", "pairs")),
        (ROWS["labelled"], ("classification", "labelled")),
        (ROWS["ranked"], ("reranker", "scored")),
        (ROWS["tagged"], ("token_classification", "tagged")),
        (ROWS["compared"], ("preference", "preference")),
        ([{"text": f"dog {n}", "label": n} for n in range(9)], ("sft", "text")),
        ([{"question": "a", "answer": "b"}], ("sft", "prompt_completion")),
        ([{"sentence1": "a", "sentence2": "b", "score": 0.5}], ("embedding", "scored")),
        ([{"prompt": "a", "completion": "b", "label": True}], ("preference", "ratings")),
        ([{"text": "a", "labels": ["x"]}], ("classification", "multi_labelled")),
        ([{"image": "a.png", "prompt": "what?", "completion": "that"}], ("vision", "images")),
        ([{"audio": "a.wav", "text": "said"}], ("speech", "speech")),
    ],
)
def test_rows_are_for_what_they_look_made_for(rows: Rows, first: tuple[str, str]) -> None:
    assert read(rows)[0] == first


def test_every_method_that_reads_them_is_named() -> None:
    kinds = {kind for kind, _ in read(ROWS["labelled"])}
    assert {"classification", "embedding", "sft"} <= kinds
    assert read([{"foo": 1}]) == [] and read([]) == []
    assert read([{"a": "x", "b": "y"}], anchor="a", positive="b")[0] == ("embedding", "pairs")
    unreadable = [{"tokens": ["a", "b"], "tags": ["O"]}]
    assert read(unreadable) == []


@pytest.mark.parametrize(
    ("name", "method", "export"),
    [
        ("pairs", "embedding", {"gguf": ["f16"]}),
        ("labelled", "classification", {"merged": True}),
        ("ranked", "reranker", {"merged": True}),
        ("tagged", "token_classification", {"merged": True}),
        ("compared", "preference", {"gguf": ["q4_k_m"]}),
    ],
)
def test_a_goal_gets_the_method_of_its_rows(
    tmp_path: Path, name: str, method: str, export: dict[str, Any]
) -> None:
    found = propose(Goal(data=write(tmp_path, ROWS[name])), machine=machine())
    recipe = found.recipe
    assert recipe.method.kind == method and found.plan.blocked() == []
    assert recipe.export.model_dump(include=set(export)) == export
    assert found.uses[0].method == method and "the rows are" in found.reasons["method.kind"]
    assert recipe.data.eval_fraction > 0 and found.plan.resolved.total_steps >= 10
    values = recipe.model_dump(exclude_unset=True)
    said = {f"{section}.{key}" for section, inner in values.items() for key in inner}
    assert said == {key for key in found.reasons if key != "machine"}, "each value has a reason"
    assert Recipe.model_validate(recipe.model_dump()) == recipe and "# the rows are" in found.to_yaml()
    if method == "embedding":
        assert recipe.model.name == "demo" and any("MiniLM" in line for line in found.passed_over)


def test_a_named_model_method_and_settings_stand(tmp_path: Path) -> None:
    bert = save_transformer(tmp_path / "bert", "bert")
    data = write(tmp_path, ROWS["labelled"])
    goal = Goal(data=data, model=str(bert), method="embedding", overrides={"training.batch_size": 4})
    found = propose(goal, machine=machine(gpu(24, capability=(8, 9))))
    assert found.recipe.method.kind == "embedding" and found.recipe.training.batch_size == 4
    assert found.plan.data.report.format.name == "labelled"
    assert not any("fp8" in str(one.patch) for one in found.alternatives)
    usual = propose(Goal(data=data, model=str(bert), method="embedding"), machine=machine())
    assert usual.recipe.training.batch_size == 16 and usual.plan.blocked() == []
    chosen = propose(
        Goal(data=data, model=str(bert), overrides={"method.kind": "classification"}), machine=machine()
    )
    assert chosen.recipe.method.kind == "classification"


def test_a_method_that_needs_more_than_rows_is_refused_with_the_way(tmp_path: Path) -> None:
    with pytest.raises(WhetError, match="none of the methods") as caught:
        propose(Goal(data=write(tmp_path, ROWS["pairs"]), method="grpo"), machine=machine())
    assert caught.value.code == "goal.method" and "whet recipes" in caught.value.hint
    seen = [{"image": "a.png", "prompt": "what?", "completion": "that"}] * 3
    with pytest.raises(WhetError, match="made for method") as caught:
        propose(Goal(data=write(tmp_path, seen)), machine=machine())
    assert caught.value.hint == "Begin with its recipe: whet recipes --copy vision"
