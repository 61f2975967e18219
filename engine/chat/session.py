"""The near end of a chat: starts the model's process and streams its answers. Light: no torch here."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from pydantic import BaseModel

from ..errors import WhetError
from ..processes import send, start

LOG_TAIL = 300
Who = Literal["base", "tuned", "gguf"]


class ChatTarget(BaseModel):
    """What to talk to: a model directory, with an adapter beside it, or a GGUF file."""

    model: Path | None = None
    adapter: Path | None = None
    gguf: Path | None = None

    @property
    def voices(self) -> list[Who]:
        """Who can answer, best first."""
        voices: list[Who] = []
        if self.gguf is not None:
            voices.append("gguf")
        if self.model is not None:
            voices += ["tuned", "base"] if self.adapter is not None else ["tuned"]
        return voices


class ChatPiece(BaseModel):
    """A piece of an answer; the last piece of an answer has ``end`` set."""

    who: Who
    text: str = ""
    end: bool = False
    stopped: bool = False
    """The model ended its turn by itself, rather than running out of tokens."""


class ChatSession:
    """One process with the models loaded; use as a context manager.

    Args:
        target: what to load.
        seconds: longest time to load; then the process is ended, and WhetError ``chat.slow`` raised.
    """

    def __init__(self, target: ChatTarget, seconds: float | None = None) -> None:
        self.target = target
        self._late = False
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (open as long as the process lives)
        self._process = start("whet.engine.chat.process", target.model_dump_json(), stderr=self._log)
        with self._within(seconds):
            self._read()  # the process says when it is ready, or why it is not

    def __enter__(self) -> ChatSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process; an answer under way is dropped."""
        self._process.terminate()
        self._process.wait()
        self._log.close()

    def ask(
        self,
        messages: list[dict[str, str]],
        who: Who = "tuned",
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        seconds: float | None = None,
    ) -> Iterator[ChatPiece]:
        """Stream one voice's answer to ``messages``. Temperature 0 is greedy.

        Raises:
            WhetError: ``chat.ended`` when the model's process died, or the error it reported;
                ``chat.closed`` when another thread closed the session;
                ``chat.slow`` when the answer took longer than ``seconds``, and the process was ended.
        """
        request = {
            "messages": messages,
            "who": who,
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
        }
        with self._within(seconds):
            send(self._process, request)
            while True:
                piece = ChatPiece.model_validate(self._read())
                yield piece
                if piece.end:
                    return

    @contextmanager
    def _within(self, seconds: float | None) -> Iterator[None]:
        """End the process if the block takes longer: a read from its pipe cannot be given up otherwise."""
        if seconds is None:
            yield
            return
        timer = threading.Timer(seconds, self._give_up)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _give_up(self) -> None:
        self._late = True
        self._process.kill()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            if self._late:
                raise WhetError(
                    "chat.slow",
                    "The model took too long and was ended.",
                    "Ask for fewer tokens, or of a smaller model.",
                )
            if self._log.closed:
                raise WhetError("chat.closed", "The chat was closed before the answer ended.", "Ask again.")
            self._log.seek(0)
            said = self._log.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise WhetError(
                "chat.ended",
                f"The model's process ended with code {code}: {said[-LOG_TAIL:] or 'it said nothing'}",
                "A negative code is a signal: -9 is usually memory, -11 a fault in native code.",
            )
        message: dict[str, Any] = json.loads(line)
        if "error" in message:
            raise WhetError(**message["error"])
        return message
