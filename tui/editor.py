"""A person's own editor in this terminal, for a text or a file; the app sleeps meanwhile."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from pathlib import Path

from textual.app import App, SuspendNotSupported

USUAL = "vi"
WITH_LINES = ("vi", "vim", "nvim", "nano", "emacs", "micro", "kak", "joe", "ne", "helix", "hx")
"""Editors that open a file at a line with ``+LINE``."""


def editor_command(path: Path, line: int | None = None) -> list[str]:
    """``$VISUAL``, ``$EDITOR`` or vi, on a file, at a line where it can."""
    words = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or USUAL)
    at = [f"+{line}"] if line is not None and Path(words[0]).name in WITH_LINES else []
    return [*words, *at, str(path)]


def edit_file(app: App[object], path: Path, line: int | None = None) -> str:
    """Open a file; returns why it could not be, empty where it was."""
    command = editor_command(path, line)
    try:
        with app.suspend():
            code = subprocess.run(command, check=False).returncode
    except SuspendNotSupported:
        return "This terminal cannot lend itself to an editor."
    except OSError as error:
        return f"{command[0]} cannot be run: {error.strerror}. Set EDITOR."
    return "" if code == 0 else f"{command[0]} ended with code {code}; nothing was taken over."


def edit_text(app: App[object], text: str, name: str) -> tuple[str, str]:
    """A text after a person edited it, and why not, which is empty where it went well."""
    with tempfile.TemporaryDirectory(prefix="whet-edit-") as folder:
        path = Path(folder) / name
        path.write_text(text, encoding="utf-8")
        problem = edit_file(app, path)
        return (text, problem) if problem else (path.read_text(encoding="utf-8", errors="replace"), "")
