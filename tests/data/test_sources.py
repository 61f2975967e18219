"""Every kind of file gives its rows; whatever cannot be one is reported by file and line."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from whet.engine.data import json_stream, readers
from whet.engine.data.rows import BadRow, RawRow
from whet.engine.data.sources import iter_rows, source_digest
from whet.engine.errors import WhetError
from whet.engine.recipe import DataSection

SECTION = DataSection(train="x")
ROWS = [{"text": f"row {number} – ü 👍"} for number in range(5)]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WHET_OFFLINE", "1")


def read(path: Path, section: DataSection = SECTION) -> tuple[list[RawRow], list[BadRow]]:
    rows = list(iter_rows(str(path), section))
    return [row for row in rows if isinstance(row, RawRow)], [row for row in rows if isinstance(row, BadRow)]


def written(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def test_jsonl(tmp_path: Path) -> None:
    good, bad = read(written(tmp_path / "a.jsonl", "\n" + lines(ROWS)))
    assert [row.value for row in good] == ROWS and not bad
    assert [row.line for row in good] == [2, 3, 4, 5, 6]


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_a_byte_order_mark_and_windows_lines_are_fine(tmp_path: Path, line_end: bytes) -> None:
    content = b"\xef\xbb\xbf" + lines(ROWS).encode().replace(b"\n", line_end)
    good, bad = read(written(tmp_path / "a.jsonl", content))
    assert [row.value for row in good] == ROWS and not bad


def test_bad_lines_are_named_and_the_others_read(tmp_path: Path) -> None:
    content = b"\n".join(
        [
            b'{"text": "one"}',
            b'{"text": "broken"',
            b'{"text": "caf\xe9"}',
            b'{"text": "nul\x00"}',
            b"[1, 2]",
            b"null",
            b'{"text": "' + b"x" * (10 * 2**20) + b'"}',
            b"[" * 100_000,
            b'{"n": ' + b"1" * 5000 + b"}",
            b'{"text": "last"}',
        ]
    )
    path = written(tmp_path / "bad.jsonl", content)
    good, bad = read(path)
    assert [(row.line, row.value["text"]) for row in good] == [(1, "one"), (10, "last")]
    assert [row.line for row in bad] == [2, 3, 4, 5, 6, 7, 8, 9]
    assert {row.file for row in bad} == {str(path)}
    reasons = [row.reason for row in bad]
    assert "broken JSON" in reasons[0] and "column" in reasons[0]
    assert "not UTF-8" in reasons[1] and "0xe9" in reasons[1]
    assert "NUL byte" in reasons[2]
    assert "list" in reasons[3] and "NoneType" in reasons[4]
    assert "10,485,773 bytes" in reasons[5]
    assert "deep" in reasons[6] or "broken" in reasons[6]
    assert all(len(row.preview) <= 120 and row.preview.isprintable() for row in bad)


def test_wide_encodings_are_named(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", lines(ROWS).encode("utf-16"))
    good, bad = read(path)
    assert not good and len(bad) == 1 and "UTF-16" in bad[0].reason and "iconv" in bad[0].reason


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    for suffix in (".jsonl", ".json", ".csv", ".txt"):
        assert read(written(tmp_path / f"empty{suffix}", "")) == ([], [])


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(
    "wrap",
    [lambda rows: rows, lambda rows: {"data": rows}, lambda rows: {"version": "1", "n": 3, "rows": rows}],
)
def test_json_arrays_and_wrappers(tmp_path: Path, wrap: Any, indent: int | None) -> None:
    tricky = [
        *ROWS,
        {"text": 'braces ]}{[ , "quoted\\" and \\\\'},
        {"messages": [{"role": "user", "content": "a"}]},
    ]
    good, bad = read(written(tmp_path / "a.json", json.dumps(wrap(tricky), indent=indent)))
    assert [row.value for row in good] == tricky and not bad


def test_json_lines_under_the_name_json(tmp_path: Path) -> None:
    good, bad = read(written(tmp_path / "a.json", lines(ROWS)))
    assert [row.value for row in good] == ROWS and [row.line for row in good] == [1, 2, 3, 4, 5] and not bad


def test_one_object_is_one_row(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "a"}]}
    good, bad = read(written(tmp_path / "a.json", json.dumps(row, indent=1)))
    assert [one.value for one in good] == [row] and not bad


def test_a_broken_element_does_not_end_the_array(tmp_path: Path) -> None:
    good, bad = read(written(tmp_path / "a.json", '[\n{"text": "a"},\n{"text": oops},\n3,\n{"text": "b"}\n]'))
    assert [(row.line, row.value["text"]) for row in good] == [(2, "a"), (5, "b")]
    assert [row.line for row in bad] == [3, 4]


@pytest.mark.parametrize(
    "content", ['[{"text": "a"}, {"text": "b', '[{"text": "a"}, {"text": "b"', '[{"text": "a"},']
)
def test_a_file_that_ends_too_early(tmp_path: Path, content: str) -> None:
    good, bad = read(written(tmp_path / "a.json", content))
    assert [row.value for row in good] == [{"text": "a"}]
    assert len(bad) == 1 and "ends" in bad[0].reason


def test_json_that_is_not_utf8(tmp_path: Path) -> None:
    _, bad = read(written(tmp_path / "a.json", b'[{"text": "caf\xe9"}]'))
    assert len(bad) == 1 and "not UTF-8" in bad[0].reason


def test_streaming_equals_reading_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever falls on the border between two chunks: strings, escapes, brackets."""
    draw = random.Random(3)
    letters = '"\\{}[],: \nabü'
    rows = [
        {
            "k": "".join(draw.choice(letters) for _ in range(draw.randint(0, 30))),
            "n": [draw.random(), {"x": None}],
        }
        for _ in range(60)
    ]
    path = written(tmp_path / "a.json", json.dumps(rows, indent=1, ensure_ascii=False))
    for chunk in (1, 2, 3, 7, 64):
        monkeypatch.setattr(json_stream, "CHUNK", chunk)
        good, bad = read(path)
        assert [row.value for row in good] == rows and not bad


