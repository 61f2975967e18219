"""Data: files of every kind and layout, what is made of their rows, sounds and pictures."""

from __future__ import annotations

import csv
import io
import json
import struct
from random import Random
from typing import Any

from fuzz import mutate
from fuzz.case import Case, Fault, Room, Target

from whet.engine import api
from whet.engine.data.audio import read_audio
from whet.engine.data.images import find_picture, look_at, read_picture
from whet.engine.data.rows import RowError

CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
TURNS = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": [{"type": "text", "text": "hello"}]},
    {"role": "assistant", "content": "yes", "reasoning_content": "hm", "tool_calls": [CALL]},
    {"role": "tool", "name": "f", "content": {"b": 2}},
    {"role": "assistant", "content": "done"},
]
SHORT = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes"}]
ROWS: tuple[dict[str, Any], ...] = (
    {"messages": TURNS, "tools": [{"name": "f", "parameters": {"type": "object", "properties": {}}}]},
    {"messages": SHORT},
    {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]},
    {"instruction": "say", "input": "x", "output": "y"},
    {"prompt": "a", "completion": "b"},
    {"prompt": SHORT[:1], "completion": SHORT[1:]},
    {"text": "once upon a time"},
    {"prompt": "q", "chosen": "good", "rejected": "bad"},
    {"prompt": "q", "completion": "c", "label": True},
    {"anchor": "a", "positive": "b", "negative": "c"},
    {"sentence1": "a", "sentence2": "b", "score": 0.5},
    {"text": "a", "label": "x"},
    {"tokens": ["a", "b"], "ner_tags": [0, 1]},
    {"question": "2+2", "answer": "4"},
    {"image": "picture.png", "messages": SHORT},
    {"audio": "sound.wav", "text": "hello"},
)
SUFFIXES = ("jsonl", "json", "csv", "tsv", "parquet", "txt", "md", "ndjson")
METHODS = ("sft", "sft", "sft", "preference", "classification", "reranker", "reward", "grpo", "embedding")
COLUMNS = ("messages", "text", "prompt", "completion", "instruction")
PICTURES = ("png", "gif", "tiff", "bmp", "webp", "ppm")
FORMATS = ("auto", "auto", "auto", "text", "alpaca", "sharegpt", "messages", "prompt_completion")


def content(rng: Random, rows: list[Any], suffix: str) -> bytes:
    """The rows as a file of that kind."""
    if suffix == "parquet":
        return _parquet(rows)
    if suffix in ("csv", "tsv"):
        out = io.StringIO()
        names = list(dict.fromkeys(str(key) for row in rows if isinstance(row, dict) for key in row))
        writer = csv.writer(out, delimiter="," if suffix == "csv" else "\t")
        writer.writerow(names)
        for row in rows:
            writer.writerow([str(row.get(name, "")) if isinstance(row, dict) else str(row) for name in names])
        text = out.getvalue()
    elif suffix == "json":
        listed: Any = rows if rng.random() < 0.6 else {"version": 1, "data": rows}
        text = json.dumps(listed, ensure_ascii=rng.random() < 0.5)
    else:
        text = "".join(json.dumps(row, ensure_ascii=rng.random() < 0.5) + "\n" for row in rows)
    return text.encode("utf-8", "surrogatepass")


def _parquet(rows: list[Any]) -> bytes:
    """With what Arrow can hold of the rows; the rest becomes text."""
    import pyarrow
    from pyarrow import parquet

    def written(values: list[dict[Any, Any]]) -> bytes:
        out = io.BytesIO()
        parquet.write_table(pyarrow.Table.from_pylist(values), out)
        return out.getvalue()

    plain = [row if isinstance(row, dict) else {"text": row} for row in rows]
    try:
        return written(plain)
    except (pyarrow.ArrowException, OverflowError, UnicodeEncodeError, TypeError):
        return written([{ascii(key): ascii(value) for key, value in row.items()} for row in plain])


