"""The methods' table of the docs is made of what was measured and planned, and of nothing else."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from whet.engine.recipe import METHODS

sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))
sys.path.insert(1, str(Path(__file__).parents[1] / "benchmarks" / "by_method"))

import cases
import methods_table


def side(rate: float, error: str = "") -> dict[str, Any]:
    return {"rate": rate, "error": error, "peak": 2**30, "fused": "attention 4/4", "library": "TRL"}


def results(**methods: tuple[dict[str, Any], dict[str, Any]]) -> list[dict[str, Any]]:
    told = {
        kind: {"whet": ours, "plain": theirs, "model": "small"} for kind, (ours, theirs) in methods.items()
    }
    return [{"name": "methods-cpu", "device": "cpu", "machine": "a CPU", "methods": told}]


def test_each_method_has_a_line_with_planned_memory_and_its_recipe() -> None:
    lines = [line for line in methods_table.table().splitlines() if line.startswith("| `")]
    assert [line.split("`")[1] for line in lines[1:]] == list(METHODS)
    assert all("GiB" in line for line in lines if line.startswith(("| `sft`", "| `embedding`", "| `reward`")))


def test_each_method_can_be_measured_beside_the_plain_library() -> None:
    assert sorted(cases.CASES) == sorted(METHODS)
    assert all(case.method["kind"] == kind for kind, case in cases.CASES.items())


def test_speed_is_the_ratio_that_was_measured_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods_table, "pages", dict)
    measured = results(reward=(side(30.0), side(20.0)), sft=(side(0.0, "it failed"), side(1.0)))
    assert methods_table.speeds("reward", measured).startswith(
        "1.50 × TRL ([cpu: small](../benchmarks/results/methods-cpu.md); peak 1.0 and 1.0"
    )
    assert methods_table.speeds("sft", measured) == methods_table.speeds("grpo", measured) == "not measured"
    assert methods_table.fused("reward", measured) == "attention 4/4"
    assert methods_table.fused("grpo", measured) == "not measured"


def test_each_method_s_newest_row_is_shown_with_its_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (told,) = results(reward=(side(30.0), side(20.0)), sft=(side(30.0), side(10.0)))
    (later,) = results(reward=(side(40.0), side(20.0)))
    pages = {"methods-cpu-2026-11-29": told, "methods-a-2026-12-01": later}
    for name, held in pages.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({**held, "name": name}), encoding="utf-8")
    monkeypatch.setattr(methods_table, "RESULTS", tmp_path)
    measured = methods_table.newest()
    assert methods_table.speeds("reward", measured).startswith("2.00 × TRL ([cpu: small](")
    assert methods_table.speeds("reward", measured).count("×") == 1
    assert "methods-a-2026-12-01.md" in methods_table.speeds("reward", measured)
    assert "3.00 × TRL ([cpu: small](../benchmarks/results/methods-cpu-2026-11-29.md)" in (
        methods_table.speeds("sft", measured)
    )
    assert all(name in methods_table.sources(measured)[-1] for name in pages)
    (tmp_path / "methods-z-2026-12-02.json").write_text(json.dumps(told), encoding="utf-8")
    assert [page["name"] for page in methods_table.newest()] == ["methods-cpu"]


def test_what_some_methods_had_does_not_take_the_place_of_what_all_had() -> None:
    names = [cases.name_of("cpu", measured, "2026-12-01") for measured in (cases.CASES, ("grpo", "sft"))]
    assert names == ["methods-cpu-2026-12-01", "methods-cpu-grpo-sft-2026-12-01"]
    assert sorted(map(Path, names), key=methods_table.by_day) == [*map(Path, names)]


def test_pages_of_results_are_read_where_whet_stands_beside_the_plain_library(tmp_path: Path) -> None:
    page = tmp_path / "preference-h200-2026-11-29.md"
    page.write_text(
        "## DPO\n\n| stack | tokens/s | peak |\n|---|---|---|\n| whet | 3,000 | 1 |\n| trl | 1,500 | 2 |\n\n"
        "## alone\n\n| stack | tokens/s |\n|---|---|\n| whet | 5 |\n"
    )
    ((kind, beside),) = methods_table.tables_of(page)
    assert (kind, beside.title, beside.library, beside.ratio) == ("preference", "DPO", "TRL", 2.0)
