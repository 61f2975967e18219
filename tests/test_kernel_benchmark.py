"""The kernel benchmark: its table, and that a kernel that fails costs only its own rows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# The benchmark with two kernels of the registry broken, at the size of a parity case.
FAULTY = f"""
import dataclasses, importlib.util, os, sys
from whet.kernels.registry import SPECS

def dies(**inputs): os._exit(9)
def raises(**inputs): raise ValueError("no such shape")

whole = SPECS["gelu"]
small = dataclasses.replace(whole, timed=whole.cases[:1])
SPECS.clear()
SPECS["dies"] = dataclasses.replace(small, name="dies", operation=dies)
SPECS["raises"] = dataclasses.replace(small, name="raises", operation=raises)
SPECS["gelu"] = small

path = {str(ROOT / "benchmarks" / "kernels.py")!r}
where = importlib.util.spec_from_file_location("kernel_benchmark", path)
benchmark = sys.modules["kernel_benchmark"] = importlib.util.module_from_spec(where)
where.loader.exec_module(benchmark)
if __name__ == "__main__":
    sys.exit(benchmark.main())
"""


def benchmark(script: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT / "src")
    return subprocess.run(
        [sys.executable, "-P", str(script), "--device", "cpu", "--seconds", "0.001", *words],
        capture_output=True,
        text=True,
        env=environment,
        timeout=240,
    )


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line[:1] == "|"]


def test_a_kernel_that_dies_or_raises_costs_its_own_rows(tmp_path: Path) -> None:
    (tmp_path / "faulty.py").write_text(FAULTY, encoding="utf-8")
    done = benchmark(
        tmp_path / "faulty.py",
        "--rivals",
        "plain",
        "--dtype",
        "float32",
        "--out",
        str(tmp_path / "made/out.md"),
    )
    assert done.returncode == 1, done.stderr
    written = (tmp_path / "made" / "out.md").read_text(encoding="utf-8")
    assert written.strip() == done.stdout.strip()
    head, _, *rows = cells(written)
    by_kernel = {name: [dict(zip(head, row, strict=True)) for row in rows if row[0] == name] for name in
                 ("dies", "raises", "gelu")}  # fmt: skip
    assert by_kernel["dies"][0]["ms"] == "its process ended with code 9"
    assert {row["ms"] for row in by_kernel["raises"]} == {"ValueError: no such shape"}
    assert all(float(row["plain"].split()[0]) > 0 for row in by_kernel["raises"])
    assert [row["pass"] for row in by_kernel["gelu"]] == ["forward", "backward", "both"]
    for row in by_kernel["gelu"]:
        assert float(row["ms"]) > 0 and row["rate"].endswith("GB/s") and row["of ceiling"].endswith("%")
        assert float(row["plain"].split()[0]) > 0 and row["plain"].endswith("×)")
    assert float(by_kernel["gelu"][0]["vs plain"]) < 1e-5
    assert "torch" in written and "Ceilings measured in this run: copy" in written


@pytest.mark.parametrize("words", [("--kernels", "no_such"), ("--dtype", "int8")])
def test_unknown_words_are_refused(words: tuple[str, ...]) -> None:
    done = benchmark(ROOT / "benchmarks" / "kernels.py", *words)
    assert done.returncode == 2 and words[1] in done.stderr
