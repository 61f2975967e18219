"""Every promise in SECURITY.md names the tests that hold it, and they are there and counted."""

from __future__ import annotations

import re
from pathlib import Path

from security.suite import ATTACKS

ROOT = Path(__file__).parents[2]


def test_every_promise_names_its_tests() -> None:
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    promised = page.partition("what is promised\n")[2].partition("## What is not promised")[0]
    promises = [one for one in promised.split("\n\n") if one.startswith("**")]
    assert len(promises) == 8
    for promise in promises:
        named = re.findall(r"`(tests/[\w/.]+)`", promise)
        assert named and all((ROOT / file).is_file() for file in named), promise[:80]


def test_what_the_suite_counts_is_there() -> None:
    files = [file.removeprefix("tests/") for names in ATTACKS.values() for file in names]
    assert len(files) > 10 and all((ROOT / "tests" / file).is_file() for file in files)
