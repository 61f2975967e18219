"""The work of `whet doctor --kernels` on a GPU, shared among processes: each takes the next from one queue.

A cold run is compilation, a third of it attention's: fixed shares would wait for the process that has it.
A unit that takes its process down costs no other; a new process goes on with the rest.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Lock
from typing import Any, Literal, NamedTuple

from .kernel_report import ParityResult, ending
from .processes import start

Say = Callable[[dict[str, Any]], None]


class Unit(NamedTuple):
    """Compare one case of a kernel in all its types, or compile what a timed case launches."""

    kind: Literal["parity", "compile"]
    kernel: str
    case: str


@dataclass
class Counted:
    """Says what is begun with its number among all that is to do.

    Args:
        say: takes the messages.
        of: how many there are.
    """

    say: Say
    of: int

    def __post_init__(self) -> None:
        self._number, self._alone = 0, Lock()

    def __call__(self, message: dict[str, Any]) -> None:
        if "now" in message:
            with self._alone:
                self._number += 1
                message = message | {"number": self._number, "of": self.of}
        self.say(message)


def share(units: Sequence[Unit], processes: int, most: int, say: Say) -> set[Unit]:
    """Have the units done in order by several processes.

    Args:
        units: what is to do.
        processes: how many do it.
        most: bytes of the GPU's memory that tensors of each may take.
        say: takes what they say.

    Returns:
        The units that took their process down. Each is said as a comparison that failed, and so is a
        comparison that no process was left for.
    """
    left: SimpleQueue[Unit] = SimpleQueue()
    for unit in units:
        left.put(unit)
    with ThreadPoolExecutor(processes) as pool:
        lost = list(pool.map(lambda _: list(_work(left, most, say)), range(processes)))
    for unit in _taken(left):
        if unit.kind == "parity":
            say(_failed(unit, "was not checked: processes ended at their start"))
    return {unit for part in lost for unit in part}


def _work(left: SimpleQueue[Unit], most: int, say: Say) -> Iterator[Unit]:
    """Have units done by one process after another until none is left; yields those that end a process."""
    process: subprocess.Popen[str] | None = None
    for unit in _taken(left):
        if process is None:
            arguments = ("units", str(most))
            process = start("whet.engine.kernel_check", *arguments, stderr=2, OMP_NUM_THREADS="1")
        began, finished = _done(process, unit, say)
        if finished:
            continue
        _close(process)
        if not began:
            left.put(unit)  # for a process that starts
            return
        say(_failed(unit, f"the process {ending(process.returncode)}"))
        process = None
        yield unit
    if process is not None:
        _close(process)


def _done(process: subprocess.Popen[str], unit: Unit, say: Say) -> tuple[bool, bool]:
    """Whether the process began a unit, and whether it finished it; passes on what it says."""
    assert process.stdin is not None and process.stdout is not None
    began = False
    with suppress(BrokenPipeError):  # what it printed before it ended says the same
        process.stdin.write(json.dumps(unit) + "\n")
        process.stdin.flush()
    for line in process.stdout:
        message = json.loads(line)
        if "finished" in message:
            return True, True
        began = began or "now" in message
        say(message)
    return began, False


def _close(process: subprocess.Popen[str]) -> None:
    """End its input, and wait until it ends too."""
    with suppress(BrokenPipeError), process:  # it may have ended before it read all
        pass


def _taken(left: SimpleQueue[Unit]) -> Iterator[Unit]:
    with suppress(Empty):
        while True:
            yield left.get_nowait()


def _failed(unit: Unit, problem: str) -> dict[str, Any]:
    wrong = ParityResult(kernel=unit.kernel, case=unit.case, dtype="any", problems=[problem])
    return {"parity": wrong.model_dump(mode="json")}
