"""An answer written from passages by a model a person named in the environment. Off unless they did.

``WHET_ASSISTANT`` is a GGUF file, which answers on this machine, or the base URL of an OpenAI-compatible
server (``http://localhost:11434/v1``), to which the question and the passages are sent; nothing else is, and
nothing without it. ``WHET_ASSISTANT_MODEL`` names the server's model, ``WHET_ASSISTANT_KEY`` holds its key.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from .passages import Passage

SECONDS = 60
LONGEST = 300
TOLD = (
    "Answer the question about whet, a fine-tuning tool, in at most four sentences, from these passages "
    "alone. If they do not hold the answer, say so.\n\n"
)


def configured() -> str:
    """The file or address that was named; empty when there is none."""
    from whet.engine.api import settings

    return settings().assistant


def write(question: str, found: Sequence[Passage]) -> str:
    """The model's answer. Raises WhetError ``assistant.failed``, or what a chat raises."""
    text = TOLD + "\n\n".join(f"{one.title}: {one.text}" for one in found)
    messages = [{"role": "user", "content": f"{text}\n\nQuestion: {question}"}]
    named = configured()
    return _from_server(named, messages) if "://" in named else _from_file(Path(named), messages)


def _from_file(path: Path, messages: list[dict[str, str]]) -> str:
    from whet.engine import api

    with api.ChatSession(api.ChatTarget(gguf=path.expanduser().absolute())) as session:
        return "".join(piece.text for piece in session.ask(messages, "gguf", max_new_tokens=LONGEST))


class _Stay(HTTPRedirectHandler):
    """The key goes to the server that was named, and not where that sends us."""

    def redirect_request(self, *args: Any, **options: Any) -> None:
        return None


def _from_server(address: str, messages: list[dict[str, str]]) -> str:
    from whet.engine import api

    body = {"messages": messages, "max_tokens": LONGEST, "temperature": 0}
    settings = api.settings()
    if settings.assistant_model:
        body["model"] = settings.assistant_model
    headers = {"Content-Type": "application/json"}
    if settings.assistant_key:
        headers["Authorization"] = f"Bearer {settings.assistant_key}"
    request = Request(f"{address.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers)
    try:
        with build_opener(_Stay).open(request, timeout=SECONDS) as answer:
            return str(json.load(answer)["choices"][0]["message"]["content"]).strip()
    except (URLError, TimeoutError, ValueError, LookupError) as error:
        raise api.WhetError(
            "assistant.failed",
            f"{address} gave no answer: {error}.",
            "Check WHET_ASSISTANT and WHET_ASSISTANT_MODEL, or unset them: passages need no model.",
        ) from error
