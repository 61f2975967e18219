"""The process that inputs are tried in: one JSON line asks, one answers.

It may die or hang; whoever asks sees to that. What an input may do is judged here: raise WhetError with
readable words, or succeed, in bounded time and memory, writing only where it may.
"""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "src")]

from fuzz.case import Case, Fault, Room, Target, draw  # noqa: E402
from fuzz.watch import Watch  # noqa: E402

from whet.engine.errors import WhetError  # noqa: E402
from whet.engine.printable import printable  # noqa: E402

SECONDS = 8.0
"""Of CPU time that one input may take."""
MEMORY = 3 << 30
"""Bytes of address space that inputs may add to what the process has."""
LONGEST = 6000
"""Characters of an error's message and hint together."""
MODULES = ("recipes", "rows", "templates", "models", "gguf", "runs", "front_ends", "planted")


def targets() -> dict[str, Target]:
    """All, by name."""
    found = [target for name in MODULES for target in import_module(f"fuzz.targets.{name}").TARGETS]
    return {target.name: target for target in found}


def judge(target: Target, case: Case, folder: Path, watch: Watch) -> dict[str, Any]:
    """Try one input in a fresh ``folder`` and say what came of it: ``done``, ``refused`` or ``finding``."""
    shutil.rmtree(folder, ignore_errors=True)
    room = Room(folder)
    for path in (room.home, room.out, folder / "tmp", folder / "work"):
        path.mkdir(parents=True)
    case.write(folder)
    os.environ.update(WHET_HOME=str(room.home), TMPDIR=str(folder / "tmp"))
    tempfile.tempdir = None  # it is remembered
    os.chdir(folder / "work")
    began = time.process_time()
    watch.begin((room.home, room.out, folder / "tmp"))
    try:
        outcome, why, trace = _try(target, case, room)
    finally:
        seen = watch.end()
    seconds = time.process_time() - began
    if seen:
        outcome, why = "finding", f"outside of home and out: {'; '.join(seen[:3])}"
    elif seconds > SECONDS and outcome != "finding":
        outcome, why = "finding", f"{seconds:.1f} s of CPU time ({outcome}: {why[:200]})"
    return {"outcome": outcome, "why": why, "trace": trace, "seconds": round(seconds, 3)}


def _try(target: Target, case: Case, room: Room) -> tuple[str, str, str]:
    try:
        target.run(case, room)
    except WhetError as error:
        wrong = wrong_words(error)
        return (
            ("finding", f"{error.code}: {wrong}", repr(str(error))[:3000])
            if wrong
            else ("refused", error.code, "")
        )
    except Fault as fault:
        return "finding", str(fault), traceback.format_exc()
    except (Exception, SystemExit) as error:  # what must not come through, whatever it is
        return "finding", f"{type(error).__name__}: {str(error)[:300]}", traceback.format_exc()
    return "done", "", ""


def wrong_words(error: WhetError) -> str:
    """What is wrong with an error's words; nothing as a rule."""
    text = f"{error.message}{error.hint}"
    if not error.message.strip():
        return "no message"
    if len(text) > LONGEST:
        return f"{len(text)} characters of message"
    return "" if printable(text) == text else "control characters in its message"


def main(scratch: Path) -> None:
    """Answer until standard input closes. Nothing but answers goes to the pipe."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    watch, known = Watch(), targets()
    for line in sys.stdin:
        asked = json.loads(line)
        target = known[asked["target"]]
        kept = asked.get("kept")
        case = Case.read(Path(kept)) if kept else draw(target, asked["seed"], asked["number"])
        _limit_memory()
        answer = judge(target, case, scratch, watch)
        out.write(json.dumps(answer) + "\n")
        out.flush()


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
