"""One ssh process whose remote command is whet: its lines as they come, and why it ended."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

from ..errors import WhetError
from ..printable import printable
from .address import RemoteRun

LONGEST = 32 << 20  # bytes of a line; an event is a few KB, an answer in it may be more
NOT_EXECUTABLE, NOT_FOUND = 126, 127  # by which shells and env say that there is no such program
SSH_FAILED = 255
END_SECONDS = 5.0


class Session:
    """A running command on the other side. :meth:`documents` yields what it prints, until it ends."""

    def __init__(self, place: RemoteRun, process: subprocess.Popen[bytes], said: IO[bytes]) -> None:
        self.place = place
        self._process = process
        self._said = said

    def documents(self) -> Iterator[Any]:
        """JSON objects and lists, one a line. Others are a login script's; half a line is torn off.

        Raises WhetError with the code of an error that the other side's whet reports, and ``remote.strange``.
        """
        assert self._process.stdout is not None
        while line := self._process.stdout.readline(LONGEST):
            if not line.endswith(b"\n"):
                if len(line) < LONGEST:
                    return
                raise WhetError(
                    "remote.strange",
                    f"{self.place.host} sent a line without an end.",
                    f"See what answers there: {self.place.typed('runs', '--json')}",
                )
            document = _json(line)
            error = document.get("error") if isinstance(document, dict) else None
            if isinstance(error, dict):
                words = {part: str(error.get(part, "")) for part in ("code", "message", "hint")}
                raise WhetError(words["code"], f"On {self.place.host}: {words['message']}", words["hint"])
            if document is not None:
                yield document

    def ended(self) -> int:
        """The exit code once all is read; ssh's own failures are 255. Waits no longer than a few seconds."""
        try:
            return self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            return SSH_FAILED

    def last_words(self) -> str:
        """The last line that ssh or the other side said on stderr."""
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").split("\n")
        return printable(next((line.strip() for line in reversed(lines) if line.strip()), ""))[:300]

    def close(self) -> None:
        """End ssh; what runs on the other side for the run itself is not touched."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def _json(line: bytes) -> Any:
    """An object or a list; None for any other line."""
    if not line.startswith((b"{", b"[")):
        return None
    try:
        return json.loads(line)
    except ValueError:
        return None


@contextmanager
def session(place: RemoteRun, words: Sequence[str], batch: bool) -> Iterator[Session]:
    """Run whet's ``words`` on the other side; ssh is ended on leaving.

    ssh asks on the terminal by itself where ``batch`` is false. Raises WhetError ``remote.no_ssh``.
    """
    program = shutil.which("ssh")
    if program is None:
        raise WhetError(
            "remote.no_ssh", "There is no ssh on the PATH.", "Install it: apt install openssh-client"
        )
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            place.ssh(place.command(*words), batch, program),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
        )
        opened = Session(place, process, said)
        try:
            yield opened
        finally:
            opened.close()


def refuse_without_whet(ended: Session, code: int) -> None:
    """Raise WhetError ``remote.no_whet`` for an end that means there is no such program."""
    if code not in (NOT_EXECUTABLE, NOT_FOUND):
        return
    place = ended.place
    raise WhetError(
        "remote.no_whet",
        f"{place.host} has no program {place.whet!r}: {ended.last_words() or f'exit code {code}'}",
        "A shell without a terminal reads no venv; say where it is: "
        f"{place.address}?whet=/path/to/.venv/bin/whet",
    )


def unreachable(ended: Session, code: int) -> WhetError:
    """``remote.unreachable``: ssh ended before the other side's whet said anything."""
    place = ended.place
    return WhetError(
        "remote.unreachable",
        f"ssh to {place.host} ended with {code}: {ended.last_words() or 'it gave no reason'}",
        f"Try it by hand: {place.typed('runs')}",
    )
