"""The matrix' cells: which versions, which interpreter, and what their reports count."""

from __future__ import annotations

import sys
from pathlib import Path

from matrix import run
from packaging.requirements import Requirement
from packaging.version import Version


def test_the_ends_of_the_declared_ranges() -> None:
    declared = {name: Requirement(line).specifier for name, line in run.requirements().items()}
    oldest = dict(pin.split("==") for pin in run.pins(run.Cell("3.11", "oldest")))
    assert set(oldest) == set(declared) == {"torch", "transformers", "trl"}
    for name, version in oldest.items():
        assert version in declared[name]
        least = next(one.version for one in declared[name] if one.operator == ">=")
        assert Version(version) == Version(run.WITHOUT_GPU.get(name, least))
    assert run.pins(run.Cell("3.13", "newest")) == list(run.requirements().values())


def test_an_interpreter_is_found_or_not() -> None:
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert run.find_python(here) is not None
    assert run.find_python("2.0") is None
    assert "NOT TRIED" in run.run_cell(run.Cell("2.0", "newest"), Path("nowhere"), keep=False)


def test_a_report_is_counted(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    cases = "<testcase/><testcase/><testcase><failure/></testcase><testcase><error/></testcase>"
    report.write_text(
        f"<testsuites><testsuite>{cases}<testcase><skipped/></testcase></testsuite></testsuites>"
    )
    assert run.count(report) == {"passed": 2, "failed": 2, "skipped": 1}


def test_the_quick_set_is_there() -> None:
    assert [name for name in run.QUICK if not (run.ROOT / name).is_file()] == []
