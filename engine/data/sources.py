"""Rows of any source: a file, a folder of files, a hub id, or the demo's own data."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from ..errors import WhetError
from ..recipe import DataSection
from ..runs.files import private_dir
from ..settings import settings
from .hub import hub_commit, read_hub
from .readers import READERS
from .rows import BadRow, RawRow

__all__ = ["BadRow", "RawRow", "iter_rows", "source_digest", "source_files"]

Role = Literal["train", "eval"]
HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?$")


def iter_rows(source: str, section: DataSection, role: Role = "train") -> Iterator[RawRow | BadRow]:
    """Every row of a source in order, at most ``section.max_rows``, without holding more than a few of them.

    Args:
        source: ``demo``, a file, a folder (its files by name, deep), or a hub id.
        section: the recipe's data section (split, subset, revision, streaming, max_rows).
        role: `demo` as eval is its held-out part.

    Raises:
        WhetError: ``data.not_found``, ``data.suffix`` or ``data.empty_folder``.
    """
    files = source_files(source, role, section.revision)
    if files is None:
        rows: Iterator[RawRow | BadRow] = read_hub(source, section)
    else:
        rows = itertools.chain.from_iterable(READERS[file.suffix.lower()](file) for file in files)
    return itertools.islice(rows, section.max_rows)


def source_files(source: str, role: Role = "train", revision: str | None = None) -> list[Path] | None:
    """The files of a local source, sorted; None when it is a hub id that is reachable or cached."""
    if source == "demo":
        from .. import demo

        return [demo.TRAIN_FILE if role == "train" else demo.HELDOUT_FILE]
    path = Path(os.path.expanduser(source))
    if os.path.isdir(path):  # pathlib raises for names that are too long
        return _folder(path)
    if os.path.isfile(path):
        if path.suffix.lower() not in READERS:
            raise WhetError(
                "data.suffix",
                f"{source} has the suffix {path.suffix or '(none)'!r}, which says no known file kind.",
                f"Rename it to one of: {', '.join(READERS)}.",
            )
        return [path]
    if not HUB_ID.match(source) or path.suffix.lower() in READERS:
        raise _not_found(source, path)
    if hub_commit(source, revision) is None:
        raise _not_found(source, path)
    return None


def source_digest(source: str, section: DataSection, role: Role = "train") -> str:
    """Hash of the source's content: file names and bytes, or the hub's commit.

    Hashes of files are remembered by size and times, so the second call costs a ``stat`` a file.
    """
    files = source_files(source, role, section.revision)
    total = hashlib.blake2b(digest_size=16)
    if files is None:
        commit = hub_commit(source, section.revision)
        total.update(json.dumps([source, section.subset, section.split, commit]).encode())
    else:
        for file in files:
            total.update(f"{file.name}\0{file_digest(file)}\0".encode())
    return total.hexdigest()


def file_digest(path: Path) -> str:
    """Content hash of one file, remembered in the cache by size, inode and times."""
    stat = path.stat()
    identity = [stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]
    key = hashlib.blake2b(os.fsencode(path.absolute()), digest_size=16).hexdigest()
    note = settings().cache / "hashes" / f"{key}.json"
    if note.exists():
        remembered = json.loads(note.read_text() or "{}")
        if remembered.get("identity") == identity:
            return str(remembered["digest"])
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    private_dir(note.parent)
    fresh = note.with_suffix(f".{os.getpid()}")
    fresh.write_text(json.dumps({"identity": identity, "digest": digest, "path": str(path)}))
    fresh.replace(note)
    return digest


def _folder(path: Path) -> list[Path]:
    """Every data file below a folder by name; hidden files and folders are left out."""
    files = sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in READERS
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not files:
        raise WhetError(
            "data.empty_folder",
            f"The folder {path} holds no data file.",
            f"Files must end in one of: {', '.join(READERS)}.",
        )
    return files


def _not_found(source: str, path: Path) -> WhetError:
    near: list[str] = []
    if os.path.isdir(path.parent):
        names = [entry.name for entry in path.parent.iterdir()]
        near = [str(path.parent / name) for name in difflib.get_close_matches(path.name, names, n=3)]
    hints = [f"Did you mean {' or '.join(near)}?"] if near else []
    if HUB_ID.match(source) and path.suffix.lower() not in READERS:
        why = (
            "offline mode is on; unset WHET_OFFLINE and HF_HUB_OFFLINE to download it"
            if settings().offline
            else "the hub cannot be reached; check the network"
        )
        hints.append(f"If {source!r} is a hub id: it is not in the local cache, and {why}.")
    else:
        hints.append("Give a file, a folder, or a hub id like 'user/name'.")
    return WhetError("data.not_found", f"There is no data at {source!r}.", " ".join(hints))
