"""Proofs of exported files, step by step: what was held against the trained model, and how it came out."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePath
from typing import Any

from rich.text import Text

from .text import plain

MARKS = {"pass": ("✓", "green"), "warn": ("!", "bold yellow"), "fail": ("✗", "bold red")}


def proof_steps(files: Iterable[tuple[str, dict[str, Any]]]) -> Text:
    """Each file with its verdict; below it every proof with what it saw, and what helps if it failed."""
    text = Text()
    for path, verdict in files:
        status = str(verdict.get("status", ""))
        text.append(f"{plain(PurePath(path).name, 50)}", "bold")
        text.append(f"  {status}\n" if status in MARKS else "\n", MARKS.get(status, ("", ""))[1])
        for proof in verdict.get("proofs", []):
            mark, style = MARKS[proof["status"]]
            text.append(f" {mark} ", style).append(f"{proof['name']:<11}").append(
                f"{plain(proof['summary'], 300)}\n"
            )
            if proof["status"] != "pass" and proof.get("fix"):
                text.append(f"   fix: {plain(proof['fix'], 300)}\n")
    return text
