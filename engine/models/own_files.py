"""What a model's folder may name: files of its own, weights as safetensors alone. Light.

Indices and links come from whoever made the folder. A name with ``..`` in it, or a link that leads out, would
have files of this machine trained on, copied beside the merged weights and pushed.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import WhetError
from ..surroundings.hub import hub_cache

LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""How transformers reads a folder's configuration and tokenizer: no network, no code of the folder's."""
WEIGHTS: dict[str, Any] = {**LOCAL, "use_safetensors": True}
"""How transformers reads weights."""
ADAPTER = "adapter_model.safetensors"
PICKLED = "pytorch_model.bin"
TOKENIZER_FILES = ("vocab_file", "merges_file", "tokenizer_file", "spm_file")
"""Settings of tokenizer_config.json that transformers obeys where there is no tokenizer.json."""
MODULES = "modules.json"
TEMPLATES = "additional_chat_templates"
TEXTS = ("*.json", "*.jinja", "*.model", "*.txt", "LICENSE*", "NOTICE*")
INDEX = "model.safetensors.index.json"
SUFFIX = ".safetensors"
LONGEST_HEADER = 100_000_000
"""Bytes; safetensors itself refuses more."""
LFS = b"version "
"""How a pointer begins that a clone without Git LFS has in place of a large file."""


