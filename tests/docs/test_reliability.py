"""The page of what was counted says what the files say, and that the rest was not counted."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from support.counted import here, write_counts

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def reliability() -> ModuleType:
    """docs/reliability.py; a script, so not on the import path."""
    spec = importlib.util.spec_from_file_location("reliability", ROOT / "docs" / "reliability.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["reliability"] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def test_counts_are_written_with_how_they_came_about(tmp_path: Path) -> None:
    counts = {"kills": 1200, "kills survived": 1199}
    path = write_counts("chaos", "make chaos", counts, 61.26, {"ext4": "1.0"}, folder=tmp_path)
    document = json.loads(path.read_text())
    assert document["counts"] == counts and list(document["counts"]) == list(counts)
    assert (document["name"], document["command"], document["seconds"]) == ("chaos", "make chaos", 61.3)
    assert document["versions"] == here() | {"ext4": "1.0"}


@pytest.mark.parametrize("counts", [{}, {"kills": -1}, {"kills": 1.5}, {"kills": True}])
def test_what_is_no_count_is_refused(counts: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="whole numbers"):
        write_counts("chaos", "make chaos", counts, 1.0, folder=tmp_path)
    with pytest.raises(ValueError, match="no name"):
        write_counts("../chaos", "make chaos", {"kills": 1}, 1.0, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_page_tells_what_was_counted_and_what_was_not(reliability: ModuleType, tmp_path: Path) -> None:
    write_counts("chaos", "make chaos", {"kills": 1200, "kills survived": 1199}, 600.0, folder=tmp_path)
    write_counts("fresh", "make fresh", {"tries": 3}, 5.0, folder=tmp_path)
    cell = {"passed": 40, "failed": 0, "skipped": 1}
    write_counts("matrix-3.12-newest", "make matrix", cell, 90.0, {"torch": "9.9.9"}, folder=tmp_path)
    write_counts("matrix-3.11-oldest", "make matrix", cell | {"failed": 1}, 90.0, folder=tmp_path)
    made = reliability.page(reliability.read_results(tmp_path))
    assert "1,200 kills, 1,199 kills survived" in made and "| kills | 1,200 |" in made
    assert "`make chaos`" in made and "10 min" in made
    assert "| [Inputs tried](#inputs-tried) | not counted |" in made
    assert "Not counted: `make fuzz`" in made and "Not counted: `make chaos`" not in made
    assert "## fresh" in made and "| tries | 3 |" in made
    assert "1 of 6 sets of versions, 2 tried" in made
    assert "| 3.12 | newest | 9.9.9 |" in made and made.count("not tried") == 4
