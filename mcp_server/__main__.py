"""``python -m whet.mcp_server`` is ``whet-mcp``."""

from .cli import main

main()