def test_an_endless_element_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_LINE", 10_000)
    monkeypatch.setattr(json_stream, "CHUNK", 1000)
    content = '[{"text": "a"}, {"text": "' + "x" * 100_000 + '"}]'
    good, bad = read(written(tmp_path / "a.json", content))
    assert len(good) == 1 and len(bad) == 1 and "10,000 characters" in bad[0].reason


def test_csv(tmp_path: Path) -> None:
    content = 'instruction,output\r\n"Say, ""hi""","two\nlines"\r\nb,c\r\n'
    good, bad = read(written(tmp_path / "a.csv", content))
    assert [row.value for row in good] == [
        {"instruction": 'Say, "hi"', "output": "two\nlines"},
        {"instruction": "b", "output": "c"},
    ]
    assert [row.line for row in good] == [2, 4] and not bad


def test_csv_of_a_spreadsheet_that_writes_semicolons(tmp_path: Path) -> None:
    good, bad = read(written(tmp_path / "a.csv", "prompt;completion\nHalf of 3,0?;1,5\n"))
    assert [row.value for row in good] == [{"prompt": "Half of 3,0?", "completion": "1,5"}] and not bad
    good, bad = read(written(tmp_path / "b.csv", "prompt,completion\na;b,c\n"))
    assert [row.value for row in good] == [{"prompt": "a;b", "completion": "c"}] and not bad


def test_bad_csv_rows(tmp_path: Path) -> None:
    content = (
        b"instruction,output\n"
        b"a,b\n"
        b"=SUM(A1:A9),b\n"
        b'a,=HYPERLINK("http://x")\n'
        b"a,#REF!\n"
        b"=cmd|' /C calc'!A0,b\n"
        b"a\n"
        b"a,b,c\n"
        b"caf\xe9,b\n"
        b"- a list,=> an arrow\n"
        b"+1 to that,@someone said so\n"
    )
    good, bad = read(written(tmp_path / "a.csv", content))
    assert [row.line for row in good] == [2, 10, 11]
    assert [row.line for row in bad] == [3, 4, 5, 6, 7, 8, 9]
    assert all("formula" in row.reason for row in bad[:4])
    assert "1 cells under a header of 2" in bad[4].reason and "not UTF-8" in bad[6].reason


def test_tab_separated(tmp_path: Path) -> None:
    good, _ = read(written(tmp_path / "a.tsv", "prompt\tcompletion\na, b\tc\n"))
    assert [row.value for row in good] == [{"prompt": "a, b", "completion": "c"}]


def test_parquet(tmp_path: Path) -> None:
    parquet.write_table(pa.Table.from_pylist(ROWS * 500), tmp_path / "a.parquet")
    good, bad = read(tmp_path / "a.parquet")
    assert [row.value for row in good] == ROWS * 500 and good[-1].line == 2500 and not bad
    good, bad = read(written(tmp_path / "b.parquet", b"PAR1 not really"))
    assert not good and len(bad) == 1 and "Parquet" in bad[0].reason


