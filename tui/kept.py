"""What the TUI keeps between starts: looks, keys, what was used last. One JSON file under whet's home."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

MOST = 12
"""Entries kept of each list."""


@dataclass
class Kept:
    """Fields have defaults, so that a file of an older or newer whet still reads."""

    theme: str = "whet"
    low_bandwidth: bool = False
    ascii: bool = False
    """Plots and bars of ASCII characters alone."""
    keymap: dict[str, str] = field(default_factory=dict)
    """Binding id -> keys, where a person changed them."""
    data: list[str] = field(default_factory=list)
    """Data sets seen, newest first; likewise models."""
    models: list[str] = field(default_factory=list)
    folder: str = ""
    """Where the file browser was last."""

    def remember(self, kind: str, value: str) -> None:
        """Put a data set or model first in its list."""
        known: list[str] = getattr(self, kind)
        setattr(self, kind, [value, *(one for one in known if one != value)][:MOST])


def kept_file() -> Path:
    """``$WHET_HOME/tui.json``, without the engine's settings: they would delay the first paint."""
    return Path(os.environ.get("WHET_HOME", "~/.whet")).expanduser().absolute() / "tui.json"


def load() -> Kept:
    """What was kept; the default of all that cannot be read or is of another kind."""
    try:
        values = json.loads(kept_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Kept()
    kept = Kept()
    for one in fields(Kept) if isinstance(values, dict) else ():
        value = values.get(one.name)
        if _alike(value, getattr(kept, one.name)):
            setattr(kept, one.name, value)
    return kept


def _alike(value: object, default: object) -> bool:
    """Whether a value from the file, which people edit, can stand where the default does."""
    inside = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return type(value) is type(default) and all(isinstance(one, str) for one in inside)


def save(kept: Kept) -> None:
    """Write it whole or not at all. Raises OSError."""
    path = kept_file()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(asdict(kept), indent=2, ensure_ascii=False), encoding="utf-8")
    new.replace(path)
