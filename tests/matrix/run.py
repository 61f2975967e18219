"""The compatibility matrix: each Python with the oldest and the newest versions that pyproject.toml allows.

python -P tests/matrix/run.py --wheels FOLDER [CELL]...      e.g. 3.12-newest; by default all six

A cell is a virtual environment of its own under build/matrix, torch first, with the committed tree; the quick
set of tests runs in it, what it counted goes to docs/reliability.md's files, and the environment is removed
(4 to 8 GB with a CUDA build of torch; `--keep` leaves it, TORCH_INDEX chooses another build).
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from support.counted import PACKAGES, RESULTS, write_counts  # noqa: E402

FOLDER = ROOT / "build" / "matrix"
PYTHONS = ("3.11", "3.12", "3.13")
ENDS = ("oldest", "newest")
QUICK = (
    "tests/test_import_hygiene.py",  # what may be loaded when
    "tests/test_recipe.py",
    "tests/test_plan.py",
    "tests/methods/test_sft_job.py",
    "tests/methods/test_fast_training.py",  # the fast path beside the plain one
    "tests/models/test_capped_attention.py",  # Gemma 2 computes as it should in every version
    "tests/methods/test_preference_job.py",
    "tests/methods/test_embedding_job.py",
    "tests/export/test_pipeline.py",  # merge, GGUF, proof
)
WITHOUT_GPU = {"trl": "1.16.0"}
"""Oldest versions that train without a GPU, where that is later: finding E01 refuses TRL 1.15 there."""
SECONDS = 3600  # for one cell's tests


@dataclass(frozen=True)
class Cell:
    """One Python and one end of the declared ranges."""

    python: str
    end: str

    @property
    def name(self) -> str:
        return f"{self.python}-{self.end}"

    @property
    def folder(self) -> Path:
        return FOLDER / self.name

    @property
    def interpreter(self) -> Path:
        """The environment's own."""
        return self.folder / "venv" / "bin" / "python"

    @property
    def tree(self) -> Path:
        return self.folder / "tree"


def requirements() -> dict[str, str]:
    """What pyproject.toml asks of the packages of the matrix, e.g. torch: torch>=2.11,<2.15."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    by_name = {re.split(r"[<>=; ]", line)[0]: line for line in declared}
    return {package: by_name[package] for package in PACKAGES}


def pins(cell: Cell) -> list[str]:
    """Constraints: the lower ends of the ranges, or the ranges, whose upper ends an installer takes."""
    declared = requirements()
    if cell.end == "newest":
        return list(declared.values())
    lowest = {package: re.search(r">=([0-9.]+)", line) for package, line in declared.items()}
    missing = [package for package, found in lowest.items() if found is None]
    assert not missing, f"pyproject.toml declares no oldest {missing}"
    oldest = {package: _three_parts(found[1]) for package, found in lowest.items() if found}
    return [f"{package}=={version}" for package, version in (oldest | WITHOUT_GPU).items()]


def _three_parts(version: str) -> str:
    return version if version.count(".") >= 2 else f"{version}.0"


def find_python(version: str) -> str | None:
    """An interpreter of that version: from the PATH, or one that pyenv holds."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [f"python{version}", *map(str, sorted(pyenv.glob(f"{version}.*/bin/python")))]
    for candidate in candidates:
        program = shutil.which(candidate)
        if program is None:
            continue
        code = "import sys; print('%d.%d' % sys.version_info[:2])"
        asked = subprocess.run([program, "-c", code], capture_output=True, text=True, check=False)
        if asked.stdout.strip() == version:
            return program
    return None


