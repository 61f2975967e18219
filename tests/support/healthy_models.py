"""Models and data as people bring them: every family with a fitting template, every format, large shapes.

Weights of large shapes are sparse files: real headers, real embedding and head, nothing on the disk between.
"""

from __future__ import annotations

import csv
import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.tiny_families import DECODER_CONFIGS
from support.tiny_models import LLAMA3_SPLIT, TEXT

from whet.engine.data.chat_templates import find
from whet.engine.data.chat_templates.renderer import Renderer, strip_generation_tags
from whet.engine.demo import TRAIN_FILE

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
MARKER = re.compile(r"<\|[\w.-]+\|>|<(?:start|end)_of_turn>|<\|?turn\|?>|</?think>")
ENTRIES = 420

# --- models


def family_model(path: Path, family: str, template: str | None) -> Path:
    """A tiny model of a family of :mod:`support.tiny_families` with real weights and its own template.

    Args:
        path: folder to create.
        family: key of ``DECODER_CONFIGS``.
        template: one of whet's by name, or a Jinja text, shipped in the tokenizer as instruct models do;
            None for a base model.
    """
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    ids = write_tokenizer(path, template, bos=not family.startswith("qwen"))
    config = DECODER_CONFIGS[family]()
    for name, value in {**_ids(ids), "vocab_size": ids["rows"], "max_position_embeddings": 4096}.items():
        setattr(config, name, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config = GenerationConfig(**_ids(ids))
    model.save_pretrained(path)
    return path


def sized_model(path: Path, model_type: str, template: str | None = "llama-3.1", **sizes: int) -> Path:
    """A model of any size for plans: config, tokenizer, and weights of the right shapes in a sparse file."""
    import torch
    from accelerate import init_empty_weights
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    ids = write_tokenizer(path, template)
    shape = {"vocab_size": ids["rows"], "max_position_embeddings": 8192, "tie_word_embeddings": False}
    config = CONFIG_MAPPING[model_type](**{**shape, **_ids(ids), **sizes})
    config.dtype = "bfloat16"
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    config.architectures = [type(model).__name__]
    config.save_pretrained(path)
    shapes = {name: list(one.shape) for name, one in model.state_dict().items()}
    write_sparse(path / "model.safetensors", shapes, filled=("embed_tokens.weight", "lm_head.weight"))
    return path


def write_sparse(file: Path, shapes: dict[str, list[int]], filled: tuple[str, ...]) -> None:
    """A safetensors file in bfloat16 of which only tensors ending in ``filled`` have bytes on the disk."""
    import torch

    header: dict[str, Any] = {}
    at = 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    start = 8 + len(text)
    draw = torch.Generator().manual_seed(0)
    with open(file, "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(start + at)
        for name, shape in shapes.items():
            if name.endswith(filled):
                out.seek(start + header[name]["data_offsets"][0])
                values = torch.randn(shape, generator=draw).to(torch.bfloat16) * 0.02
                out.write(values.view(torch.int16).numpy().tobytes())


def _ids(ids: dict[str, int]) -> dict[str, Any]:
    ends = list(dict.fromkeys([ids["turn"], ids[EOS]]))
    return {
        "bos_token_id": ids[BOS],
        "eos_token_id": ends if len(ends) > 1 else ends[0],
        "pad_token_id": ids[PAD],
    }


def write_tokenizer(path: Path, template: str | None, bos: bool = True) -> dict[str, int]:
    """A byte-level tokenizer with the template's markers as special tokens; ids by text.

    Further ids: ``turn`` (end of a turn) and ``rows``. ``bos`` says whether a base model's puts BOS before
    text; with a template, that decides.
    """
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
        processors,
        trainers,
    )

    path.mkdir(parents=True, exist_ok=True)
    source, markers, end = parts_of(template) if template else (None, [], None)
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated")
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, spell])
    tokenizer.decoder = decoders.ByteLevel()
    specials = list(dict.fromkeys([BOS, EOS, PAD, *markers]))
    trainer = trainers.BpeTrainer(
        vocab_size=ENTRIES - len(specials),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.read_text(encoding="utf-8").splitlines(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    vocabulary = tokenizer.get_vocab()
    adds_bos = bos if source is None else "bos_token" in source
    if adds_bos:
        single = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, vocabulary[BOS])])
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), single])
    tokenizer.save(str(path / "tokenizer.json"))
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": end or EOS,
        "pad_token": PAD,
        "add_bos_token": adds_bos,
        "model_max_length": 4096,
        "clean_up_tokenization_spaces": False,
    }
    if source is not None:
        settings["chat_template"] = source
    (path / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    ids = {token: vocabulary[token] for token in specials}
    return {**ids, "turn": vocabulary[end or EOS], "rows": tokenizer.get_vocab_size()}


def parts_of(template: str) -> tuple[str, list[str], str | None]:
    """A template's text, its markers, and what ends a turn; None where that is the tokenizer's EOS."""
    if "{" not in template:
        found = find(template)
        return strip_generation_tags(found.source), list(found.info.markers), found.end_of_turn
    turns = [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "answer"}]
    rendered = Renderer(template, BOS, EOS).render(turns)
    behind = MARKER.match(rendered.rpartition("answer")[2].lstrip())
    return template, sorted(set(MARKER.findall(template))), behind[0] if behind else None


