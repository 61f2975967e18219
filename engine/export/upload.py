"""Files into a repository of the hub, so that an interrupted upload goes on where it stopped. Light.

What the repository holds already, by its hash, is not sent again. Each large file is a commit of its own; the
small ones share the last, the model card among them, so that no card tells of files that are not there.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from ..errors import WhetError
from ..runs.events import Event, ExportEvent, PhaseEvent
from .upload_errors import may_pass, public_repository, refusal, retry_after, troubles, with_xet
from .upload_watchdog import STALL_SECONDS, watchdog

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

Tell = Callable[[Event], None]
Result = TypeVar("Result")

LARGE = 10_000_000
"""Bytes from which on a file is a commit of its own."""
PAUSES = (2.0, 10.0, 30.0)
"""Seconds before a call is tried again, where the hub does not name its own."""
CHATTY = ("huggingface_hub", "httpx", "httpx2", "httpcore", "httpcore2")


@dataclass(frozen=True)
class Item:
    """One file of the repository: its path there, and the file or the bytes."""

    name: str
    source: Path | bytes

    @property
    def size(self) -> int:
        """In bytes."""
        return self.source.stat().st_size if isinstance(self.source, Path) else len(self.source)


def ignore_event(event: Event) -> None:
    """Tell nobody."""


def upload(
    repo_id: str,
    items: Sequence[Item],
    *,
    private: bool,
    message: str,
    tell: Tell = ignore_event,
    wait: Callable[[float], None] = time.sleep,
    patience: float = STALL_SECONDS,
) -> str:
    """Bring ``items`` into the model repository ``repo_id``, which is created if need be.

    Args:
        repo_id: ``owner/name``.
        items: with distinct names.
        private: of a repository that is created here; one that exists must be private then.
        message: of the commits.
        tell: takes a phase event before each commit (bytes done of all), and for each file an export event of
            kind ``push`` whose detail says ``uploaded`` or ``present``.
        wait: sleeps so many seconds before a call is tried again.
        patience: seconds without a byte after which the upload ends as stalled.

    Returns:
        The repository's address.

    Raises:
        WhetError: ``hub.no_token``, ``hub.token``, ``hub.refused``, ``hub.full``, ``hub.busy``,
            ``hub.offline``, ``hub.stalled``, ``hub.public``. What arrived before stays there and is not sent
            again.
    """
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise WhetError(
            "hub.no_token",
            "There is no Hugging Face token.",
            "Set HF_TOKEN to one with write access, or run `hf auth login`.",
        )
    with _quiet(), watchdog(patience):
        return _Upload(HfApi(library_name="whet"), repo_id, message, tell, wait, patience).run(items, private)


@dataclass
class _Upload:
    api: HfApi
    repo_id: str
    message: str
    tell: Tell
    wait: Callable[[float], None]
    patience: float
    done: int = 0
    total: int = 0

    def run(self, items: Sequence[Item], private: bool) -> str:
        address = self._patiently(
            lambda: str(self.api.create_repo(self.repo_id, private=private, exist_ok=True))
        )
        if private and not self._patiently(lambda: self.api.repo_info(self.repo_id)).private:
            raise public_repository(self.repo_id)
        self.total = sum(item.size for item in items)
        there = self._there([item.name for item in items])
        small = []
        for item in items:
            if _same(item, there.get(item.name)):
                self._tell_end(item, "present")
            elif item.size >= LARGE:
                self._commit([item])
            else:
                small.append(item)
        if small:
            self._commit(small)
        return address

    def _there(self, names: list[str]) -> dict[str, RepoFile]:
        from huggingface_hub.hf_api import RepoFile

        found = self._patiently(lambda: self.api.get_paths_info(self.repo_id, names))
        return {one.path: one for one in found if isinstance(one, RepoFile)}

    def _commit(self, items: Sequence[Item]) -> None:
        detail = items[0].name if len(items) == 1 else f"{len(items)} small files"
        self.tell(PhaseEvent(phase="push", detail=detail, done=self.done, total=self.total))
        names = items[0].name if len(items) == 1 else f"{items[0].name} and {len(items) - 1} more"
        words = f"{self.message}: {names}"
        self._patiently(lambda: self._send(items, words))
        for item in items:
            self._tell_end(item, "uploaded")

    def _send(self, items: Sequence[Item], words: str) -> None:
        from huggingface_hub import CommitOperationAdd

        # Made anew for each attempt: the client marks and changes them.
        files = [
            CommitOperationAdd(one.name, one.source if isinstance(one.source, bytes) else str(one.source))
            for one in items
        ]
        self.api.create_commit(self.repo_id, files, commit_message=words)

    def _tell_end(self, item: Item, how: Literal["uploaded", "present"]) -> None:
        self.done += item.size
        detail = {"repo": self.repo_id, "how": how}
        self.tell(ExportEvent(kind="push", path=item.name, bytes=item.size, detail=detail))

    def _patiently(self, call: Callable[[], Result]) -> Result:
        """``call``'s result; troubles that may pass are waited out a few times. Each call may be repeated:
        what a lost answer had done already is found done."""
        for pause in (*PAUSES, None):
            began = time.monotonic()
            try:
                return call()
            except troubles() as raised:
                error = with_xet(raised, time.monotonic() - began, self.patience)
                if pause is None or not may_pass(error):
                    # Not `from error`: the addresses it names are signed, and a traceback would show them.
                    raise refusal(self.repo_id, error) from None
                seconds = retry_after(error) or pause
                again = f"(the hub is busy or away; again in {seconds:.0f} s)"
                self.tell(PhaseEvent(phase="push", detail=again, done=self.done, total=self.total))
                self.wait(seconds)
        raise AssertionError("the last attempt returns or raises")


def _same(item: Item, there: RepoFile | None) -> bool:
    """Whether the repository's file has the same bytes: by size first, which costs nothing."""
    if there is None or there.size != item.size:
        return False
    if there.lfs is not None:
        return _digest(item, "sha256") == there.lfs.sha256
    return _digest(item, "sha1", b"blob %d\0" % item.size) == there.blob_id


def _digest(item: Item, name: str, head: bytes = b"") -> str:
    digest = hashlib.new(name, head, usedforsecurity=False)
    if isinstance(item.source, bytes):
        digest.update(item.source)
    else:
        with open(item.source, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


@contextmanager
def _quiet() -> Iterator[None]:
    """The client's log lines name signed addresses, and its bars would be drawn over the TUI's screen."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    loggers = [logging.getLogger(name) for name in CHATTY]
    levels = [logger.level for logger in loggers]
    bars = not are_progress_bars_disabled()
    disable_progress_bars()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            enable_progress_bars()
