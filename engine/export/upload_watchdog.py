"""Uploads under a watchdog: a connection over which nothing moves for a while ends the upload. Light.

The hub's client sets no limits and tries five times over what times out; a hub that takes a file and never
answers would hold it for ever. Here each request gets a limit on every wait for the network, and a wait that
runs into it raises what the client does not try over.

Xet's transfers tell their progress to the client's bars alone, and have limits of their own: a request waits
five minutes and is tried over, an hour in all (hf-xet 1.8). What they give up on then is not begun anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STALL_SECONDS = 300.0
"""Without a single byte, in either direction; longer than a hub takes to put the parts of a file together."""
STALLS = ("ReadTimeout", "WriteTimeout")
"""What httpcore, under whatever name the client has it, raises where bytes stop."""


class Stalled(TimeoutError):
    """No byte came or went for the watchdog's patience."""


class XetStalled(Stalled):
    """Xet gave up by itself, after longer than the watchdog's patience."""


@contextmanager
def watchdog(patience: float = STALL_SECONDS) -> Iterator[None]:
    """Requests of this process's hub client raise :class:`Stalled` after ``patience`` seconds without a
    byte, while the block runs."""
    from huggingface_hub import get_session

    def limit(request: Any) -> None:
        request.extensions |= {
            "timeout": dict.fromkeys(("connect", "read", "write", "pool"), patience),
            "trace": refuse_to_wait,
        }

    def refuse_to_wait(happened: str, told: dict[str, Any]) -> None:
        """Called by the client for each thing that a request does; ``told`` has its exception."""
        if type(told.get("exception")).__name__ in STALLS:
            raise Stalled(f"nothing moved for {patience:.0f} s")

    client = get_session()
    hooks = client.event_hooks
    client.event_hooks = {**hooks, "request": [*hooks["request"], limit]}
    try:
        yield
    finally:
        client.event_hooks = hooks
