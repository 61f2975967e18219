"""Export or smoke test in a process of its own: ``python -P -m whet.engine.export.export_process``.

Reads one JSON request from stdin and writes event JSON lines to stdout; talk of libraries goes to stderr. So
the command line exports without importing torch. Exit codes: 0 proven (or nothing to prove), 3 a proof
failed, 1 error (the last line is then an ``error`` event).

Requests:
    {"action": "export", "run": id, "section": {...} | null, "out": path | null}
    {"action": "export", "trained": path, "base": path or hub id | null, "out": path, "section": {...},
     "name": str | null, "held_out": rows | null}
    {"action": "smoke", "gguf": path, "reference": path, "base": path or hub id | null, "f16": path | null,
     "held_out": rows | null}
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import WhetError
from ..recipe import ExportSection
from ..runs.events import ErrorEvent, Event, ExportEvent, FindingEvent, PhaseEvent
from .pipeline import Emit, ExportResult, export_finished, export_model, merge_findings
from .smoke import smoke_test
from .verdict import EXIT_FAIL, Status


def main() -> int:
    """Serve one request; returns the exit code."""
    out, sys.stdout = sys.stdout, sys.stderr

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


def _smoke(request: dict[str, Any], emit: Emit) -> Status:
    gguf, reference = Path(request["gguf"]), Path(request["reference"])
    f16 = Path(request["f16"]) if request.get("f16") else None
    with _whole_model(reference, request.get("base"), emit) as model_dir:
        emit(PhaseEvent(phase="smoke", detail=gguf.name))

        def progress(done: float, total: float) -> None:
            emit(PhaseEvent(phase="smoke", detail=gguf.name, done=done, total=total))

        verdict = smoke_test(gguf, model_dir, held_out=request.get("held_out"), f16=f16, progress=progress)
    emit(ExportEvent(kind="smoke", path=str(gguf), detail=verdict.model_dump(mode="json")))
    return verdict.status


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
        for finding in merge_findings(merge(base_dir, folder, Path(scratch) / "merged")):
            emit(FindingEvent(finding=finding))
        yield Path(scratch) / "merged"


def _base_of(folder: Path, base: str | None) -> Path | None:
    """Where the base of an adapter lies: as named, else as the adapter says; None for a whole model."""
    from ..models.locate import resolve_model

    config = folder / "adapter_config.json"
    if not config.is_file():
        if not (folder / "config.json").is_file():
            raise WhetError(
                "export.no_model",
                f"{folder} holds neither a model (config.json) nor an adapter (adapter_config.json).",
                "Point to a run's export/adapter, a merged folder, or a model folder.",
            )
        return None
    named = base or json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not named:
        raise WhetError(
            "export.no_base", f"The adapter in {folder} does not name its base model.", "Name it."
        )
    return resolve_model(named, weights=True)


ACTIONS: dict[str, Callable[[dict[str, Any], Emit], Status | None]] = {"export": _export, "smoke": _smoke}

if __name__ == "__main__":
    sys.exit(main())
