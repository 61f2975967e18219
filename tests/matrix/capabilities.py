"""Every kernel, compiled ahead of time for capability 7.0 to 12.0, and counted: `make capabilities`."""

from __future__ import annotations

import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]

from support.counted import write_counts  # noqa: E402

from whet.kernels.ahead_of_time import SHARED_MEMORY, compile_all, table  # noqa: E402
from whet.kernels.registry import SPECS  # noqa: E402


def main() -> int:
    """Compile, print, count; 1 where something is wrong."""
    began = time.monotonic()
    capabilities = sorted(SHARED_MEMORY)
    rows = compile_all(list(SPECS), capabilities, len(os.sched_getaffinity(0)))
    wrong = [row for row in rows if row.problem]
    print(table(rows))
    counts = {
        "compilations": len(rows),
        "with problems": len(wrong),
        "operations": len(SPECS),
        "compute capabilities": len(capabilities),
    }
    counts |= {
        f"for capability {one / 10}": sum(row.capability == one for row in rows) for one in capabilities
    }
    seconds = time.monotonic() - began
    write_counts("capabilities", "make capabilities", counts, seconds, {"triton": version("triton")})
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