# --- data


def turns(rows: int, seed: int = 0) -> list[tuple[str, str]]:
    """Questions and answers of uneven length, no two alike."""
    words = TEXT.read_text(encoding="utf-8").split()
    draw = random.Random(seed)
    return [
        (
            f"Row {number}: {' '.join(draw.choices(words, k=draw.randint(3, 14)))}?",
            f"{' '.join(draw.choices(words, k=draw.randint(4, 24)))}.",
        )
        for number in range(rows)
    ]


def messages(path: Path, rows: int = 240, seed: int = 0) -> Path:
    """OpenAI's layout, every third conversation with a second exchange."""
    lines = []
    pairs = turns(2 * rows, seed)
    for number, (question, answer) in enumerate(pairs[:rows]):
        talk = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        if number % 3 == 0:
            again, said = pairs[rows + number]
            talk += [{"role": "user", "content": again}, {"role": "assistant", "content": said}]
        lines.append({"messages": talk})
    return _jsonl(path / f"messages-{seed}.jsonl", lines)


def with_system(path: Path, rows: int = 240) -> Path:
    """Conversations that begin with instructions."""
    system = {"role": "system", "content": "You answer in one short sentence."}
    found = [json.loads(line) for line in messages(path, rows).read_text(encoding="utf-8").splitlines()]
    return _jsonl(path / "system.jsonl", [{"messages": [system, *row["messages"]]} for row in found])


def sharegpt(path: Path, rows: int = 240) -> Path:
    pairs = turns(rows, 1)
    return _jsonl(
        path / "sharegpt.jsonl",
        [{"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]} for q, a in pairs],
    )


def alpaca(path: Path, rows: int = 240) -> Path:
    """Half of the rows with an input."""
    pairs, inputs = turns(rows, 2), turns(rows, 3)
    made = [
        {"instruction": q, "input": inputs[number][0] if number % 2 else "", "output": a}
        for number, (q, a) in enumerate(pairs)
    ]
    return _jsonl(path / "alpaca.jsonl", made)


def prompt_completion(path: Path, rows: int = 240) -> Path:
    return _jsonl(path / "pairs.jsonl", [{"prompt": f"{q}\n", "completion": a} for q, a in turns(rows, 4)])


def alpaca_csv(path: Path, rows: int = 240) -> Path:
    file = path / "alpaca.csv"
    with open(file, "w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["instruction", "output"])
        writer.writerows(turns(rows, 5))
    return file


def messages_parquet(path: Path, rows: int = 240) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = [json.loads(line) for line in messages(path, rows, 6).read_text(encoding="utf-8").splitlines()]
    pq.write_table(pa.Table.from_pylist(found), path / "messages.parquet")
    return path / "messages.parquet"


def messages_json(path: Path, rows: int = 240) -> Path:
    """One array instead of a line for each row."""
    found = [json.loads(line) for line in messages(path, rows, 7).read_text(encoding="utf-8").splitlines()]
    (path / "messages.json").write_text(json.dumps(found), encoding="utf-8")
    return path / "messages.json"


def renamed_columns(path: Path, rows: int = 240) -> Path:
    return _jsonl(path / "renamed.jsonl", [{"question": q, "reply": a} for q, a in turns(rows, 8)])


def texts(path: Path, rows: int = 240) -> Path:
    made = [" ".join(part for pair in turns(6, 100 + number) for part in pair) for number in range(rows)]
    return _jsonl(path / "texts.jsonl", [{"text": text} for text in made])


def text_folder(path: Path, files: int = 120) -> Path:
    """Plain files, as books or notes come."""
    folder = path / "books"
    folder.mkdir()
    for number in range(files):
        lines = [" ".join(pair) for pair in turns(8, 500 + number)]
        (folder / f"{number}.txt").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    return folder


def demo_pairs(rows: int = 240) -> list[tuple[str, str]]:
    """Questions and answers of the data that ships with whet: sense, for a model that has learnt some."""
    lines = TRAIN_FILE.read_text(encoding="utf-8").splitlines()
    talks = [json.loads(line)["messages"] for line in lines]
    return [(talk[-2]["content"], talk[-1]["content"]) for talk in talks][:rows]


def demo_messages(path: Path) -> Path:
    talks = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in demo_pairs()]
    return _jsonl(path / "demo.jsonl", [{"messages": talk} for talk in talks])


def demo_alpaca(path: Path) -> Path:
    return _jsonl(path / "demo.jsonl", [{"instruction": q, "output": a} for q, a in demo_pairs()])


def demo_texts(path: Path) -> Path:
    return _jsonl(path / "demo.jsonl", [{"text": f"{q} {a}"} for q, a in demo_pairs()])


def _jsonl(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


Data = Callable[[Path], Path]
