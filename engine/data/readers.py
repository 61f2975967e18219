"""Readers of one file each: a generator of rows and bad rows that never holds more than a few megabytes."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .json_stream import read_json
from .rows import BadRow, RawRow, preview_of

Row = RawRow | BadRow

MAX_LINE = 8 * 2**20
"""Bytes of the longest line (or document) that is read as a row; longer ones are bad rows."""

_UTF8_BOM = b"\xef\xbb\xbf"
_WIDE_BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
# What a spreadsheet leaves behind when a cell was a formula, or an attack on whoever opens the file.
_FORMULA = re.compile(
    r"=\s*[A-Za-z][A-Za-z0-9.]*\(|=\s*\$?[A-Z]{1,3}\$?\d+\b|[=+@-]\s*cmd\s*\||@[A-Z]+\(.*\)\s*$"
    r"|#(?:REF!|NAME\?|VALUE!|DIV/0!|N/A|NULL!|NUM!)\s*$"
)


def read_jsonl(path: Path) -> Iterator[Row]:
    """One JSON object a line. Blank lines are skipped."""
    name = str(path)
    for line, raw in _lines(path):
        if isinstance(raw, BadRow):
            yield raw
        elif raw.strip():
            yield parse_object(raw, name, line)


def parse_object(raw: str, file: str, line: int) -> Row:
    """One JSON object, or why it is none."""
    try:
        value = json.loads(raw)
    except json.JSONDecodeError as error:
        return BadRow(file, line, f"broken JSON: {error.msg} at column {error.colno}", preview_of(raw))
    except RecursionError:
        return BadRow(file, line, "JSON nested too deeply", preview_of(raw))
    except ValueError as error:  # an integer of thousands of digits
        return BadRow(file, line, f"unusable JSON: {error}", preview_of(raw))
    if not isinstance(value, dict):
        return BadRow(file, line, f"a JSON {type(value).__name__}, expected an object", preview_of(raw))
    return RawRow(file, line, value)


def read_json_file(path: Path) -> Iterator[Row]:
    """A JSON array, ``{"data": [...]}``, or objects one after another, element by element."""
    yield from read_json(path, MAX_LINE, parse_object)


def read_csv(path: Path) -> Iterator[Row]:
    """Comma separated values under a header; tabs by suffix, semicolons where the header has no comma."""
    name = str(path)
    tail = [1]
    rows = csv.reader(_CsvLines(path, tail), delimiter=_delimiter(path), strict=True)
    csv.field_size_limit(MAX_LINE)
    header: list[str] | None = None
    start = 1
    while True:
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield BadRow(name, start, f"broken CSV: {error}")
            start = tail[0] + 1
            continue
        except _BadLine as error:
            yield error.row
            start = tail[0] + 1
            continue
        line, start = start, tail[0] + 1
        if not cells or not any(cells):
            continue
        if header is None:
            header = [cell.strip() for cell in cells]
            continue
        yield _csv_row(name, line, header, cells)


def _delimiter(path: Path) -> str:
    """Spreadsheets write semicolons where the comma divides decimals."""
    if path.suffix == ".tsv":
        return "\t"
    with open(path, "rb") as file:
        header = file.readline(MAX_LINE)
    return ";" if b";" in header and b"," not in header else ","


def _csv_row(name: str, line: int, header: list[str], cells: list[str]) -> Row:
    shown = preview_of(",".join(cells))
    if len(cells) != len(header):
        return BadRow(name, line, f"{len(cells)} cells under a header of {len(header)}", shown)
    for field, cell in zip(header, cells, strict=True):
        if cell[:1] in "=+-@#" and _FORMULA.match(cell):
            return BadRow(name, line, f"field {field!r} is a spreadsheet formula or error", preview_of(cell))
    # An empty cell is a value that is not there: CSV cannot say null.
    return RawRow(name, line, dict(zip(header, cells, strict=True)))


class _BadLine(Exception):
    def __init__(self, row: BadRow) -> None:
        super().__init__(row.reason)
        self.row = row


class _CsvLines:
    """Decoded lines for the csv module; a bad line is raised, and reading may go on after it."""

    def __init__(self, path: Path, tail: list[int]) -> None:
        self._lines = _lines(path, keep_end=True)
        self._tail = tail

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self._tail[0], raw = next(self._lines)
        if isinstance(raw, BadRow):
            raise _BadLine(raw)
        return raw


def read_parquet(path: Path) -> Iterator[Row]:
    """Rows of a Parquet file, a batch at a time; ``line`` is the row number from 1."""
    import pyarrow
    import pyarrow.parquet as parquet

    name = str(path)
    row = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                for value in batch.to_pylist():
                    row += 1
                    yield RawRow(name, row, value)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        yield BadRow(name, row + 1, f"unreadable Parquet from here on: {error}")


def read_text(path: Path) -> Iterator[Row]:
    """A document: the whole file is one row with the field ``text``."""
    name = str(path)
    size = path.stat().st_size
    if size > 16 * MAX_LINE:
        yield BadRow(name, 1, f"a document of {size:,} bytes; the limit is {16 * MAX_LINE:,}. Split the file")
        return
    raw = path.read_bytes().removeprefix(_UTF8_BOM)
    text = _decode(raw, name, 1)
    if isinstance(text, BadRow):
        yield text
    elif text.strip():
        yield RawRow(name, 1, {"text": text})


def _lines(path: Path, keep_end: bool = False) -> Iterator[tuple[int, str | BadRow]]:
    """Numbered lines, decoded; a line that cannot be is a bad row."""
    name = str(path)
    with open(path, "rb") as file:
        start = file.read(3)
        if start[:2] in _WIDE_BOMS:
            kind = _WIDE_BOMS[start[:2]]
            yield 1, BadRow(name, 1, f"the file is {kind}, not UTF-8: iconv -f {kind} -t UTF-8 {path.name}")
            return
        file.seek(3 if start == _UTF8_BOM else 0)
        line = 0
        while raw := file.readline(MAX_LINE + 1):
            line += 1
            if len(raw) > MAX_LINE:
                size = len(raw) + _skip_line(file, raw)
                reason = f"a line of {size:,} bytes; the limit is {MAX_LINE:,}"
                yield line, BadRow(name, line, reason, preview_of(raw[:1000]))
                continue
            text = _decode(raw, name, line)
            yield line, text if keep_end or isinstance(text, BadRow) else text.rstrip("\r\n")


def _skip_line(file: BinaryIO, raw: bytes) -> int:
    """Read to the end of the line in pieces; returns the bytes skipped."""
    skipped = 0
    while raw and not raw.endswith(b"\n"):
        raw = file.readline(MAX_LINE)
        skipped += len(raw)
    return skipped


def _decode(raw: bytes, name: str, line: int) -> str | BadRow:
    if b"\0" in raw:
        at = raw.index(b"\0")
        return BadRow(name, line + raw.count(b"\n", 0, at), f"NUL byte at byte {at + 1}", preview_of(raw))
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        at = error.start
        reason = f"not UTF-8: byte 0x{raw[at]:02x} at byte {at + 1}"
        reason += f" (perhaps Windows-1252: iconv -f WINDOWS-1252 -t UTF-8 {Path(name).name})"
        return BadRow(name, line + raw.count(b"\n", 0, at), reason, preview_of(raw))


READERS: dict[str, Callable[[Path], Iterator[Any]]] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json_file,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
    ".txt": read_text,
    ".md": read_text,
}
"""Reader by file suffix."""
