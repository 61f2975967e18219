"""A JSON file's elements one at a time, however long the file is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from .rows import BadRow, RawRow, preview_of

Row = RawRow | BadRow

CHUNK = 2**18
WRAPPERS = ("data", "rows", "train", "examples", "instances", "items")
"""Names under which an object holds its list of rows."""

# A string is one token, so that brackets and commas in it do not count; an unfinished one ends at the
# buffer's end.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[\[\]{},]', re.DOTALL)
_WRAPPED = re.compile(r'\s*\{\s*(?:"[^"]*"\s*:\s*(?:"[^"]*"|[\w.+-]+)\s*,\s*)*"(\w+)"\s*:\s*\[')


def read_json(path: Path, limit: int, parse: Callable[[str, str, int], Row]) -> Iterator[Row]:
    """Elements of a top-level array, of ``{"data": [...]}``, or of objects one after another.

    Args:
        path: a UTF-8 file.
        limit: characters of the longest element; a longer one ends the reading as a bad row.
        parse: makes a row of (text, file, line); a broken element does not end the reading.
    """
    name = str(path)
    try:
        with open(path, encoding="utf-8-sig") as file:
            scanner = _Scanner(file.read, name, limit, parse)
            yield from scanner.rows()
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        reason = f"not UTF-8 after line {scanner.line}: byte 0x{byte:02x}; the rest is unread"
        yield BadRow(name, scanner.line, reason)


class _Scanner:
    """Finds where elements begin and end by counting brackets, in a buffer that holds one element."""

    def __init__(
        self, read: Callable[[int], str], name: str, limit: int, parse: Callable[[str, str, int], Row]
    ) -> None:
        self._read, self._name, self._limit, self._parse = read, name, limit, parse
        self.line = 1
        self._buffer = ""
        self._at = 0  # scanned so far
        self._done = False

    def rows(self) -> Iterator[Row]:
        self._fill()
        if not self._buffer.strip():
            return
        opening = self._opening()
        if opening is None:
            yield from self._elements(depth=0)
            return
        self._drop(opening)
        yield from self._elements(depth=1)

    def _opening(self) -> int | None:
        """Characters up to and with the bracket that opens the list of rows; None for objects in sequence."""
        text = self._buffer
        start = len(text) - len(text.lstrip())
        if text.startswith("[", start):
            return start + 1
        wrapped = _WRAPPED.match(text)
        return wrapped.end() if wrapped and wrapped[1] in WRAPPERS else None

    def _elements(self, depth: int) -> Iterator[Row]:
        """Elements at ``depth`` open brackets: 1 within a list, 0 for objects in sequence."""
        inner = 0
        while (token := self._next_token()) is not None:
            if token in "[{":
                inner += 1
            elif token in "]}":
                inner -= 1
                if inner < 0:
                    yield from self._element(self._at - 1)
                    return  # the list's end; whatever follows it holds no rows
                if inner == 0 and depth == 0:
                    yield from self._element(self._at)
            elif token == "," and inner == 0:
                yield from self._element(self._at - 1, skip=1)
        blank = not self._buffer.strip()
        if not self._done:
            reason = f"an element beyond {self._limit:,} characters, or an open string; the rest is unread"
        elif not blank:
            reason = "broken JSON: the file ends within an element or before its list is closed"
        elif depth:
            reason = "broken JSON: the file ends before its list is closed"
        else:
            return
        yield BadRow(self._name, self._first_line(), reason, preview_of(self._buffer[:1000]))

    def _element(self, end: int, skip: int = 0) -> Iterator[Row]:
        text = self._buffer[:end]
        line = self._first_line()
        self._drop(end + skip)
        if text.strip():
            yield self._parse(text.strip(), self._name, line)

    def _next_token(self) -> str | None:
        """The next bracket, comma or whole string, or None at the end of the file."""
        while True:
            match = _TOKEN.search(self._buffer, self._at)
            whole = match is not None and (match[0][0] != '"' or (len(match[0]) > 1 and match[0][-1] == '"'))
            if len(self._buffer) > self._limit and (match is None or match.end() > self._limit):
                return None
            if match is not None and whole and not self._split_escape(match):
                self._at = match.end()
                return match[0] if match[0][0] != '"' else '"'
            self._at = match.start() if match is not None else len(self._buffer)
            if self._done:
                return None
            self._fill()

    @staticmethod
    def _split_escape(match: re.Match[str]) -> bool:
        """The closing quote is really an escaped one: the buffer ended right after it."""
        backslashes = len(match[0]) - 1 - len(match[0][:-1].rstrip("\\"))
        return match[0][0] == '"' and len(match[0]) > 1 and backslashes % 2 == 1

    def _fill(self) -> None:
        more = self._read(max(CHUNK, len(self._buffer)))
        self._done = not more
        self._buffer += more

    def _first_line(self) -> int:
        blank = len(self._buffer) - len(self._buffer.lstrip())
        return self.line + self._buffer.count("\n", 0, blank)

    def _drop(self, end: int) -> None:
        self.line += self._buffer.count("\n", 0, end)
        self._buffer = self._buffer[end:]
        self._at = 0
