"""Export or smoke test in a process of its own: ``python -P -m whet.engine.export.export_process``.

Reads one JSON request from stdin and writes event JSON lines to stdout; talk of libraries goes to stderr. So
the command line exports without importing torch. Exit codes: 0 proven (or nothing to prove), 3 a proof
failed, 1 error (the last line is then an ``error`` event).

Requests:
    {"action": "export", "run": id, "section": {...} | null, "out": path | null}
    {"action": "export", "trained": path, "base": path or hub id | null, "out": path, "section": {...},
     "name": str | null, "held_out": rows | null}
    {"action": "smoke", "gguf": path, "reference": path, "base": path or hub id | null, "f16": path | null,
     "held_out": rows | null}     where gguf may be a merged folder, and reference is then its adapter
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..checks.exported import ExportFacts, run_export_checks
from ..errors import WhetError
from ..recipe import ExportSection
from ..runs.events import ErrorEvent, Event, ExportEvent, FindingEvent, PhaseEvent
from .merge_proof import prove_merge
from .modelfile_check import inspect_modelfile, read_modelfile
from .of_run import export_finished
from .pipeline import Emit, ExportResult, export_model
from .smoke import smoke_test
from .verdict import EXIT_FAIL, Status

ENDING = (signal.SIGINT, signal.SIGTERM)


def main() -> int:
    """Serve one request; returns the exit code."""
    out, sys.stdout = sys.stdout, sys.stderr
    for number in ENDING:
        signal.signal(number, _leave)

    def emit(event: Event) -> None:
        out.write(event.model_dump_json() + "\n")
        out.flush()

    try:
        request = json.load(sys.stdin)
        action = ACTIONS.get(request.get("action"))
        if action is None:
            raise WhetError(
                "export.request",
                f"Unknown action {request.get('action')!r}.",
                f"Known: {', '.join(ACTIONS)}.",
            )
        status = action(request, emit)
    except WhetError as error:
        emit(ErrorEvent(code=error.code, message=error.message, hint=error.hint))
        return 1
    return EXIT_FAIL if status == "fail" else 0


def _leave(number: int, frame: object) -> None:
    """End in good order: what was half-written goes, and a second signal does not disturb that."""
    for each in ENDING:
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


def _export(request: dict[str, Any], emit: Emit) -> Status | None:
    section = ExportSection.model_validate(request["section"]) if request.get("section") else None
    out = Path(request["out"]) if request.get("out") else None
    if request.get("run"):
        return _export_run(request["run"], section, out, emit).status
    trained = Path(request["trained"])
    if section is None or out is None:
        raise WhetError(
            "export.request", "Exporting a folder needs `section` and `out`.", "Name the types and a folder."
        )
    base = _base_of(trained, request.get("base"))
    result = export_model(
        trained, base, out, section, emit, request.get("held_out"), name=request.get("name")
    )
    return result.status


def _export_run(run_id: str, section: ExportSection | None, out: Path | None, emit: Emit) -> ExportResult:
    from ..runs.store import RunStore

    run = RunStore().get(run_id)
    return export_finished(run, run.load_plan(), run.read_state().summary, emit, section, out)


def smoke(request: dict[str, Any], emit: Emit) -> Status:
    """Prove a GGUF, or merged weights, as a request of action ``smoke`` says. Raises ``smoke.*``."""
    gguf, reference = Path(request["gguf"]), Path(request["reference"])
    if gguf.is_dir():
        return _smoke_merged(gguf, reference, request, emit)
    f16 = Path(request["f16"]) if request.get("f16") else None
    with _whole_model(reference, request.get("base"), emit) as model_dir:
        emit(PhaseEvent(phase="smoke", detail=gguf.name))

        def progress(done: float, total: float) -> None:
            emit(PhaseEvent(phase="smoke", detail=gguf.name, done=done, total=total))

        verdict = smoke_test(gguf, model_dir, held_out=request.get("held_out"), f16=f16, progress=progress)
        beside = gguf.parent / "Modelfile"
        names_it = beside.is_file() and Path(read_modelfile(beside).source).name == gguf.name
        modelfile = inspect_modelfile(beside, model_dir) if names_it else None
    emit(ExportEvent(kind="smoke", path=str(gguf), detail=verdict.model_dump(mode="json")))
    _tell(ExportFacts(str(reference), verdicts=(verdict,), modelfile=modelfile), emit)
    return verdict.status


def _smoke_merged(merged: Path, adapter: Path, request: dict[str, Any], emit: Emit) -> Status:
    """Merged weights, by whichever tool, against the adapter and its base."""
    base = _base_of(adapter, request.get("base"))
    if base is None:
        raise WhetError(
            "smoke.no_adapter",
            f"{adapter} is no adapter, and {merged} is a folder of merged weights to hold against one.",
            "Give the adapter's folder as the reference.",
        )
    emit(PhaseEvent(phase="smoke", detail=merged.name))
    verdict = prove_merge(base, adapter, merged, request.get("held_out"))
    emit(ExportEvent(kind="smoke", path=str(merged), detail=verdict.model_dump(mode="json")))
    _tell(ExportFacts(str(adapter), verdicts=(verdict,)), emit)
    return verdict.status


def _tell(facts: ExportFacts, emit: Emit) -> None:
    for finding in run_export_checks(facts):
        emit(FindingEvent(finding=finding))


@contextmanager
def _whole_model(folder: Path, base: str | None, emit: Emit) -> Iterator[Path]:
    """A model folder as it is; an adapter merged for as long as the context lasts."""
    base_dir = _base_of(folder, base)
    if base_dir is None:
        yield folder
        return
    from .merging import merge

    emit(PhaseEvent(phase="merge", detail="adapter into base"))
    with tempfile.TemporaryDirectory(prefix=".whet-smoke-") as scratch:
        _tell(ExportFacts(str(folder), merge=merge(base_dir, folder, Path(scratch) / "merged")), emit)
        yield Path(scratch) / "merged"


def _base_of(folder: Path, base: str | None) -> Path | None:
    """Where the base of an adapter lies: as named, else as the adapter says; None for a whole model."""
    from ..models.locate import resolve_model
    from ..models.own_files import check_adapter

    config = folder / "adapter_config.json"
    if not config.is_file():
        if not (folder / "config.json").is_file():
            raise WhetError(
                "export.no_model",
                f"{folder} holds neither a model (config.json) nor an adapter (adapter_config.json).",
                "Point to a run's export/adapter, a merged folder, or a model folder.",
            )
        resolve_model(str(folder), weights=True)
        return None
    check_adapter(folder)
    named = base or json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not named:
        raise WhetError(
            "export.no_base", f"The adapter in {folder} does not name its base model.", "Name it."
        )
    return resolve_model(named, weights=True)


ACTIONS: dict[str, Callable[[dict[str, Any], Emit], Status | None]] = {"export": _export, "smoke": smoke}

if __name__ == "__main__":
    sys.exit(main())
