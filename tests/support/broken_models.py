"""Model directories with one thing wrong, made from whole ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from support.tiny_models import build_tiny_model
from support.tiny_runs import tiny_recipe, write_chat_rows

from whet.engine.recipe import Recipe


@lru_cache
def _whole(family: str, options: tuple[tuple[str, Any], ...]) -> Path:
    return build_tiny_model(Path(mkdtemp(prefix="whet-tiny-")), family, **dict(options))  # type: ignore[arg-type]


def whole_model(path: Path, family: str = "llama", **options: Any) -> Path:
    """A copy of a tiny model that is built once a process."""
    shutil.copytree(_whole(family, tuple(sorted(options.items()))), path)
    return path


def change_weights(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Let ``change`` work on the tensors of a model, by name."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", {"format": "pt"})


def change_json(file: Path, **changes: Any) -> None:
    """Set keys of a JSON file; None takes a key away."""
    values = json.loads(file.read_text(encoding="utf-8"))
    values |= changes
    values = {key: value for key, value in values.items() if value is not None}
    file.write_text(json.dumps(values, indent=2), encoding="utf-8")


def token_id(path: Path, token: str) -> int:
    """Of an added token."""
    added = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    return next(int(one["id"]) for one in added if one["content"] == token)


def add_token(path: Path, token: str) -> int:
    """Add a special token to a tokenizer behind its last; the embedding stays as it is."""
    from tokenizers import AddedToken, Tokenizer

    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
    tokenizer.save(str(path / "tokenizer.json"))
    return token_id(path, token)


def setup(
    folder: Path, family: str = "llama", *, model: dict[str, Any] | None = None, **sections: Any
) -> Recipe:
    """A healthy recipe: a tiny model of its own, and 1,000 chats."""
    path = whole_model(folder / "model", family, **(model or {}))
    rows = write_chat_rows(folder / "rows.jsonl", 1000)
    return tiny_recipe(path, rows, adapter={"dropout": 0.0}, **sections)
