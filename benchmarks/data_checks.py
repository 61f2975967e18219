"""How long it takes to read, check, render, mask and tokenise 100,000 chat rows, and how much memory.

python -P benchmarks/data_checks.py [--rows 100000] [--out data_checks.json]

The tokenizer is a byte-level BPE of 32,000 tokens with Llama 3's pre-tokenizer, trained here on sources of
Python's standard library; the rows are conversations of one to three exchanges made of its words, 280 tokens
on average. The template has no generation tags, as most models ship theirs. Nothing is cached but the model's
folder; the second time shows what the cache leaves.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from whet.engine.data.token_store import prepare
from whet.engine.hardware import usable_cores
from whet.engine.recipe import Recipe

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + "
    "'<|im_end|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- endif %}"
)


def library_texts(files: int) -> list[str]:
    """Sources of the standard library, the same in every run of one Python."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    found = sorted(path for path in folder.rglob("*.py") if "site-packages" not in path.parts)
    return [path.read_text(encoding="utf-8", errors="ignore") for path in found[:files]]


def write_model(folder: Path, texts: list[str]) -> Path:
    """A folder with tokenizer and template alone."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=32_000,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def write_rows(path: Path, rows: int, texts: list[str]) -> Path:
    """Distinct conversations of one to three exchanges."""
    words = [word for text in texts for word in text.split() if word.isalpha()]
    draw = random.Random(0)

    def said(least: int, most: int) -> str:
        start = draw.randrange(len(words) - most)
        return " ".join(words[start : start + draw.randrange(least, most)])

    with open(path, "w", encoding="utf-8") as file:
        for number in range(rows):
            turns = []
            for _ in range(draw.choice([1, 1, 2, 3])):
                turns.append({"role": "user", "content": f"{number} {said(10, 60)}"})
                turns.append({"role": "assistant", "content": f"{said(20, 200)}."})
            file.write(json.dumps({"messages": turns}) + "\n")
    return path


def build(folder: Path, rows: int) -> None:
    """Model and rows."""
    texts = library_texts(1500)
    write_model(folder / "model", texts)
    write_rows(folder / "rows.jsonl", rows, texts)


def measure(folder: Path) -> dict[str, Any]:
    """Seconds and peak memory of preparing the rows, and seconds of finding them in the cache."""
    os.environ["WHET_HOME"] = str(folder / "home")
    data, model = folder / "rows.jsonl", folder / "model"
    values = {"model": {"name": "benchmark"}, "data": {"train": str(data), "eval_fraction": 0.02}}
    recipe = Recipe.model_validate(values)
    started = time.monotonic()
    report = prepare(recipe, model).report
    first = time.monotonic() - started
    started = time.monotonic()
    prepare(recipe, model)
    again = time.monotonic() - started
    held_out = report.eval
    rows = report.train.rows + (held_out.rows if held_out else 0)
    return {
        "rows": rows,
        "megabytes": round(data.stat().st_size / 1e6, 1),
        "tokens": report.train.tokens + (held_out.tokens if held_out else 0),
        "cores": usable_cores(),
        "load_of_the_machine": round(os.getloadavg()[0], 2),
        "seconds": round(first, 2),
        "rows_per_second": round(rows / first),
        "cached_seconds": round(again, 4),
        "cpu_seconds": round(_cpu(resource.RUSAGE_SELF) + _cpu(resource.RUSAGE_CHILDREN), 1),
        "peak_mib_reader": _peak_kib() >> 10,
        "peak_mib_each_worker": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10,
    }


def _peak_kib() -> int:
    """Of this process; the kernel's usage counters also know the larger process it was forked from."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def _cpu(who: int) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Print the figures; write them as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        print(json.dumps(measure(arguments.measure), indent=1))
        return
    with tempfile.TemporaryDirectory(prefix="whet-data-checks-") as name:
        build(Path(name), arguments.rows)
        # A process of its own: its memory is not that of making the rows.
        again = [sys.executable, "-P", __file__, "--measure", name]
        figures = subprocess.run(again, stdout=subprocess.PIPE, text=True, check=True).stdout
    print(figures, end="")
    if arguments.out is not None:
        arguments.out.write_text(figures, encoding="utf-8")


if __name__ == "__main__":
    main()
