"""A model's own Python code: it runs by a person's word alone, given for exactly this code. Light."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import WhetError

CODE_FILES = ["*.py"]
SNAPSHOT = re.compile(r"[0-9a-f]{40}")
BIG_FILES = ("tokenizer.json", "vocab.json", "model.safetensors.index.json")
"""Vocabularies and lists of weights; no loader looks for classes there."""
ELSEWHERE = "--"
"""Between a repository's name and a class, where config.json takes code from another repository."""
HOW = (
    "Read its code, then: whet train RECIPE --trust-remote-code. An operator of whet-mcp lists "
    "OWNER/NAME@COMMIT in the file of --allow-remote-code."
)


def own_code(name: str, path: Path) -> str | None:
    """What a person allows: ``owner/name@commit`` from the hub, else ``folder@hash`` of its Python files.

    Args:
        name: as the recipe names the model.
        path: where its files are.

    Returns:
        None for a model without code of its own.
    """
    if not _classes(path):
        return None
    hub = f"models--{name.replace('/', '--')}"
    if path.parts[-3:-1] == (hub, "snapshots") and SNAPSHOT.fullmatch(path.name) and not Path(name).exists():
        return f"{name}@{path.name}"
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*.py")):
        digest.update(f"{file.relative_to(path)}\0".encode() + file.read_bytes() + b"\0")
    return f"{path.resolve()}@{digest.hexdigest()[:40]}"


def check_own_code(name: str, path: Path) -> None:
    """Raises WhetError ``model.remote_code`` for code from a repository whose commit nobody named."""
    elsewhere = [one for one in _classes(path) if ELSEWHERE in one]
    if elsewhere:
        raise WhetError(
            "model.remote_code",
            f"{name} takes its code from another repository: {elsewhere[0]}.",
            "That code is of no fixed commit, so it is not run. Use a model that holds its code itself.",
        )


def refused_code(path: Path, error: Exception) -> WhetError | None:
    """What to say when ``path`` could not be loaded for want of its code; None where that is not why."""
    if not _classes(path) or "trust_remote_code" not in str(error):
        return None
    return WhetError("model.remote_code", f"{path} brings Python code of its own, which was not run.", HOW)


def refuse_hub_kernels(path: Path) -> None:
    """Raise WhetError ``model.remote_code`` for a configuration that names kernels of the hub.

    Where the package `kernels` is installed, transformers would fetch and run them with no further word.
    """
    for config in _dicts(_read(path / "config.json")):
        for key, value in config.items():
            if "_implementation" in key and any("/" in str(one) for one in _values(value)):
                raise WhetError(
                    "model.remote_code",
                    f"{path / 'config.json'} takes compiled code from the hub: {key} is {value!r}.",
                    "whet chooses its own kernels: remove that line.",
                )


def _classes(path: Path) -> list[str]:
    """The classes that its JSON files want from code: ``modeling_x.XForCausalLM``.

    Models, tokenizers, processors of images and sounds say it in ``auto_map``, wherever it stands; modules of
    sentence-transformers in ``type``.
    """
    found: list[str] = []
    for file in sorted([*path.glob("*.json"), *path.glob("*/*.json")]):
        if file.name in BIG_FILES:
            continue
        said = _read(file)
        for config in _dicts(said):
            maps = config.get("auto_map")
            for value in maps.values() if isinstance(maps, dict) else ():
                found += [str(one) for one in _values(value) if one]
        if file.name == "modules.json":
            kinds = [str(module.get("type", "")) for module in _dicts(said)]
            found += [kind for kind in kinds if not kind.startswith("sentence_transformers.")]
    return found


def _read(file: Path) -> Any:
    """A JSON file's content; None for what is none, which loads nothing either."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    """``value`` and what it holds, as far as these are mappings."""
    if isinstance(value, dict):
        yield value
    if isinstance(value, dict | list):
        for inside in _values(value):
            yield from _dicts(inside)


def _values(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]
