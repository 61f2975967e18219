"""Resources: what an agent may read besides calling tools. The essentials are in tools too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .options import Options
from .results import Cleaner

if TYPE_CHECKING:
    from .server import Server

GUIDE = Path(__file__).parent / "guide.md"


def add_resources(server: Server, options: Options, cleaner: Cleaner) -> None:
    """The guide."""

    @server.resource("whet://guide", title="How to fine-tune with these tools", mime_type="text/markdown")
    def guide() -> str:
        """The flow in under 600 words."""
        return GUIDE.read_text(encoding="utf-8")
