"""The whole way: rows of files to memory-mapped ids, with everything seen on the way in the report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.tiny_tokenizers import byte_level, model_dir
from tokenizers import Tokenizer

from whet.engine.data import building
from whet.engine.data.inspection import lengths_of
from whet.engine.data.token_store import PreparedData, prepare
from whet.engine.errors import WhetError
from whet.engine.recipe import Recipe

Turns = list[dict[str, str]]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return model_dir(tmp_path / "model")


def recipe(train: Any, max_length: int = 256, method: dict[str, Any] | None = None, **data: Any) -> Recipe:
    section = {"template": "llama-3", **data, "train": train}
    model = {"name": "tiny", "max_length": max_length}
    return Recipe.model_validate({"model": model, "data": section, "method": method or {"kind": "sft"}})


def chat(question: str, answer: str) -> dict[str, Turns]:
    return {
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
    }


def written(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def stored(path: Path | None) -> list[dict[str, Any]]:
    assert path is not None
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_stream(source).read_all().to_pylist()


def answers(data: PreparedData, model: Path, split: str = "train") -> list[str]:
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    rows = stored(data.train if split == "train" else data.eval)
    return [
        tokenizer.decode([one for one in row["labels"] if one != -100], skip_special_tokens=False)
        for row in rows
    ]


def test_rows_become_tokens_that_datasets_can_map(tmp_path: Path, model: Path) -> None:
    source = written(tmp_path / "a.jsonl", [chat(f"Question {n}?", f"Answer {n}.") for n in range(2500)])
    seen: list[int] = []
    data = prepare(recipe(source), model, seen.append)
    assert seen == [1000, 2000]
    import datasets

    rows = datasets.Dataset.from_file(str(data.train))
    assert rows.column_names == ["input_ids", "labels", "row"] and len(rows) == 2500
    assert rows["row"][:3] == [0, 1, 2] and rows[2499]["row"] == 2499
    assert answers(data, model) == [f"Answer {n}.<|eot_id|>" for n in range(2500)]
    report = data.report.train
    assert report.rows == report.token_rows == 2500
    assert report.tokens == sum(len(ids) for ids in rows["input_ids"])
    assert report.supervised_tokens == sum(label != -100 for labels in rows["labels"] for label in labels)
    assert report.max_token_id == max(max(ids) for ids in rows["input_ids"])
    assert data.report.template == "llama-3" and data.report.end_of_turn == "<|eot_id|>"
    assert data.report.format.format == "messages" and data.eval is None


def test_the_second_time_nothing_is_read(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = written(tmp_path / "a.jsonl", [chat("a", "b")])
    first = prepare(recipe(source), model)
    monkeypatch.setattr(building, "iter_rows", None)
    assert prepare(recipe(source), model) == first


@pytest.mark.parametrize(
    "change",
    [
        {"max_length": 100},
        {"template": "chatml"},
        {"system": "Be kind."},
        {"eval_fraction": 0.5},
        {"method": {"kind": "sft", "supervise": "all"}},
        {"max_rows": 2},
    ],
)
def test_whatever_changes_the_tokens_changes_the_key(
    tmp_path: Path, model: Path, change: dict[str, Any]
) -> None:
    source = written(tmp_path / "a.jsonl", [chat(str(n), "b") for n in range(20)])
    assert prepare(recipe(source, **change), model).digest != prepare(recipe(source), model).digest


def test_content_and_tokenizer_change_the_key(tmp_path: Path, model: Path) -> None:
    source = written(tmp_path / "a.jsonl", [chat("a", "b")])
    first = prepare(recipe(source), model)
    written(tmp_path / "a.jsonl", [chat("a", "c")])
    second = prepare(recipe(source), model)
    byte_level(vocabulary=300).save(str(model / "tokenizer.json"))
    third = prepare(recipe(source), model)
    assert len({first.digest, second.digest, third.digest}) == 3
    assert first.template_digest == third.template_digest


def test_held_out_rows_are_fixed_by_content(tmp_path: Path, model: Path) -> None:
    rows = [chat(f"Question {n}?", f"Answer {n}.") for n in range(400)]
    data = prepare(recipe(written(tmp_path / "a.jsonl", rows), eval_fraction=0.25), model)
    held_out = set(answers(data, model, "eval"))
    assert 60 < len(held_out) < 140 and len(held_out) + len(answers(data, model)) == 400
    assert held_out.isdisjoint(answers(data, model)) and data.report.eval_in_train == 0
    assert data.report.eval is not None and data.report.eval.rows == len(held_out)
    shuffled = prepare(recipe(written(tmp_path / "b.jsonl", rows[::-1]), eval_fraction=0.25), model)
    assert set(answers(shuffled, model, "eval")) == held_out


def test_duplicates_and_leaks_are_counted(tmp_path: Path, model: Path) -> None:
    train = written(tmp_path / "a.jsonl", [chat("a", "1"), chat("b", "2"), chat("a", "1"), chat("a", "1")])
    held_out = written(tmp_path / "e.jsonl", [chat("b", "2"), chat("c", "3")])
    report = prepare(recipe(train, eval=held_out), model).report
    assert report.train.duplicates == 2
    assert [(one.file, one.line) for one in report.train.examples["duplicates"]] == [(train, 3), (train, 4)]
    assert report.eval_in_train == 1
    assert [(one.file, one.line) for one in report.eval_in_train_examples] == [(held_out, 1)]


BAD = [
    chat("a", "1"),
    '{"messages": [{"role": "user"',
    {"messages": None},
    {"messages": [{"role": "narrator", "content": "x"}]},
    {"text": "another layout"},
    chat("b", "2"),
]


def test_bad_rows_stop_the_plan(tmp_path: Path, model: Path, home: Path) -> None:
    source = written(tmp_path / "a.jsonl", BAD)
    with pytest.raises(WhetError) as error:
        prepare(recipe(source), model)
    assert error.value.code == "data.bad_rows"
    for line, reason in ((2, "broken JSON"), (3, "null"), (4, "narrator"), (5, "is missing")):
        assert f"{source}:{line}: " in error.value.message and reason in error.value.message
    assert "data.bad_rows=skip" in error.value.hint
    assert list((home / "cache" / "data").iterdir()) == []


def test_bad_rows_are_skipped_and_reported(tmp_path: Path, model: Path) -> None:
    source = written(tmp_path / "a.jsonl", BAD)
    data = prepare(recipe(source, bad_rows="skip"), model)
    assert answers(data, model) == ["1<|eot_id|>", "2<|eot_id|>"]
    assert data.report.bad_rows == 4
    assert [(one.file, one.line) for one in data.report.bad] == [(source, line) for line in (2, 3, 4, 5)]
    assert data.report.formats[source].confidence == pytest.approx(0.8)


def test_only_the_first_bad_rows_are_kept(tmp_path: Path, model: Path) -> None:
    source = written(tmp_path / "a.jsonl", [chat("a", "1"), *["{"] * 200])
    report = prepare(recipe(source, bad_rows="skip"), model).report
    assert (report.bad_rows, len(report.bad)) == (200, 50)


def test_rows_that_the_template_refuses_are_bad_rows(tmp_path: Path, model: Path) -> None:
    twice = {"messages": [{"role": "user", "content": "a"}, *chat("b", "c")["messages"]]}
    source = written(tmp_path / "a.jsonl", [chat("a", "1"), twice])
    data = prepare(recipe(source, template="gemma", bad_rows="skip"), model)
    assert [(one.line, "alternate" in one.reason) for one in data.report.bad] == [(2, True)]
    assert data.report.train.rows == 1


@pytest.mark.parametrize(
    ("rows", "data", "code"),
    [
        ([], {}, "data.empty"),
        (["{", "{"], {"bad_rows": "skip"}, "data.empty"),
        (["{"], {}, "data.bad_rows"),
        ([{"question": "a"}], {}, "data.format"),
        ([{"text": ""}], {"bad_rows": "skip"}, "data.empty"),
        ([chat("a", "b")], {"template": "no such"}, "template.unknown"),
        ([chat("a", "b")], {"template": None}, "template.missing"),
    ],
)
def test_nothing_usable(
    tmp_path: Path, model: Path, rows: list[Any], data: dict[str, Any], code: str
) -> None:
    with pytest.raises(WhetError) as error:
        prepare(recipe(written(tmp_path / "a.jsonl", rows), **data), model)
    assert error.value.code == code and error.value.hint


def test_sources_may_differ_in_layout(tmp_path: Path, model: Path) -> None:
    alpaca = written(tmp_path / "alpaca.jsonl", [{"instruction": "a", "output": "1"}])
    sharegpt = written(tmp_path / "sharegpt.jsonl", [{"conversations": [{"from": "gpt", "value": "2"}]}])
    pairs = written(tmp_path / "pairs.jsonl", [{"prompt": "a", "completion": "3"}])
    data = prepare(recipe([alpaca, sharegpt, pairs]), model)
    assert answers(data, model) == ["1<|eot_id|>", "2<|eot_id|>", "3<|eot_id|>"]
    assert [guess.format for guess in data.report.formats.values()] == [
        "alpaca",
        "sharegpt",
        "prompt_completion",
    ]


def test_truncation_is_reported_and_empty_supervision_not_stored(tmp_path: Path, model: Path) -> None:
    short, long, late = chat("a", "b"), chat("a", "word " * 40), chat("word " * 40, "b")
    source = written(tmp_path / "a.jsonl", [short, long, late, {"messages": short["messages"][:1]}])
    data = prepare(recipe(source, max_length=32), model)
    report = data.report.train
    assert (report.rows, report.token_rows, report.truncated_rows) == (4, 2, 2)
    assert (report.truncated_lost_end, report.truncated_lost_all, report.unsupervised_rows) == (1, 1, 2)
    assert [one.line for one in report.examples["unsupervised_rows"]] == [3, 4]
    assert [row["row"] for row in stored(data.train)] == [0, 1]
    assert report.length.max > 32 and (report.odd_roles, report.answerless) == (0, 1)
    assert report.without_end_token == 0


def test_what_is_odd_about_rows(tmp_path: Path, model: Path) -> None:
    rows = [
        chat("Say <|eot_id|> twice", "<|eot_id|>"),
        chat("Fill {instruction} in", "[INST] no"),
        chat("a", ""),
    ]
    report = prepare(recipe(written(tmp_path / "a.jsonl", rows)), model).report.train
    assert report.special_in_text == {"<|eot_id|>": 1}
    assert report.foreign_markers == {"{instruction}": 1, "[INST]": 1}
    assert report.empty_replies == 1 and report.double_end == 1
    assert (report.double_bos, report.missing_bos, report.without_end_token) == (0, 0, 0)


def test_a_template_that_writes_bos_twice_or_never(tmp_path: Path) -> None:
    source = written(tmp_path / "a.jsonl", [chat("a", "b")])
    body = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    twice = model_dir(tmp_path / "twice", chat_template="{{ bos_token }}{{ bos_token }}" + body)
    assert prepare(recipe(source, template=None), twice).report.train.double_bos == 1
    never = model_dir(tmp_path / "never", byte_level(prefix="<|begin_of_text|>"), chat_template=body)
    assert prepare(recipe(source, template=None), never).report.train.missing_bos == 1
    endless = model_dir(
        tmp_path / "endless", chat_template="{% for m in messages %}{{ m.content }}\n{% endfor %}"
    )
    report = prepare(recipe(source, template=None), endless).report
    assert report.train.without_end_token == 1 and report.template == "model" and report.end_of_turn is None


def test_long_documents_are_split_not_cut(tmp_path: Path, model: Path) -> None:
    (tmp_path / "book.txt").write_text("The model learns. " * 200)
    data = prepare(recipe(str(tmp_path / "book.txt"), max_length=64), model)
    rows = stored(data.train)
    assert len(rows) == data.report.train.token_rows > 5 and {row["row"] for row in rows} == {0}
    ids = [one for row in rows for one in row["input_ids"]]
    text = Tokenizer.from_file(str(model / "tokenizer.json")).decode(ids, skip_special_tokens=False)
    assert text == "The model learns. " * 200 + "<|end_of_text|>"
    assert data.report.train.without_end_token == 0


def test_the_demo_trains_on_its_own_data(model: Path) -> None:
    data = prepare(recipe("demo", eval="demo"), model)
    assert data.report.train.rows >= 300 and data.report.eval is not None and data.report.eval.rows >= 30
    assert data.report.bad_rows == data.report.eval_in_train == 0


def test_percentiles_are_lengths_that_exist() -> None:
    from array import array

    lengths = lengths_of(array("I", range(1, 101)))
    assert (lengths.p50, lengths.p95, lengths.p99, lengths.max) == (50, 95, 99, 100)


def test_a_crash_leaves_nothing_half_done(tmp_path: Path, model: Path, home: Path) -> None:
    source = written(tmp_path / "a.jsonl", [chat(str(n), "b") for n in range(1500)])

    def stop(rows: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(recipe(source), model, stop)
    assert list((home / "cache" / "data").iterdir()) == []
    assert prepare(recipe(source), model).report.train.rows == 1500


def test_planning_data_loads_nothing_heavy(tmp_path: Path, model: Path) -> None:
    source = written(tmp_path / "a.jsonl", [chat("a", "b")])
    script = (
        "import sys; from pathlib import Path; from whet.engine.recipe import Recipe;"
        "from whet.engine.data.token_store import prepare;"
        f"r = Recipe.model_validate_json({recipe(source).model_dump_json()!r});"
        f"prepare(r, Path({str(model)!r}));"
        "heavy = {'torch', 'transformers', 'trl', 'peft', 'datasets', 'huggingface_hub', 'pandas'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
