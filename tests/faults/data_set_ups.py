"""What broken data is made of: real files, a real tiny model under real tokenizers, real plans."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from faults.harness import Looked, planned
from support.plan_inputs import machine
from support.tiny_models import build_tiny_model
from support.tiny_tokenizers import byte_level

from whet.engine.findings import Finding
from whet.engine.recipe import Recipe
from whet.engine.recipe_files import patched

Row = dict[str, Any] | str
LLAMA_3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")

LLAMA_3_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' "
    "+ m['content'] + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CHATML_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@lru_cache(maxsize=1)
def _weights() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="whet-fault-model-"))
    return build_tiny_model(folder / "model", "llama")


def llama(folder: Path, template: str | None = LLAMA_3_TEMPLATE, **tokenizer: Any) -> Path:
    """The tiny Llama under a Llama 3 tokenizer, which puts BOS before plain text."""
    return model_under(
        folder, LLAMA_3, "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", template, tokenizer
    )


def chatml(folder: Path, template: str | None = CHATML_TEMPLATE, **tokenizer: Any) -> Path:
    """The same weights under a ChatML tokenizer without BOS."""
    return model_under(folder, CHATML, None, "<|endoftext|>", "<|im_end|>", template, tokenizer)


def model_under(
    folder: Path,
    specials: tuple[str, ...],
    bos: str | None,
    eos: str,
    end: str,
    template: str | None,
    settings: dict[str, Any],
) -> Path:
    path = folder / "model"
    shutil.copytree(_weights(), path)
    tokenizer = byte_level(specials, prefix=bos)
    tokenizer.save(str(path / "tokenizer.json"))
    values = {
        "bos_token": bos,
        "eos_token": eos,
        "chat_template": template,
        "model_max_length": 512,
        **settings,
    }
    kept = {key: value for key, value in values.items() if value is not None}
    (path / "tokenizer_config.json").write_text(json.dumps(kept))
    ids = {"bos_token_id": bos and tokenizer.token_to_id(bos), "pad_token_id": None}
    for name, ends in (("config.json", tokenizer.token_to_id(eos)), ("generation_config.json", None)):
        both = [tokenizer.token_to_id(eos), tokenizer.token_to_id(end)]
        edit(path / name, eos_token_id=ends if ends is not None else both, **ids)
    return path


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def chats(count: int = 150, answer: Callable[[int], str] = "The sum is {}.".format) -> list[Row]:
    """Distinct conversations; ``answer`` makes a reply of the row's number."""
    return [chat(f"What is {n} plus {n + 1}?", answer(2 * n + 1)) for n in range(count)]


def chat(*turns: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[at % 2], "content": turn} for at, turn in enumerate(turns)]}


def write(path: Path, rows: Iterable[Row]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def look(
    model: Path, rows: Iterable[Row], by_hand: Callable[[Finding, Recipe], Recipe] | None = None, **patch: Any
) -> Looked:
    """The plan of these rows on this model, for a CPU machine that lacks nothing."""
    data = write(model.parent / "rows.jsonl", rows)
    plain = Recipe.model_validate({"model": {"name": str(model)}, "data": {"train": str(data)}})
    recipe = patched(plain, {key.replace("__", "."): value for key, value in patch.items()})
    mended = None if by_hand is None else lambda finding: by_hand(finding, recipe)
    return planned(recipe, mended, machine=machine())


def rewritten(path: Path, rows: Iterable[Row]) -> Callable[[Finding, Recipe], Recipe]:
    """Mends by hand: the file gets these rows."""

    def mend(finding: Finding, recipe: Recipe) -> Recipe:
        write(path / "rows.jsonl", rows)
        return recipe

    return mend


def every(step: int, rows: list[Row], change: Callable[[dict[str, Any]], Row]) -> list[Row]:
    """Every ``step``-th row changed."""
    return [change(row) if n % step == 0 and isinstance(row, dict) else row for n, row in enumerate(rows)]
