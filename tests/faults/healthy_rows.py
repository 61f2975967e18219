"""Rows without fault that look as if they had one: what real data sets hold, files as people have them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults.harness import Healthy, Looked
from support import healthy_models as make
from support.plan_inputs import chat_recipe, machine

from whet.engine.plan import make_plan

PAIRS = make.turns(300, seed=11)


def family(name: str, template: str | None, data: make.Data, **patch: Any) -> Callable[[Path], Looked]:
    """A tiny model of a family that ships ``template``, planned with these rows on a CPU."""

    def look(folder: Path) -> Looked:
        model = make.family_model(folder / "model", name, template)
        return Looked(make_plan(chat_recipe(model, data(folder), **patch), machine=machine()).findings)

    return look


def jsonl(rows: Any, name: str = "rows.jsonl") -> make.Data:
    """A file of these rows, a number and a pair at a time."""

    def write(folder: Path) -> Path:
        lines = [
            json.dumps(rows(number, *pair), ensure_ascii=False) + "\n" for number, pair in enumerate(PAIRS)
        ]
        (folder / name).write_text("".join(lines), encoding="utf-8")
        return folder / name

    return write


def chat(*turns: str, system: str | None = None) -> dict[str, Any]:
    roles = ("user", "assistant")
    said = [{"role": roles[at % 2], "content": turn} for at, turn in enumerate(turns)]
    return {"messages": said if system is None else [{"role": "system", "content": system}, *said]}


def sheet(name: str, delimiter: str) -> make.Data:
    """A spreadsheet's export."""

    def write(folder: Path) -> Path:
        with open(folder / name, "w", encoding="utf-8", newline="") as out:
            writer = csv.writer(out, delimiter=delimiter)
            writer.writerow(["prompt", "completion"])
            writer.writerows(PAIRS)
        return folder / name

    return write


def sharegpt_parquet(folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    system = {"from": "system", "value": "Be brief."}
    rows = [
        {"conversations": [system, {"from": "human", "value": q}, {"from": "gpt", "value": a}]}
        for q, a in PAIRS
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    return folder / "rows.parquet"


def folder_of_files(folder: Path) -> Path:
    """Collected over time, a file each."""
    (folder / "parts").mkdir()
    for number in range(3):
        part = [json.dumps(chat(*pair)) + "\n" for pair in PAIRS[number::3]]
        (folder / "parts" / f"{number}.jsonl").write_text("".join(part), encoding="utf-8")
    return folder / "parts"


def with_byte_order_mark(folder: Path) -> Path:
    lines = [json.dumps(chat(*pair)) + "\n" for pair in PAIRS]
    (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8-sig")
    return folder / "rows.jsonl"


def lines_named_json(folder: Path) -> Path:
    """An object a line under the wrong suffix."""
    return jsonl(lambda number, question, answer: chat(question, answer), "rows.json")(folder)


def thought(number: int, answer: str) -> str:
    return f"<think>\nLet me see, {number}.\n</think>\n\n{answer}"


def code(number: int, question: str, answer: str) -> dict[str, Any]:
    python = "print(f'{question}: {answer}')\ntotal = sum(prices[INDEX:])"
    return chat(f"Print this, number {number}: {question}", f"```python\n{python}\n```\n{answer}")


PARTS = jsonl(
    lambda number, question, answer: {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": question}]},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ]
    }
)
LONG_TEXTS = jsonl(
    lambda number, question, answer: {"text": " ".join(a for _, a in (2 * PAIRS)[number : number + 40])}
)
ROWS = (
    Healthy("thoughts in two turns, qwen3", family("qwen3", "qwen-3", jsonl(
        lambda n, q, a: chat(q, thought(n, a), f"And {n}?", thought(n, a.upper()))))),
    Healthy("code that fills in names", family("qwen2", "chatml", jsonl(code))),
    Healthy("a choice whose last word is the usual answer", family("llama", "llama-3.1", jsonl(
        lambda n, q, a: chat(f"{q} Is this spam or ham", "ham" if n % 7 else "spam")))),
    Healthy("one question, many answers", family("gemma", "gemma", jsonl(
        lambda n, q, a: chat("Tell me something.", a)))),
    Healthy("many questions, some with the same answer", family("mistral", "mistral", jsonl(
        lambda n, q, a: chat(q, "I cannot help with that." if n % 3 == 0 else a)))),
    Healthy("numbers", family("llama", "llama-3", jsonl(
        lambda n, q, a: chat(f"What is {n} plus {n}? As a number, such as {2 * n + 1}.", str(2 * n))))),
    Healthy("Japanese, packed", family("mistral", "mistral", jsonl(
        lambda n, q, a: chat(f"{n}番の答えは何ですか。", f"答えは{3 * n}です。説明書も見てください。")),
        method__packing=True)),
    Healthy("white space around everything", family("gemma2", "gemma-2", jsonl(
        lambda n, q, a: chat(f"{q} \n", f"  {a}\n\n")))),
    Healthy("six exchanges, packed", family("gemma3", "gemma-3", jsonl(
        lambda n, q, a: chat(*(text for pair in (2 * PAIRS)[n : n + 6] for text in pair))),
        method__packing=True)),
    Healthy("instructions for a family without a system role", family("gemma2", "gemma-2", jsonl(
        lambda n, q, a: chat(q, a, system="Be brief.")))),
    Healthy("columns beside the messages", family("smollm3", "chatml", jsonl(
        lambda n, q, a: {"id": n, "source": "web", "score": 0.5, "prompt": q} | chat(q, a)))),
    Healthy("alpaca beside its rendered text", family("llama", "llama-3.1", jsonl(
        lambda n, q, a: {"instruction": q, "input": "", "output": a, "text": f"### Instruction:\n{q}"}))),
    Healthy("contents in parts", family("qwen2", "qwen-2.5", PARTS)),
    Healthy("texts longer than max_length", family("llama", None, LONG_TEXTS, model__max_length=512)),
    Healthy("texts longer than max_length, packed", family(
        "qwen2", None, LONG_TEXTS, model__max_length=512, method__packing=True)),
    Healthy("a file with a byte order mark", family("llama", "llama-3.1", with_byte_order_mark)),
    Healthy("an object a line, named .json", family("phi3-partial", "phi-4", lines_named_json,
                                                     adapter__target_modules="all-linear")),
    Healthy("a folder of files", family("granite", "chatml", folder_of_files)),
    Healthy("tabs, a tenth held out", family("qwen3", "qwen-3", sheet("rows.tsv", "\t"),
                                              data__eval_fraction=0.1)),
    Healthy("semicolons", family("llama", "llama-3", sheet("rows.csv", ";"))),
    Healthy("ShareGPT in Parquet, with instructions", family("qwen2-window", "qwen-2.5", sharegpt_parquet,
                                                              data__eval_fraction=0.05)),
)  # fmt: skip
