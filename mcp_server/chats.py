"""One loaded chat model at a time: opened in the background, closed when idle or when another is wanted."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from whet.engine import api

IDLE_SECONDS = 180.0
LOAD_SECONDS = 900.0
"""Longest time a model may take to load; calls meanwhile say that it does."""

Key = tuple[str, tuple[int, ...]]


@dataclass
class Answer:
    """What one voice said; ``end`` is stop, length (out of tokens) or time."""

    who: api.Who
    text: str
    end: str
    seconds: float


@dataclass
class _Open:
    key: Key
    session: Future[api.ChatSession]
    began: float
    dropped: bool = False


class Chats:
    """Keeps one :class:`ChatSession`. Safe to use from several threads; questions come one at a time."""

    def __init__(self, idle: float = IDLE_SECONDS) -> None:
        self._idle = idle
        self._asking = threading.Lock()
        self._guard = threading.Lock()
        self._open: _Open | None = None
        self._timer: threading.Timer | None = None

    def ask(
        self,
        target: api.ChatTarget,
        messages: list[dict[str, str]],
        voices: Sequence[api.Who],
        max_new_tokens: int,
        temperature: float,
        seconds: float,
    ) -> list[Answer]:
        """The voices' answers, in ``seconds`` all together; an answer that takes longer is cut.

        Raises WhetError ``chat.busy``, ``chat.loading``, ``chat.slow`` (no word came), those of a session.
        """
        deadline = time.monotonic() + seconds
        if not self._asking.acquire(timeout=seconds):
            raise api.WhetError("chat.busy", "Another chat goes on.", "Call again when it has been answered.")
        try:
            opened = self._opened(target)
            session = self._session(opened, deadline)
            answers: list[Answer] = []
            for who in voices:
                answers.append(_answer(session, who, messages, max_new_tokens, temperature, deadline))
                if answers[-1].end == "time":
                    self.close()
                    break
            return answers
        except api.WhetError as error:
            if error.code != "chat.loading":
                self.close()
            raise
        finally:
            self._asking.release()
            self._close_when_idle()

    def close(self) -> None:
        """End the model's process, if there is one; an answer under way ends with an error."""
        with self._guard:
            opened, self._open = self._open, None
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        if opened is not None:
            opened.dropped = True
            opened.session.add_done_callback(_close_session)

    def _opened(self, target: api.ChatTarget) -> _Open:
        key = _key(target)
        if self._open is not None and self._open.key != key:
            self.close()
        with self._guard:
            if self._timer is not None:
                self._timer.cancel()
            if self._open is None:
                self._open = _Open(key, Future(), time.monotonic())
                threading.Thread(target=_load, args=(target, self._open.session), daemon=True).start()
            return self._open

    def _session(self, opened: _Open, deadline: float) -> api.ChatSession:
        try:
            return opened.session.result(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            raise api.WhetError(
                "chat.loading",
                f"The model has been loading for {time.monotonic() - opened.began:.0f} seconds.",
                "Make the same call again: it goes on loading meanwhile.",
            ) from None

    def _close_when_idle(self) -> None:
        with self._guard:
            if self._open is not None:
                self._timer = threading.Timer(self._idle, self._idle_over, (self._open,))
                self._timer.daemon = True
                self._timer.start()

    def _idle_over(self, opened: _Open) -> None:
        if self._open is opened and not self._asking.locked():
            self.close()


def _load(target: api.ChatTarget, loading: Future[api.ChatSession]) -> None:
    try:
        loading.set_result(api.ChatSession(target, LOAD_SECONDS))
    except Exception as error:  # it is raised again where the session is wanted
        loading.set_exception(error)


def _close_session(loaded: Future[api.ChatSession]) -> None:
    if loaded.exception() is None:
        loaded.result().close()


def _key(target: api.ChatTarget) -> Key:
    """A target, and when its files were last changed: an export may be made anew under the same name."""
    paths = [path for path in (target.model, target.adapter, target.gguf) if path is not None]
    files = [file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    return target.model_dump_json(), tuple(file.stat().st_mtime_ns for file in map(Path, files))


def _answer(
    session: api.ChatSession,
    who: api.Who,
    messages: list[dict[str, str]],
    max_new_tokens: int,
    temperature: float,
    deadline: float,
) -> Answer:
    begun, text, end = time.monotonic(), "", "time"
    try:
        for piece in session.ask(
            messages, who, max_new_tokens, temperature, seconds=max(0.1, deadline - begun)
        ):
            text += piece.text
            if piece.end:
                end = "stop" if piece.stopped else "length"
    except api.WhetError as error:
        if error.code != "chat.slow" or not text:
            raise
    return Answer(who, text, end, round(time.monotonic() - begun, 2))