def shards(folder: Path) -> dict[str, str] | None:
    """Tensor name -> file, as the index says; None without one.

    Raises:
        WhetError: ``model.index`` for an index that is broken, or names anything but safetensors files that
            lie beside it.
    """
    index = folder / INDEX
    if not index.is_file():
        return None
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _odd_index(index, f"has no weight_map that can be read ({type(error).__name__})") from error
    if not isinstance(found, dict):
        raise _odd_index(index, f"has a {type(found).__name__} as its weight_map")
    for tensor, file in found.items():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(SUFFIX):
            raise _odd_index(index, f"says that {tensor!r} lies in {file!r}")
    return found


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """A safetensors file's header (eight bytes of little-endian length, then JSON), and where its data begin.

    Raises:
        WhetError: ``model.broken_weights`` for a file without one; no more is read than it can hold.
    """
    if not path.is_file():  # caches that were cleared by hand leave such links
        raise _broken(path, "it is a link that leads nowhere")
    with open(path, "rb") as file:
        start = file.read(8)
        if start == LFS:
            raise _broken(path, "it is a pointer of Git LFS, and `git lfs pull` fetches what it means")
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        size = os.fstat(file.fileno()).st_size
        if not 2 <= length <= min(LONGEST_HEADER, size - 8):
            raise _broken(path, f"its header would be {length:,} bytes of a file of {size:,}")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise _broken(path, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise _broken(path, f"its header is a {type(header).__name__}")
    room = size - 8 - length
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if not _describes(entry):
            raise _broken(path, f"its header says of {name!r} {entry!r}")
        if entry["data_offsets"][1] > room:
            raise _broken(path, f"it ends within {name}")
    return header, 8 + length


def _describes(entry: Any) -> bool:
    """Whether it is a tensor's type, shape and place, which agree."""
    if not isinstance(entry, dict) or not isinstance(kind := entry.get("dtype"), str):
        return False
    shape, place = entry.get("shape"), entry.get("data_offsets")
    if not isinstance(shape, list) or not isinstance(place, list) or len(place) != 2:
        return False
    if not all(type(number) is int and number >= 0 for number in (*shape, *place)):
        return False
    bits = re.search(r"\d+", kind)  # BOOL is a byte; types of less than one are packed
    needed = math.prod(shape) * (int(bits[0]) if bits else 8)
    return 8 * (place[1] - place[0]) == needed


def refuse_links_out(folder: Path) -> None:
    """Raise WhetError ``model.link`` for a link to what neither lies in ``folder`` nor in the hub's cache.

    Meant is what is read as text or copied; weights beside config.json may be linked from anywhere.
    """
    inside = _inside(folder)
    for path in _read_or_copied(folder):
        if not any(path.resolve().is_relative_to(one) for one in inside):  # it, or a folder above it, links
            raise WhetError(
                "model.link",
                f"{path} leads to {path.resolve()}, which lies outside of the model's folder.",
                "If that is meant, put the file itself there; only weights may be linked.",
            )


def _read_or_copied(folder: Path) -> Iterator[Path]:
    for pattern in TEXTS:
        yield from folder.glob(pattern)
    # Templates beside the first, and the layers of an embedding model, which a merge copies whole.
    for name in (TEMPLATES, *module_folders(folder)):
        yield folder / name
        yield from (folder / name).rglob("*")


def module_folders(folder: Path) -> list[str]:
    """The folders below ``folder`` that modules.json names, as far as it can be read.

    Raises WhetError ``model.link`` for one that lies elsewhere.
    """
    try:
        listed = json.loads((folder / MODULES).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    named = [one.get("path") for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    found = {os.path.normpath(path) for path in named if isinstance(path, str)} - {os.curdir}
    for path in found:
        if os.path.isabs(path) or path.split(os.sep)[0] == os.pardir:
            raise WhetError(
                "model.link",
                f"{folder / MODULES} names a layer in {path}, which lies outside of the model's folder.",
                "A layer's path begins in the model's own folder: correct it there.",
            )
    return sorted(found)


def refuse_pickled_modules(folder: Path) -> None:
    """Raise WhetError ``model.pickled`` for a layer of sentence-transformers' without safetensors."""
    for name in module_folders(folder):
        for file in sorted((folder / name).rglob(PICKLED)):
            if not file.with_name("model.safetensors").is_file():
                raise _pickled(file)


def check_adapter(folder: Path) -> None:
    """Raise WhetError ``model.pickled`` for an adapter that PEFT would read from a pickle, ``model.link`` as
    :func:`refuse_links_out`."""
    refuse_links_out(folder)
    if not (folder / ADAPTER).is_file():
        raise _pickled(folder / ADAPTER.replace(".safetensors", ".bin"))


def refuse_files_elsewhere(folder: Path, tokenizer: dict[str, Any]) -> None:
    """Raise WhetError ``model.link`` for a tokenizer whose settings make it of files outside of ``folder``.

    Old ones name where their author's files lay; that is obeyed only where there is no tokenizer.json.
    """
    for name in TOKENIZER_FILES:
        file = tokenizer.get(name)
        if isinstance(file, str) and not _is_own(folder, file):
            raise WhetError(
                "model.link",
                f"{folder / 'tokenizer_config.json'} makes its tokenizer of {file}, which lies elsewhere.",
                f"Remove {name} there, or save the model with its tokenizer.json.",
            )


def _pickled(file: Path) -> WhetError:
    there = "is a pickle, which could run code as it is read" if file.is_file() else "is not there either"
    return WhetError(
        "model.pickled",
        f"{file.parent} holds no safetensors weights; {file.name} {there}.",
        "Only safetensors are read. Whoever trusts the file loads it once with its own library and saves it.",
    )


def _is_own(folder: Path, name: str) -> bool:
    """Whether ``name`` leads to a file of ``folder``; a snapshot's are links to blobs."""
    file = folder / name
    if file.resolve().is_relative_to(folder.resolve()):
        return True
    named_here = Path(os.path.abspath(file)).is_relative_to(os.path.abspath(folder))
    return named_here and any(file.resolve().is_relative_to(one) for one in _inside(folder))


def _inside(folder: Path) -> tuple[Path, ...]:
    """Where a model's links may lead: its folder, the hub's cache, the blobs beside a snapshot of another."""
    snapshots = folder.resolve().parent
    blobs = (snapshots.parent / "blobs",) if snapshots.name == "snapshots" else ()
    return (folder.resolve(), hub_cache().resolve(), *blobs)


def _odd_index(index: Path, fact: str) -> WhetError:
    return WhetError(
        "model.index",
        f"{index} {fact}.",
        "An index names safetensors files that lie beside it. Download the model again.",
    )


def _broken(path: Path, fact: str) -> WhetError:
    return WhetError(
        "model.broken_weights",
        f"{path} is no whole safetensors file: {fact}.",
        "Download the model again, or write its weights again with save_pretrained.",
    )
