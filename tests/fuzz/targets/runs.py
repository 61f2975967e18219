"""A run's directory after others had it: events, state, plan, recipe, job, log; read as front ends do."""

from __future__ import annotations

import json
from functools import cache
from random import Random
from typing import Any

from fuzz import mutate
from fuzz.case import Case, Fault, Room, Target
from support.recorded_runs import answers, held_out, step

from whet.engine import api
from whet.engine.findings import Finding, Fix
from whet.engine.runs.events import (
    EVENT,
    CheckpointEvent,
    DoneEvent,
    ErrorEvent,
    EventLog,
    ExportEvent,
    FindingEvent,
    PhaseEvent,
)
from whet.engine.runs.locks import is_held
from whet.engine.runs.state import RunState
from whet.engine.runs.store import RunDir

RUN = "fuzzed-20260101-000000-abcd"
NAMES = ("events.jsonl", "events.jsonl", "state.json", "plan.json", "recipe.yaml", "job.json", "worker.log")
JOB = {"action": "export", "parent": None, "section": {"gguf": ["q8_0"]}}


@cache
def _plan() -> api.Plan:
    """Of the demo; its prepared rows lie in the home of the first input, which nothing here reads."""
    return api.plan(api.recipe("demo", ["export.gguf=[]", "training.max_steps=6"]))


def _events() -> list[Any]:
    fix = Fix(text="x", patch={"data.drop": ["odd"]})
    finding = Finding(id="T01", severity="warning", title="odd", evidence={"a": [1]}, fix=fix)
    found = [
        PhaseEvent(phase="load", detail="fast path: 1 of 1"),
        *(step(number, total=6) for number in range(1, 5)),
        held_out(4, 1.5),
        *answers(4),
        FindingEvent(finding=finding),
        CheckpointEvent(step=4, path="checkpoints/4", bytes=10, seconds=0.1),
        ExportEvent(kind="gguf", path="export/a.gguf", bytes=5, detail={"status": "pass", "type": "q8_0"}),
        ExportEvent(kind="smoke", path="export/a.gguf", detail={"status": "pass"}),
        ErrorEvent(code="run.x", message="it failed", hint="do"),
        DoneEvent(status="finished", summary={"loss": 1.0}),
    ]
    return [one.model_copy(update={"seq": seq, "time": 1.75e9 + seq}) for seq, one in enumerate(found, 1)]


@cache
def whole() -> dict[str, bytes]:
    """The files of a finished run."""
    plan = _plan()
    state = RunState(
        status="finished", step=4, total_steps=6, loss=1.0, model="demo", method="sft", attempt=1
    )
    return {
        "events.jsonl": b"".join(EVENT.dump_json(one) + b"\n" for one in _events()),
        "state.json": state.model_dump_json(indent=2).encode(),
        "plan.json": plan.model_dump_json(indent=2).encode(),
        "recipe.yaml": api.to_yaml(plan.recipe).encode(),
        "worker.log": b"loading\n10%\r20%\r100%\nTraceback: x\n",
        "export/adapter/adapter_config.json": b"{}",
        "export/a.gguf": b"GGUF",
    }


def _lines(rng: Random, content: bytes) -> bytes:
    """Some events mutated, in another order, doubled, or left out."""
    lines = content.splitlines()
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(lines))
        if rng.random() < 0.7:
            lines[at] = json.dumps(mutate.value(rng, json.loads(lines[at]), most=1)).encode()
        elif rng.random() < 0.5:
            lines.insert(rng.randrange(len(lines)), lines[at])
        elif len(lines) > 1:
            del lines[at]
        if not all(line.startswith(b"{") for line in lines):
            break
    return b"\n".join(lines) + b"\n"


def make(rng: Random) -> Case:
    files = {f"{RUN}/{name}": content for name, content in whole().items()}
    name = f"{RUN}/{rng.choice(NAMES)}"
    content = files.get(name, json.dumps(JOB).encode())
    if name.endswith("events.jsonl") and rng.random() < 0.7:
        files[name] = _lines(rng, content)
    elif name.endswith(".json") and rng.random() < 0.7:
        files[name] = json.dumps(mutate.value(rng, json.loads(content))).encode()
    else:
        files[name] = mutate.data(rng, content)
    if rng.random() < 0.1:
        del files[rng.choice(list(files))]
    offset = rng.choice((0, 0, 0, 5, 10**6))
    return Case(files, {"offset": offset, "lines": rng.choice((1, 100)), "search": rng.choice(mutate.TEXTS)})


def run(case: Case, room: Room) -> None:
    """Listed, shown, followed, explained; then written on by a worker that resumes."""
    (room.home / "runs").mkdir()
    (room.files / RUN).rename(room.home / "runs" / RUN)
    errors: list[api.WhetError] = []
    folder = RunDir(room.home / "runs" / RUN)
    call = case.call
    looks = (
        lambda: [one.model_dump_json() for one in api.runs()],
        lambda: api.run(RUN).model_dump_json(),
        lambda: api.events(RUN, call["offset"], 1000),
        lambda: list(api.follow(RUN)),
        lambda: api.log(RUN, call["lines"], None, call["search"]),
        lambda: [one.model_dump_json() for one in api.artifacts(RUN)],
        lambda: api.fix(RUN),
        lambda: api.chat_target(RUN),
        lambda: folder.load_job(),
        lambda: api.stop(RUN),
        lambda: _written_on(folder),
        lambda: api.trash(RUN),
    )
    for look in looks:
        try:
            look()
        except api.WhetError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def _written_on(folder: RunDir) -> None:
    """As the next attempt does; what was whole stays."""
    if not folder.events.exists() or is_held(folder.lock):
        return
    log = EventLog(folder.events, attempt=2)
    written = log.append(PhaseEvent(phase="train"))
    log.close()
    last = EVENT.validate_json(folder.events.read_bytes().splitlines()[-1])
    if last != written:
        raise Fault("what a worker wrote is not the last event")


TARGETS = (Target("runs", make, run, share=4, in_ci=8),)
