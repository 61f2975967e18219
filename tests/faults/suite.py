"""All broken and healthy set-ups, and the table of what was caught, missed and raised for nothing.

python -P tests/faults/suite.py            prints the table
python -P tests/faults/suite.py --write    also into docs/faults.md, and the counts for docs/reliability.md
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "src")]

from faults import (  # noqa: E402
    data_cases,
    data_row_cases,
    embedding_cases,
    environment_cases,
    environment_gpu_cases,
    environment_network_cases,
    environment_package_cases,
    export_cases,
    load_cases,
    reward_cases,
    training_cases,
    weight_cases,
)
from faults.harness import Fault, Healthy, Outcome, serious, try_fault  # noqa: E402
from faults.healthy_cases import HEALTHY  # noqa: E402
from support.counted import write_counts  # noqa: E402

from whet.engine.checks.catalogue import CATALOGUE  # noqa: E402

FAULTS: tuple[Fault, ...] = (
    *environment_package_cases.FAULTS,
    *environment_gpu_cases.FAULTS,
    *environment_network_cases.FAULTS,
    *environment_cases.FAULTS,
    *data_cases.FAULTS,
    *data_row_cases.FAULTS,
    *weight_cases.FAULTS,
    *load_cases.FAULTS,
    *training_cases.FAULTS,
    *reward_cases.FAULTS,
    *embedding_cases.FAULTS,
    *export_cases.FAULTS,
)
PAGE = Path(__file__).parents[2] / "docs" / "faults.md"
HEAD = """# What the checks catch

Made by `make faults` (`python -P tests/faults/suite.py --write`). Each broken set-up must raise its own id
and no other warning, with the right fix, and the fix must end it; healthy set-ups must raise nothing.

"""


def try_healthy(healthy: Healthy, folder: Path) -> Outcome:
    """No warning, no error."""
    raised = tuple(sorted({finding.id for finding in serious(healthy.look(folder).findings)}))
    return Outcome(not raised, raised, f"raised {', '.join(raised)}" if raised else "")


def table() -> tuple[str, dict[str, int]]:
    """The table, and what it counts."""
    outcomes = [(fault, _alone(try_fault, fault)) for fault in FAULTS]
    quiet = [(healthy, _alone(try_healthy, healthy)) for healthy in HEALTHY]
    lines = ["| id | set-ups | caught | missed | wrong beside it |", "|---|---|---|---|---|"]
    for id in sorted({fault.id for fault, _ in outcomes}):
        mine = [outcome for fault, outcome in outcomes if fault.id == id]
        beside = sorted({other for outcome in mine for other in outcome.raised} - {id})
        caught = sum(outcome.caught for outcome in mine)
        lines.append(f"| {id} | {len(mine)} | {caught} | {len(mine) - caught} | {', '.join(beside)} |")
    caught = sum(outcome.caught for _, outcome in outcomes)
    alarms = [(healthy, outcome) for healthy, outcome in quiet if not outcome.caught]
    lines += [
        "",
        f"{caught} of {len(outcomes)} faults caught; {len(alarms)} false alarms in {len(quiet)} healthy "
        "set-ups.",
        *(["", f"Not checked yet: {awaited()}."] if awaited() else []),
        *(f"- missed: {fault.id} {fault.name}: {o.why}" for fault, o in outcomes if not o.caught),
        *(f"- false alarm: {healthy.name}: {outcome.why}" for healthy, outcome in alarms),
    ]
    counts = {
        "broken set-ups": len(outcomes),
        "caught, with the fix that ends them": caught,
        "findings they are about": len({fault.id for fault, _ in outcomes}),
        "healthy set-ups": len(quiet),
        "false alarms": len(alarms),
    }
    return "\n".join(lines) + "\n", counts


def awaited() -> str:
    """Ids whose checks come with a part of whet that is not there yet."""
    return ", ".join(f"{id} ({entry.awaits})" for id, entry in CATALOGUE.items() if entry.awaits)


def _alone(look, case):  # type: ignore[no-untyped-def]
    """A set-up in a folder and a home of its own."""
    with tempfile.TemporaryDirectory(prefix="whet-fault-") as name:
        before = os.environ.get("WHET_HOME")
        os.environ["WHET_HOME"] = str(Path(name) / "home")
        try:
            return look(case, Path(name))
        except Exception as error:  # the others are tried all the same
            return Outcome(False, (), f"{type(error).__name__}: {error}")
        finally:
            if before is None:
                del os.environ["WHET_HOME"]
            else:
                os.environ["WHET_HOME"] = before


def main() -> int:
    """Print the table; 1 where something was missed or raised for nothing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--write", action="store_true", help=f"also write {PAGE.name} and the counts")
    write, began = parser.parse_args().write, time.monotonic()
    text, counts = table()
    if write:
        PAGE.write_text(HEAD + text, encoding="utf-8")
        write_counts("faults", "make faults", counts, time.monotonic() - began)
    print(text)
    missed = counts["broken set-ups"] - counts["caught, with the fix that ends them"]
    return int(missed + counts["false alarms"] > 0)


if __name__ == "__main__":
    sys.exit(main())