def test_a_text_file_is_one_row(tmp_path: Path) -> None:
    good, bad = read(written(tmp_path / "a.md", "# Title\n\nA paragraph.\n\nAnother."))
    assert [row.value for row in good] == [{"text": "# Title\n\nA paragraph.\n\nAnother."}] and not bad
    _, bad = read(written(tmp_path / "b.txt", b"line one\nnul \x00 here"))
    assert [(row.line, "NUL" in row.reason) for row in bad] == [(2, True)]


def test_a_folder_is_its_files_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    written(folder / "b.jsonl", lines(ROWS[2:4]))
    written(folder / "a.jsonl", lines(ROWS[:2]))
    written(folder / "deep" / "c.json", json.dumps(ROWS[4:]))
    written(folder / ".hidden" / "d.jsonl", lines(ROWS))
    written(folder / "notes.xyz", "no data")
    good, bad = read(folder)
    assert [row.value for row in good] == ROWS and not bad


def test_at_most_max_rows(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", lines(ROWS))
    assert len(read(path, DataSection(train="x", max_rows=2))[0]) == 2


def test_the_demo_has_its_own_data() -> None:
    train = list(iter_rows("demo", SECTION))
    held_out = list(iter_rows("demo", SECTION, "eval"))
    assert len(train) >= 300 and len(held_out) >= 30
    assert all(isinstance(row, RawRow) for row in [*train, *held_out])


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    path = written(tmp_path / "conversations.jsonl", lines(ROWS))
    with pytest.raises(WhetError, match="There is no data") as error:
        read(path.with_name("conversation.jsonl"))
    assert error.value.code == "data.not_found" and "conversations.jsonl" in error.value.hint


def test_a_hub_id_offline_names_the_flag(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    with pytest.raises(WhetError, match="someone/something") as error:
        list(iter_rows("someone/something", SECTION))
    assert error.value.code == "data.not_found"
    assert "WHET_OFFLINE" in error.value.hint and "HF_HUB_OFFLINE" in error.value.hint


def test_unknown_suffix_and_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(WhetError, match="suffix") as error:
        read(written(tmp_path / "a.xlsx", b"PK"))
    assert error.value.code == "data.suffix" and ".jsonl" in error.value.hint
    (tmp_path / "none").mkdir()
    with pytest.raises(WhetError, match="no data file") as error:
        read(tmp_path / "none")
    assert error.value.code == "data.empty_folder"


def test_the_digest_follows_the_content(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", lines(ROWS))
    first = source_digest(str(path), SECTION)
    assert source_digest(str(path), SECTION) == first
    path.write_text(lines(ROWS).replace("row 1", "row 9"))
    changed = source_digest(str(path), SECTION)
    assert changed != first
    path.write_text(lines(ROWS))
    assert source_digest(str(path), SECTION) == first


def test_a_hub_id_without_a_network_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WHET_OFFLINE")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))

    def refuse(*args: object, **names: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", refuse)
    with pytest.raises(WhetError, match="someone/something") as error:
        list(iter_rows("someone/something", SECTION))
    assert error.value.code == "data.not_found" and "network" in error.value.hint


def test_a_cached_hub_set_is_known_by_its_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    reference = tmp_path / "hub" / "hub" / "datasets--someone--something" / "refs" / "main"
    written(reference, "c0ffee")
    first = source_digest("someone/something", SECTION)
    written(reference, "decade")
    assert source_digest("someone/something", SECTION) != first


class Hub:
    """In the place of a data set's builder."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self.asked = asked
        self.config = datasets.BuilderConfig(data_files=None)

    def download_and_prepare(self, **options: Any) -> None:
        self.asked.update(options)

    def as_dataset(self, split: str) -> datasets.Dataset:
        self.asked["split"] = split
        return datasets.Dataset.from_list(ROWS)


def test_rows_of_a_hub_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, Any] = {}

    def load(path: str, **options: Any) -> Hub:
        asked.update(options, path=path)
        return Hub(asked)

    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    written(tmp_path / "hub" / "hub" / "datasets--someone--something" / "refs" / "v2", "c0ffee")
    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    section = DataSection(train="x", split="dev", subset="en", revision="v2", max_rows=3)
    rows = list(iter_rows("someone/something", section))
    assert [row.value for row in rows if isinstance(row, RawRow)] == ROWS[:3] and rows[2].line == 3
    assert (asked["path"], asked["name"], asked["split"], asked["revision"]) == (
        *("someone/something", "en"),
        *("dev", "v2"),
    )
    assert asked["download_config"].local_files_only
    with pytest.raises(WhetError, match="cannot be streamed offline"):
        list(iter_rows("someone/something", section.model_copy(update={"streaming": True})))
