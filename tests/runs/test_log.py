"""Pages of a log from its end on."""

from __future__ import annotations

from pathlib import Path

import pytest

from whet.engine.errors import WhetError
from whet.engine.runs import log
from whet.engine.runs.log import read_log


@pytest.fixture(params=[8, 64 << 10])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(log, "BLOCK", request.param)
    return int(request.param)


def write(path: Path, count: int) -> list[str]:
    lines = [f"line {number} {'x' * (number % 23)}" for number in range(count)]
    path.write_text("".join(f"{line}\n" for line in lines))
    return lines


@pytest.mark.usefixtures("block")
def test_pages_from_the_end_on_are_the_whole_log(tmp_path: Path) -> None:
    lines = write(tmp_path / "log", 50)
    read: list[str] = []
    before = None
    while before != 0:
        page = read_log(tmp_path / "log", 7, before)
        assert page.size == (tmp_path / "log").stat().st_size
        read, before = [*page.lines, *read], page.start
    assert read == lines


@pytest.mark.usefixtures("block")
def test_search_finds_lines_in_any_case_and_its_page_goes_on(tmp_path: Path) -> None:
    lines = write(tmp_path / "log", 60)
    wanted = [line for line in lines if line.startswith("line 3")]
    page = read_log(tmp_path / "log", 4, search="LINE 3")
    above = read_log(tmp_path / "log", 100, page.start, search="LINE 3")
    assert page.lines == wanted[-4:] and above.lines == wanted[:-4] and above.start == 0


@pytest.mark.usefixtures("block")
def test_last_line_without_end_and_overwritten_lines(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"first\r\n\n 10%\r 20%\r 30%\nhalf a l")
    assert read_log(tmp_path / "log", 10).lines == ["first", "", " 30%", "half a l"]


def test_a_page_reads_no_more_than_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "SCANNED", 1000)
    write(tmp_path / "log", 2000)
    page = read_log(tmp_path / "log", 1, search="line 0")
    assert page.lines == [] and 1000 <= page.size - page.start < 1100


def test_a_line_without_end_comes_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "BLOCK", 100)
    monkeypatch.setattr(log, "LONGEST_LINE", 300)
    (tmp_path / "log").write_bytes(b"y" * 1000)
    page = read_log(tmp_path / "log", 10)
    assert "".join(page.lines) == "y" * 1000 and len(page.lines) > 1


def test_missing_log_is_empty_and_numbers_out_of_range_are_refused(tmp_path: Path) -> None:
    assert read_log(tmp_path / "log", 5).lines == []
    for arguments in ((0, None), (5, -1)):
        with pytest.raises(WhetError) as caught:
            read_log(tmp_path / "log", *arguments)
        assert caught.value.code == "log.range"
