"""What a person sees: a screen of the app as plain text, and its comparison with a committed one.

Text rather than pictures: a change can be read in a diff. WHET_SNAPSHOTS=write replaces what is committed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from textual.app import App

SNAPSHOTS = Path(__file__).parents[1] / "tui" / "snapshots"
SIZES = ((80, 24), (120, 36), (200, 50))


def shown(app: App[Any]) -> str:
    """The screen now on top, a line each, without trailing spaces."""
    strips = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip).rstrip() for strip in strips) + "\n"


def same_as_committed(app: App[Any], name: str) -> None:
    """Compare with ``tests/tui/snapshots/NAME-WIDTHxHEIGHT.txt``."""
    path = SNAPSHOTS / f"{name}-{app.size.width}x{app.size.height}.txt"
    seen = shown(app)
    if os.environ.get("WHET_SNAPSHOTS") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(seen, encoding="utf-8")
    assert path.exists(), f"{path} is missing: run with WHET_SNAPSHOTS=write, look at it, commit it"
    assert seen == path.read_text(encoding="utf-8"), f"{path.name} differs:\n{seen}"
