"""What the harness is there to see, done on purpose; in no run but its own test."""

from __future__ import annotations

import os
import sys
from random import Random

from fuzz.case import Case, Room, Target

KINDS = ("exception", "exit", "write", "rename", "memory", "abort")


def make(rng: Random) -> Case:
    return Case({"input": b"x"}, {"kind": rng.choice(KINDS)})


def run(case: Case, room: Room) -> None:
    """Misbehave."""
    match case.call["kind"]:
        case "exception":
            raise KeyError("planted")
        case "exit":
            sys.exit(7)
        case "write":
            (room.files / "written").write_text("x")
        case "rename":
            (room.files / "input").rename(room.out / "input")
            (room.out / "input").rename(room.files / "back")
        case "memory":
            bytearray(8 << 30)
        case "abort":
            os.abort()


TARGETS = (Target("planted", make, run, share=0),)
