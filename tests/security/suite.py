"""Attacks that tests try, and the harmless cases beside them, by who makes them. `make security` counts.

python -P tests/security/suite.py [--write]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from support.counted import write_counts

TESTS = Path(__file__).parents[1]
ATTACKS = {
    "by model repositories": ("security/test_hostile_models.py", "models/test_own_code.py"),
    "by data sets": ("security/test_hostile_data.py",),
    "by recipes": ("security/test_hostile_recipes.py",),
    "by programs that a model wrote": ("rewards/test_sandbox.py",),
    "by other users of the machine": ("security/test_private_home.py",),
    "by the network": ("mcp_server/test_http.py",),
    "by agents and the text they read": ("mcp_server/test_security.py", "mcp_server/test_root.py"),
    "on secrets in what leaves": ("tests/test_redaction.py", "mcp_server/test_audit.py"),
    "on the source's own calls": ("security/test_dangerous_calls.py",),
}


class Counting:
    """A plugin of pytest's: each test, with each of its parameters, is one case."""

    def __init__(self) -> None:
        self.tried: Counter[str] = Counter()
        self.held: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        file = report.nodeid.partition("::")[0]
        kind = next(name for name, files in ATTACKS.items() if file.endswith(files))
        if report.when == "call" or report.failed:
            self.tried[kind] += 1
            self.held[kind] += report.passed


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="write the counts for docs/reliability.md")
    options = parser.parse_args()
    counting, began = Counting(), time.monotonic()
    files = [str(TESTS / file.removeprefix("tests/")) for names in ATTACKS.values() for file in names]
    code = pytest.main(["-q", "-p", "no:cacheprovider", *files], plugins=[counting])
    tried, held = counting.tried.total(), counting.held.total()
    print(f"{held} of {tried} held")
    if options.write:
        counts = {"attacks and harmless cases tried": tried, "of them held": held, **counting.held}
        write_counts("security", "make security", counts, time.monotonic() - began)
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
