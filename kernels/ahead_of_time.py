"""Compile every kernel for every supported GPU generation, on a machine without any.

    python -P -m whet.kernels.ahead_of_time [--capability 90]... [--kernel rms_norm]... [--fresh]

Prints registers, spilled bytes and shared memory; fails where a kernel does not compile, spills more than
its limit, or needs more shared memory than a block of that generation can have. Pointers and integer
arguments are compiled as divisible by 16, as real models' sizes are.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .backend import interpreting
from .registry import SPECS
from .spec import Compilation

SHARED_MEMORY = {70: 96, 75: 64, 80: 163, 89: 99, 90: 227, 100: 227, 120: 99}
"""Compute capability x 10 -> KiB of shared memory a block can have (CUDA C++ Programming Guide, table of
technical specifications)."""
LAUNCHES_AS = {70: 75}
"""Volta launches what Turing does: Triton has tensor cores for neither."""
ALIGNED = [["tt.divisibility", 16]]
INTEGERS = ("i32", "i64")
HEAD = ("kernel", "function", "sm", "registers", "spills", "shared", "")


@dataclass(frozen=True)
class Compiled:
    """What the compiler made: registers and spilled bytes a thread, shared bytes a block; or its error."""

    kernel: str
    function: str
    capability: int
    registers: int = 0
    spills: int = 0
    shared: int = 0
    spill_limit: int = 0
    error: str = ""

    @property
    def problem(self) -> str:
        """Why this fails the check; empty if it does not."""
        if self.error:
            return self.error
        if self.spills > self.spill_limit:
            return f"spills more than {self.spill_limit} bytes"
        most = SHARED_MEMORY[self.capability] * 1024
        return f"sm_{self.capability} has {most} bytes of shared memory" if self.shared > most else ""


def compile_one(kernel: str, index: int, capability: int) -> Compiled:
    """Compile one of the kernel's compilations; an error is told in the result, since many run at once."""
    wanted = SPECS[kernel].compilations[index]
    name = wanted.function.__name__
    try:
        compiled = triton.compile(
            _source(wanted, capability),
            target=GPUTarget("cuda", capability, 32),
            options={"num_warps": wanted.num_warps, "num_stages": wanted.num_stages},
        )
    except Exception as error:  # of the front end, of MLIR, of LLVM or of ptxas
        return Compiled(kernel, name, capability, error=f"{type(error).__name__}: {error}")
    registers, spills = _resources(compiled.asm["cubin"])
    return Compiled(kernel, name, capability, registers, spills, compiled.metadata.shared, wanted.spill_limit)


def _source(wanted: Compilation, capability: int) -> ASTSource:
    pointer = "*fp16" if capability < 80 else "*bf16"
    signature = {name: pointer if kind == "*T" else kind for name, kind in wanted.signature.items()}
    order = {name: i for i, name in enumerate(wanted.function.arg_names)}
    aligned = {
        (order[name],): ALIGNED
        for name, kind in signature.items()
        if kind.startswith("*") or kind in INTEGERS
    }
    return ASTSource(wanted.function, signature, dict(wanted.constants), aligned)


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and stack bytes of a thread, from the tool that Triton brings."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        command = [tool, "--dump-resource-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    if found is None:
        raise ValueError(f"no resource usage in what cuobjdump said: {said[-300:]!r}")
    return int(found[1]), int(found[2])


def is_for(wanted: Compilation, capability: int) -> bool:
    """Whether a launch on that capability (x 10) would compile this."""
    return wanted.least_capability <= LAUNCHES_AS.get(capability, capability) <= wanted.most_capability


def compile_all(kernels: list[str], capabilities: list[int], jobs: int) -> list[Compiled]:
    """All compilations of ``kernels`` that the capabilities can run, in parallel, in the registry's order."""
    tasks = [
        (kernel, index, capability)
        for kernel in kernels
        for index, wanted in enumerate(SPECS[kernel].compilations)
        for capability in capabilities
        if is_for(wanted, capability)
    ]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(compile_one, *task) for task in tasks]
        return [_result(task, future) for task, future in zip(tasks, futures, strict=True)]


def _result(task: tuple[str, int, int], future: Future[Compiled]) -> Compiled:
    kernel, index, capability = task
    try:
        return future.result()
    except BrokenProcessPool:
        name = SPECS[kernel].compilations[index].function.__name__
        return Compiled(kernel, name, capability, error="the compiler's process died; --jobs 1 finds where")


def table(rows: list[Compiled]) -> str:
    """One line a compilation, problems at the end of theirs."""
    lines: list[tuple[str, ...]] = [HEAD]
    for row in rows:
        numbers = () if row.error else (row.registers, row.spills, row.shared)
        words = row.problem.partition("\n")[0]
        lines.append((row.kernel, row.function, *map(str, (row.capability, *(numbers or ("",) * 3))), words))
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD) - 1)]
    return "\n".join(
        "  ".join(
            [*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]]
        ).rstrip()
        for line in lines
    )


def main() -> int:
    """Compile, print the table, then each error in full; 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--capability", type=int, action="append", choices=sorted(SHARED_MEMORY))
    parser.add_argument("--kernel", action="append", choices=sorted(SPECS))
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--fresh", action="store_true", help="compile anew, not from Triton's cache")
    options = parser.parse_args()
    if interpreting():
        parser.error("TRITON_INTERPRET=1 replaces the compiler: unset it")
    with tempfile.TemporaryDirectory() if options.fresh else nullcontext() as folder:
        if folder is not None:
            os.environ["TRITON_CACHE_DIR"] = str(Path(folder))
        rows = compile_all(
            options.kernel or list(SPECS), options.capability or sorted(SHARED_MEMORY), options.jobs
        )
    print(table(rows))
    wrong = [row for row in rows if row.problem]
    for row in wrong:
        if "\n" in row.error:
            print(f"\n{row.kernel} {row.function} sm_{row.capability}\n{row.error}")
    print(f"\n{len(rows)} compilations, {len(wrong)} with problems")
    return int(bool(wrong) or not rows)


if __name__ == "__main__":
    sys.exit(main())
