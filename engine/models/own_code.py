"""A model's own Python code: it runs by a person's word alone, given for exactly this code. Light."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from ..errors import WhetError

CODE_FILES = ["*.py"]
SNAPSHOT = re.compile(r"[0-9a-f]{40}")
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


def _classes(path: Path) -> list[str]:
    """The classes that its JSON files want from code: ``modeling_x.XForCausalLM``."""
    found: list[str] = []
    for name in ("config.json", "tokenizer_config.json"):
        file = path / name
        config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        for value in (config.get("auto_map") or {}).values():
            found += [str(one) for one in (value if isinstance(value, list) else [value]) if one]
    return found
