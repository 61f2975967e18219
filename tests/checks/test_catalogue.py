"""Every id has its words, and the page made of them is today's."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.command_line import whet

from whet.engine.checks.catalogue import CATALOGUE
from whet.engine.checks.catalogue.search import find_entry
from whet.engine.errors import WhetError
from whet.engine.findings import Finding

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"


@pytest.mark.parametrize("id", sorted(CATALOGUE))
def test_entries_say_all_four_things(id: str) -> None:
    entry = CATALOGUE[id]
    assert entry.id == id and entry.title and not entry.title.endswith(".")
    assert all(len(words) > 40 for words in (entry.symptom, entry.seen, entry.why, entry.fix))


def test_the_page_is_todays_and_links_lead_somewhere() -> None:
    command = [sys.executable, "-P", str(ROOT / "docs" / "troubleshooting.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = PAGE.read_text(encoding="utf-8")
    anchors = re.findall(r'<a id="(\w+)"></a>', text)
    assert sorted(anchors) == sorted(id.lower() for id in CATALOGUE)
    assert set(re.findall(r"\(#(\w+)\)", text)) <= set(anchors)
    link = Finding(id="X01", severity="note", title="Any.").link
    assert link.partition("#")[0] == "docs/troubleshooting.md" and link.partition("#")[2] in anchors


def test_explain_finds_ids_as_people_type_them() -> None:
    assert find_entry("x1") is find_entry(" X01 ") is CATALOGUE["X01"]
    with pytest.raises(WhetError, match="no finding's id") as error:
        find_entry("X99")
    assert error.value.code == "explain.unknown_id" and "X0" in error.value.hint
    with pytest.raises(WhetError) as error:
        find_entry("modelfile")
    assert "X05" in error.value.hint
    with pytest.raises(WhetError) as error:
        find_entry("loss is 0")
    assert error.value.hint.startswith("Did you mean D01")
    with pytest.raises(WhetError) as error:
        find_entry("zzzzzz")
    assert "whet explain" in error.value.hint


def test_explain_prints_an_entry_and_the_list() -> None:
    answer = whet("explain", "X05")
    assert answer.code == 0 and CATALOGUE["X05"].title in answer.out
    assert "docs/troubleshooting.md#x05" in answer.out
    assert whet("explain", "X05", "--json").json["why"] == CATALOGUE["X05"].why
    assert list(whet("explain", "--json").json) == list(CATALOGUE)
    assert "X05" in whet("explain").out
    assert whet("explain", "Y05", "--json").json["error"]["code"] == "explain.unknown_id"