def make(rng: Random) -> Case:
    first = rng.choice(ROWS)
    rows: list[Any] = [first if rng.random() < 0.9 else rng.choice(ROWS) for _ in range(rng.randint(1, 8))]
    rows = [mutate.value(rng, row) if rng.random() < 0.4 else row for row in rows]
    suffix = rng.choice(SUFFIXES)
    made = content(rng, rows, suffix)
    if rng.random() < 0.4:
        made = mutate.data(rng, made)
    if rng.random() < 0.05:
        coding = rng.choice(("utf-16", "utf-8-sig", "latin-1"))
        made = made.decode("utf-8", "replace").encode(coding, "replace")
    data: dict[str, Any] = {"format": rng.choice(FORMATS)}
    if rng.random() < 0.2:
        column = rng.choice((*first, "nosuch"))
        data["columns"] = {rng.choice(COLUMNS): column}
    data |= rng.choice(({}, {}, {"bad_rows": "skip"}, {"max_rows": 1}, {"drop": ["duplicates", "empty"]}))
    data |= rng.choice(({}, {}, {"system": rng.choice(mutate.TEXTS)}, {"reasoning": "each"}))
    name = f"rows.{suffix}"
    return Case({name: made}, {"file": name, "data": data, "method": rng.choice(METHODS)})


def run(case: Case, room: Room) -> None:
    """Read, told apart, inspected for a method, and seen as tokens."""
    data = {**case.call["data"], "train": str(room.files / case.call["file"])}
    values: dict[str, Any] = {"model": {"name": "demo", "max_length": 64}, "data": data}
    errors = []
    for look in (_uses, _inspect, _view):
        try:
            look(values, case.call["method"])
        except api.WhetError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def _uses(values: dict[str, Any], method: str) -> None:
    api.row_uses(values)
    recipe = api.recipe_from_text(json.dumps(values))
    api.first_rows(recipe)


def _inspect(values: dict[str, Any], method: str) -> None:
    chosen = values if method == "sft" else {**values, "method": {"kind": method}}
    report = api.inspect_data(chosen)
    for row in report.bad:
        if len(row.reason) > 1000 or api.printable(row.reason) != row.reason:
            raise Fault(f"a bad row's reason: {len(row.reason)} characters, {row.reason[:100]!a}")
    report.model_dump_json()


def _view(values: dict[str, Any], method: str) -> None:
    api.template_view(values).model_dump_json()


def _wav(rng: Random) -> bytes:
    samples = rng.randbytes(200)
    head = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 8000, 16000, 2, 16)
    body = b"WAVE" + head + struct.pack("<4sI", b"data", len(samples)) + samples
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _picture(rng: Random) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    size = (rng.randint(1, 40), rng.randint(1, 40))
    Image.new(rng.choice(("RGB", "L")), size).save(out, rng.choice(PICTURES))
    return out.getvalue()


def make_media(rng: Random) -> Case:
    kind = rng.choice(("sound", "picture"))
    made = mutate.data(rng, _wav(rng) if kind == "sound" else _picture(rng))
    held = ({"path": kind}, {"bytes": None, "path": kind}, mutate.odd_value(rng))
    value = rng.choice((kind, kind, *held))
    return Case({kind: made}, {"kind": kind, "value": value})


def run_media(case: Case, room: Room) -> None:
    """As a row's image, or as its audio."""
    value = case.call["value"]
    try:
        if case.call["kind"] == "sound":
            read_audio(value, room.files, 16000, 30.0)
            read_audio((room.files / "sound").read_bytes(), None, 16000, 30.0)
        else:
            for held in (value, (room.files / "picture").read_bytes()):
                picture = find_picture(held, room.files)
                look_at(picture)
                read_picture(picture, 8, 64)
    except RowError as error:
        if len(error.reason) > 1000:
            raise Fault(f"a bad row's reason: {len(error.reason)} characters") from error


TARGETS = (
    Target("rows", make, run, share=4, in_ci=16),
    Target("media", make_media, run_media, share=10, in_ci=60),
)
