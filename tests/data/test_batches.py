"""Rows become token rows with their oddities as bits; several processes give what one gives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.tiny_tokenizers import byte_level, model_dir

from whet.engine.data import batch_process
from whet.engine.data.batch_process import in_order
from whet.engine.data.batches import BatchTokenizer, RowBatch, TokenBatch, batches_of, is_in_prompt
from whet.engine.data.formats import FormatName
from whet.engine.data.row_flags import Odd
from whet.engine.data.rows import BadRow, RawRow
from whet.engine.data.token_store import prepare
from whet.engine.errors import WhetError
from whet.engine.recipe import Recipe

BODY = "{% for m in messages %}{{ m.role + ':' + m.content + '<|eot_id|>' }}{% endfor %}"
ASKS = "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return model_dir(tmp_path / "model", byte_level(), chat_template=BODY + ASKS)


def recipe(train: str = "rows", **sections: Any) -> Recipe:
    values: dict[str, Any] = {"model": {"name": "tiny", "max_length": 128}, "data": {"train": train}}
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return Recipe.model_validate(values)


def chat(*turns: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[at % 2], "content": turn} for at, turn in enumerate(turns)]}


def batch(*values: dict[str, Any], format: FormatName = "messages") -> RowBatch:
    rows: list[RawRow | BadRow] = [RawRow("a.jsonl", at, value) for at, value in enumerate(values, 1)]
    return RowBatch(rows, format, "train")


def seen(model: Path, value: dict[str, Any], format: FormatName = "messages", **sections: Any) -> Odd:
    done = BatchTokenizer.of_model(recipe(**sections), model).work(batch(value, format=format))
    assert done.bad == []
    return Odd(done.flags[0])


def test_a_sound_row_has_no_flag(model: Path) -> None:
    assert seen(model, chat("What is two and two?", "Four.")) == Odd(0)
    assert seen(model, chat("Two?", "Two.", "And three?", "Three.")) == Odd(0)


@pytest.mark.parametrize(
    ("value", "odd"),
    [
        (chat("What is it?", " "), Odd.empty_replies),
        (chat("What?", "This.", "And?"), Odd.odd_roles),
        (chat("What?"), Odd.unsupervised_rows | Odd.answerless),
        (chat("word " * 200, "This."), Odd.truncated_rows | Odd.truncated_lost_all | Odd.unsupervised_rows),
        (chat("What?", "word " * 200), Odd.truncated_rows | Odd.truncated_lost_end),
        (chat("Fill {instruction} in", "No."), Odd.marked_rows),
        (chat("Print it.", "```python\nprint(f'{name}: {answer}')\n```"), Odd(0)),
        (chat("Print it.", 'say(f"{answer}")\nand\nsay("{input}".format(input=1))'), Odd(0)),
        (chat("What is `{question}`?", "A name."), Odd(0)),
        (chat("Say `this`: {question}", "```\nno\n```\n{output}"), Odd.marked_rows),
        (chat("Say blue", "blue"), Odd.answer_in_prompt),
        (chat("What?", "This.<|end_of_text|>"), Odd.marked_rows | Odd.double_end),
        (chat("What?", "This.<|end_of_text|>\n \n"), Odd.marked_rows | Odd.double_end),
        (chat("What?", "This.", "And?", ""), Odd.empty_replies),
    ],
)
def test_flags(model: Path, value: dict[str, Any], odd: Odd) -> None:
    assert seen(model, value) == odd


def test_thoughts_are_written_on_purpose_whatever_the_vocabulary_calls_them(tmp_path: Path) -> None:
    tokenizer = byte_level(("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<think>", "</think>"))
    model = model_dir(tmp_path / "thinks", tokenizer, chat_template=BODY + ASKS)
    assert seen(model, chat("What?", "<think>\nHm.\n</think>\nThis.")) == Odd(0)


def test_an_answer_that_is_short_and_stands_earlier_is_no_copy() -> None:
    assert not is_in_prompt("red", "Is it red or blue?")
    assert is_in_prompt("red", "Is it blue or red")
    long = "a sentence of more than thirty-two letters"
    assert is_in_prompt(long, f"Repeat: {long}, please.")
    assert not is_in_prompt("", "anything")


def test_a_prompt_that_training_text_does_not_begin_with(tmp_path: Path) -> None:
    opens = ASKS.replace("assistant:", "assistant:<think>")
    model = model_dir(tmp_path / "thinks", byte_level(), chat_template=BODY + opens)
    assert seen(model, chat("What?", "This.")) == Odd.broken_prefix
    assert seen(model, chat("What?", "<think>This.")) == Odd(0)


def test_everything_supervised_ends_with_the_templates_white_space(tmp_path: Path) -> None:
    """The newline after an end token is no missing end."""
    spaced = BODY.replace("'<|eot_id|>'", "'<|eot_id|>\n'")
    model = model_dir(tmp_path / "spaced", byte_level(), chat_template=spaced + ASKS)
    assert seen(model, chat("What?", "This."), method={"kind": "sft", "supervise": "all"}) == Odd(0)


def test_a_completion_may_be_empty_too(model: Path) -> None:
    assert seen(model, {"prompt": "What?", "completion": "\n"}, "prompt_completion") == Odd.empty_replies
    assert seen(model, {"prompt": "What?", "completion": "This."}, "prompt_completion") == Odd(0)


def test_plain_text_gets_one_end(model: Path) -> None:
    assert seen(model, {"text": "A text."}, "text") == Odd(0)
    assert seen(model, {"text": "A text.<|end_of_text|>"}, "text") == Odd(0)
    assert seen(model, {"text": "A text.<|eot_id|><|end_of_text|>"}, "text") == Odd.double_end


def test_batches_end_by_rows_or_by_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [RawRow("a", n, {"text": "x" * 100, "deep": [{"more": "y" * 100}]}) for n in range(10)]
    monkeypatch.setattr("whet.engine.data.batches.BATCH_CHARACTERS", 500)
    assert [len(one.rows) for one in batches_of(rows, "text", "train")] == [3, 3, 3, 1]
    monkeypatch.setattr("whet.engine.data.batches.BATCH_ROWS", 2)
    assert [len(one.rows) for one in batches_of(rows, "text", "train")] == [2] * 5


def many(count: int) -> Iterator[RowBatch]:
    """Batches of sound, odd and bad rows."""
    for first in range(0, count, 20):
        rows: list[RawRow | BadRow] = []
        for n in range(first, first + 20):
            if n % 7 == 0:
                rows.append(BadRow("a.jsonl", n, "broken"))
            elif n % 5 == 0:
                rows.append(RawRow("b.jsonl", n, {"messages": None}))
            else:
                rows.append(RawRow("a.jsonl", n, chat(f"Question {n}?", "word " * (n % 40))))
        yield RowBatch(rows, "messages", "train")


def test_processes_give_what_one_process_gives_in_order(model: Path) -> None:
    here = BatchTokenizer.of_model(recipe(), model)
    alone = list(in_order(many(300), here, model, processes=1))
    together = list(in_order(many(300), here, model, processes=2))
    assert together == alone and len(alone) == 15
    assert all(isinstance(one, TokenBatch) for one in together)


def test_an_error_in_a_process_is_the_same_error_here(tmp_path: Path, model: Path) -> None:
    """A template that cannot say where answers are is nobody's row's fault."""
    shouts = "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
    bad = model_dir(tmp_path / "shouts", byte_level(), chat_template=shouts)
    here = BatchTokenizer.of_model(recipe(), model)  # the first batches are done here, and pass
    with pytest.raises(WhetError) as error:
        list(in_order(many(300), here, bad, processes=2))
    assert error.value.code == "template.spans"


def test_a_process_that_dies_is_said(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_process, "MODULE", "whet.engine.errors")  # starts, says nothing, ends
    here = BatchTokenizer.of_model(recipe(), model)
    with pytest.raises(WhetError) as error:
        list(in_order(many(300), here, model, processes=2))
    assert error.value.code == "data.process"


# --- data.drop


def written(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("drop", "left"),
    [
        ([], [1, 2, 3, 4, 5, 6, 7]),
        (["duplicates"], [1, 3, 4, 5, 6, 7]),
        (["empty"], [1, 2, 4, 5, 6, 7]),
        (["odd"], [1, 2, 3, 5, 6, 7]),
        (["cut"], [1, 2, 3, 4, 6, 7]),
        (["markers"], [1, 2, 3, 4, 5, 7]),
        (["leaked"], [1, 2, 3, 4, 5, 6]),
        (["leaked", "markers", "cut", "odd", "empty", "duplicates"], [1]),
    ],
)
def test_rows_are_left_out(tmp_path: Path, model: Path, drop: list[str], left: list[int]) -> None:
    same = chat("One?", "One.")
    odd = {"messages": [*chat("Three?", "Three.")["messages"], {"role": "assistant", "content": "So."}]}
    rows = [
        same,
        same,
        chat("Two?", ""),
        odd,
        chat("Four?", "word " * 200),
        chat("{input}", "Five."),
        chat("Six?", "6"),
    ]
    source = written(tmp_path / "a.jsonl", rows)
    held_out = written(tmp_path / "e.jsonl", [chat("Six?", "6"), chat("Seven?", "7")])
    train = prepare(recipe(source, data={"train": source, "eval": held_out, "drop": drop}), model).report
    assert train.train.rows == len(left) and sum(train.train.dropped.values()) == 7 - len(left)
    assert train.eval is not None and train.eval.rows == 2 and train.eval.dropped == {}
    assert train.eval_in_train == (7 in left)


def test_rows_keep_their_numbers_among_those_left(tmp_path: Path, model: Path) -> None:
    """Places point into the file, numbers into the split."""
    rows = [chat("One?", "One."), chat("One?", "One."), chat("Two?", ""), chat("Three?", "3")]
    source = written(tmp_path / "a.jsonl", rows)
    data = prepare(recipe(source, data={"train": source, "drop": ["duplicates"]}), model)
    import pyarrow as pa

    with pa.memory_map(str(data.train)) as file:
        assert pa.ipc.open_stream(file).read_all()["row"].to_pylist() == [0, 1, 2]
    assert data.report.train.places("empty_replies") == [f"{source}:3"]