def install(cell: Cell, python: str, wheels: Path) -> str:
    """Make the environment; returns its commit. CalledProcessError where versions do not go together."""
    shutil.rmtree(cell.folder, ignore_errors=True)
    cell.tree.mkdir(parents=True)
    head = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(head, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x", "-C", str(cell.tree)], input=archive, check=True)
    constraints = cell.folder / "constraints.txt"
    constraints.write_text("\n".join(pins(cell)) + "\n", encoding="utf-8")
    subprocess.run([python, "-m", "venv", str(cell.folder / "venv")], check=True)
    pip = [str(cell.interpreter), "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    bound = ["-c", str(constraints)]
    (llama,) = wheels.glob("llama_cpp_python-*.whl")
    index = shlex.split(os.environ.get("TORCH_INDEX", ""))
    subprocess.run([*pip, *bound, *index, "torch"], check=True)
    subprocess.run([*pip, "--no-deps", str(llama)], check=True)
    subprocess.run([*pip, *bound, "-e", ".[dev]"], cwd=cell.tree, check=True)
    subprocess.run([str(cell.interpreter), "-m", "pip", "check"], check=True)
    return commit


def versions(cell: Cell) -> dict[str, str]:
    """What was installed."""
    code = "import platform, sys; from importlib.metadata import version; print(platform.python_version(), "
    code += "*map(version, sys.argv[1:]))"
    words = [str(cell.interpreter), "-c", code, *PACKAGES]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    return dict(zip(("Python", *PACKAGES), said, strict=True))


def test(cell: Cell) -> dict[str, int]:
    """Run the quick set in the cell; how many tests passed, failed and were skipped."""
    report = cell.folder / "report.xml"
    words = [
        str(cell.interpreter), "-P", "-m", "pytest", "-q", "-m", "not gpu and not slow", "--durations", "5",
        f"--junitxml={report}", *QUICK,
    ]  # fmt: skip
    own = {"WHET_HOME": str(cell.folder / "home"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    left_out = ("PYTHONPATH", "VIRTUAL_ENV", "PYENV_VERSION")
    environment = {name: value for name, value in os.environ.items() if name not in left_out} | own
    ended = subprocess.run(words, cwd=cell.tree, env=environment, timeout=SECONDS, check=False)
    if not report.is_file():
        raise subprocess.CalledProcessError(ended.returncode, words)
    return count(report)


def count(report: Path) -> dict[str, int]:
    """The counts of a JUnit report."""
    found = Counter(_outcome(case) for case in ElementTree.parse(report).getroot().iter("testcase"))
    return {what: found[what] for what in ("passed", "failed", "skipped")}


def _outcome(case: ElementTree.Element) -> str:
    tags = {child.tag for child in case}
    return "failed" if tags & {"failure", "error"} else "skipped" if "skipped" in tags else "passed"


def run_cell(cell: Cell, wheels: Path, keep: bool) -> str:
    """One cell from nothing to its file of counts; what is to be said of it."""
    python = find_python(cell.python)
    if python is None:
        return f"{cell.name}: NOT TRIED, there is no Python {cell.python} here"
    began = time.monotonic()
    (RESULTS / f"matrix-{cell.name}.json").unlink(missing_ok=True)  # of an older tree
    try:
        commit = install(cell, python, wheels)
        counts = test(cell)
        seconds, found = time.monotonic() - began, versions(cell) | {"whet": commit}
        write_counts(f"matrix-{cell.name}", f"make matrix CELLS={cell.name}", counts, seconds, found)
    except subprocess.CalledProcessError as error:
        return f"{cell.name}: FAILED, {shlex.join(map(str, error.cmd))} ended with {error.returncode}"
    except subprocess.TimeoutExpired:
        return f"{cell.name}: FAILED, its tests took more than {SECONDS} s"
    finally:
        if not keep:
            shutil.rmtree(cell.folder, ignore_errors=True)
    verdict = "FAILED" if counts["failed"] or not counts["passed"] else "passed"
    return f"{cell.name}: {verdict}, {counts}"


def main() -> int:
    """Run the cells one after the other; 1 where one was not tried or failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    every = [Cell(python, end) for python in PYTHONS for end in ENDS]
    parser.add_argument("cells", nargs="*", metavar="CELL", help=", ".join(cell.name for cell in every))
    parser.add_argument("--wheels", type=Path, required=True, help="folder with llama-cpp-python's wheel")
    parser.add_argument("--keep", action="store_true", help="leave the environments")
    asked = parser.parse_args()
    unknown = set(asked.cells) - {cell.name for cell in every}
    if unknown:
        parser.error(f"no such cell: {', '.join(sorted(unknown))}")
    chosen = [cell for cell in every if not asked.cells or cell.name in asked.cells]
    said = [run_cell(cell, asked.wheels, asked.keep) for cell in chosen]
    print("\n".join(said))
    return int(any(": passed" not in line for line in said))


if __name__ == "__main__":
    sys.exit(main())
