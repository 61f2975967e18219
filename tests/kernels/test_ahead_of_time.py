"""Every kernel compiles for every GPU generation, here, in processes without the interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from whet.kernels.ahead_of_time import LAUNCHES_AS, SHARED_MEMORY, Compiled, is_for, table
from whet.kernels.registry import SPECS

BUDGET = 420.0  # seconds on two busy cores with nothing in Triton's cache
SOURCE = Path(__file__).parents[2] / "src"

FAULTY = """
import dataclasses, sys
import torch, triton
import triton.language as tl
from whet.kernels import ahead_of_time
from whet.kernels.registry import SPECS
from whet.kernels.spec import Compilation

@triton.jit
def copies(X, Y, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(Y + at, tl.load(X + at, mask=at < n), mask=at < n)

@triton.jit
def undefined(X, Y, n, BLOCK: tl.constexpr):
    tl.store(Y, tl.no_such_function(X))

if __name__ == "__main__":
    signature = {"X": "*T", "Y": "*T", "n": "i32", "BLOCK": "constexpr"}
    both = tuple(Compilation(f, signature, {"BLOCK": 64}) for f in (copies, undefined))
    SPECS["toy"] = dataclasses.replace(next(iter(SPECS.values())), name="toy", compilations=both)
    good, bad = (ahead_of_time.compile_one("toy", i, 90) for i in (0, 1))
    assert good.registers > 0 and not good.problem, good
    assert "no_such_function" in bad.problem, bad
    print("told apart")
"""


def without_interpreter(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(SOURCE)
    return subprocess.run(
        [sys.executable, "-P", *words], capture_output=True, text=True, env=environment, timeout=BUDGET
    )


GENERATIONS = sorted(set(SHARED_MEMORY) - set(LAUNCHES_AS))
"""`make capabilities` compiles for the others as well."""


def test_every_kernel_compiles_for_every_generation() -> None:
    chosen = [word for capability in GENERATIONS for word in ("--capability", str(capability))]
    done = without_interpreter("-m", "whet.kernels.ahead_of_time", *chosen)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    for kernel, spec in SPECS.items():
        lines = [line.split() for line in done.stdout.splitlines() if line.split()[:1] == [kernel]]
        expected = [
            str(capability)
            for wanted in spec.compilations
            for capability in GENERATIONS
            if is_for(wanted, capability)
        ]
        assert [line[2] for line in lines] == expected
        assert all(int(line[3]) > 0 for line in lines)


def test_a_function_that_does_not_compile_is_told(tmp_path: Path) -> None:
    (tmp_path / "faulty.py").write_text(FAULTY, encoding="utf-8")
    done = without_interpreter(str(tmp_path / "faulty.py"))
    assert done.returncode == 0 and "told apart" in done.stdout, done.stderr[-2000:]


def test_volta_launches_what_turing_does() -> None:
    done = without_interpreter(
        "-m", "whet.kernels.ahead_of_time", "--capability", "70", "--kernel", "rms_norm"
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("rms_norm")]
    turing = [wanted for wanted in SPECS["rms_norm"].compilations if is_for(wanted, 75)]
    assert len(lines) == len(turing) > 0 and {line[2] for line in lines} == {"70"}


@pytest.mark.parametrize(
    ("compiled", "problem"),
    [
        (Compiled("k", "f", 75, 64, 0, 64 * 1024), ""),
        (Compiled("k", "f", 75, 64, 0, 64 * 1024 + 1), "sm_75 has 65536 bytes of shared memory"),
        (Compiled("k", "f", 90, 64, 0, 227 * 1024), ""),
        (Compiled("k", "f", 90, 255, 40, 0, 32), "spills more than 32 bytes"),
        (Compiled("k", "f", 90, 255, 32, 0, 32), ""),
        (Compiled("k", "f", 90, error="CompilationError: at 3:4\nwhere"), "CompilationError: at 3:4\nwhere"),
    ],
)
def test_problems(compiled: Compiled, problem: str) -> None:
    assert compiled.problem == problem
    assert table([compiled]).splitlines()[1].endswith(problem.partition("\n")[0])


def test_the_interpreter_is_refused() -> None:
    words = ["-P", "-m", "whet.kernels.ahead_of_time"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and "unset" in done.stderr
