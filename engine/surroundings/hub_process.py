"""The far end of :func:`.hub.ask_hub`, a process of its own since name resolution knows no time limit."""

from __future__ import annotations

import json
import socket
import sys
import urllib.error
import urllib.request
from http import HTTPStatus

from .facts import Reach
from .hub import PATIENCE, token


def ask(endpoint: str) -> Reach:
    """Whose token it is; without one the refusal says that the hub is there."""
    request = urllib.request.Request(f"{endpoint}/api/whoami-v2", headers={"User-Agent": "whet"})
    mine = token()
    if mine is not None:
        request.add_unredirected_header("Authorization", f"Bearer {mine}")
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return Reach(reachable=True, user=json.load(answer).get("name"))
    except urllib.error.HTTPError as error:
        if error.code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return Reach(reachable=True, token_refused=mine is not None)
        return Reach(reachable=error.code < HTTPStatus.INTERNAL_SERVER_ERROR, why=f"it answers {error.code}")
    except (OSError, ValueError) as error:  # no name, no route, no certificate, or an endpoint that is no URL
        return Reach(reachable=False, why=_words(getattr(error, "reason", error)))


def _words(reason: object) -> str:
    if isinstance(reason, socket.gaierror):
        return "its name cannot be looked up"
    if isinstance(reason, TimeoutError):
        return "no answer"
    return getattr(reason, "strerror", None) or str(reason)[:200]


if __name__ == "__main__":
    print(ask(sys.stdin.read().strip()).model_dump_json())
