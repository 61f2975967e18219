"""`whet doctor --bundle`: one archive to attach to a bug report, without tokens or paths of this user."""

from __future__ import annotations

import io
import json
import os
import platform
import tarfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from .doctor import DoctorReport, explain_environment
from .errors import WhetError
from .redaction import Redactor
from .runs.store import RunDir, RunStore

RUNS = 3
TAIL_BYTES = 64 << 10
"""Of a run's events and of its log."""
PLAN_WITHOUT = ("alternatives",)


def write_bundle(report: DoctorReport, target: Path) -> list[str]:
    """Write a gzipped tar to ``target``, readable by its owner alone; returns the names inside.

    Raises:
        WhetError: ``doctor.bundle_exists``, ``doctor.bundle_not_writable``.
    """
    clean = Redactor()
    names: list[str] = []
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
            for name, text in _contents(report, clean):
                data = text.encode("utf-8", "backslashreplace")
                entry = tarfile.TarInfo(f"whet-bundle/{name}")
                entry.size, entry.mtime, entry.mode = len(data), int(time.time()), 0o644
                archive.addfile(entry, io.BytesIO(data))
                names.append(name)
    except FileExistsError as error:
        raise WhetError("doctor.bundle_exists", f"{target} exists.", "Name another file.") from error
    except OSError as error:
        raise WhetError(
            "doctor.bundle_not_writable",
            f"Cannot write {target}: {error.strerror}.",
            "Name a file in a folder you can write to.",
        ) from error
    return names


def _contents(report: DoctorReport, clean: Redactor) -> Iterator[tuple[str, str]]:
    """Names and redacted texts."""
    yield "doctor.json", clean.json(report.model_dump(mode="json"))
    yield "environment.json", clean.json([flag.model_dump() for flag in explain_environment()])
    yield "versions.txt", clean.text(_versions())
    for summary in RunStore().list()[:RUNS]:
        yield from _run(RunDir(Path(summary.path)), clean)


def _versions() -> str:
    """The system, Python, and every installed package."""
    lines = {
        f"{one.metadata['Name']}=={one.version}" for one in metadata.distributions() if one.metadata["Name"]
    }
    head = [f"# {platform.platform()}", f"# Python {platform.python_version()}"]
    return "\n".join([*head, *sorted(lines, key=str.lower)]) + "\n"


def _run(run: RunDir, clean: Redactor) -> Iterator[tuple[str, str]]:
    """A run's recipe, plan, job, state, and the ends of its events and log."""
    folder = f"runs/{clean.text(run.id)}"
    for file in (run.recipe, run.plan, run.job, run.state):
        if file.is_file():
            text = file.read_text(encoding="utf-8", errors="replace")
            yield (
                f"{folder}/{file.name}",
                _structured(text, clean) if file.suffix == ".json" else clean.text(text),
            )
    for file in (run.events, run.log):
        if file.is_file():
            yield f"{folder}/{file.name}", clean.text(_tail(file))


def _structured(text: str, clean: Redactor) -> str:
    """JSON redacted by its keys too; a broken file as text."""
    try:
        found = json.loads(text)
    except ValueError:
        return clean.text(text)
    if isinstance(found, dict):
        found = {key: value for key, value in found.items() if key not in PLAN_WITHOUT}
    return clean.json(found)


def _tail(file: Path) -> str:
    """Whole lines from the end of a file."""
    with open(file, "rb") as handle:
        size = handle.seek(0, os.SEEK_END)
        handle.seek(max(0, size - TAIL_BYTES))
        text = handle.read().decode("utf-8", "replace")
    return text if size <= TAIL_BYTES else text.partition("\n")[2]
