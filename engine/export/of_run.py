"""The export of a run: its weights, its held-out rows and its facts go through the pipeline. Light until it
merges."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..methods.damage import refuse_changed
from ..methods.kinds import NEXT_TOKEN
from ..recipe import ExportSection, Recipe
from ..runs import locks
from ..runs.events import Event, PhaseEvent
from ..runs.store import trained_weights
from .importance_rows import training_rows
from .model_card import run_facts
from .pipeline import Emit, ExportResult, clean_name, export_model
from .targets.table import TARGETS

if TYPE_CHECKING:
    from ..plan import Plan
    from ..runs.context import RunContext
    from ..runs.store import RunDir


def export_run(context: RunContext) -> ExportResult:
    """Export a run's trained weights as its recipe asks; called by the job when training has ended.

    The result lies in the run's ``export/`` beside the adapter, and its verdict in the run's summary. Raises
    Stopped on request, between events; a resume exports again.
    """
    emit = stoppable(context)
    result = export_finished(context.dir, context.plan, context.summary, emit, leave=context.leave_if_asked)
    context.summary["export"] = {kind: str(path) for kind, path in result.paths.items()}
    if result.status is not None:
        context.summary["verdict"] = result.status
    return result


def stoppable(context: RunContext) -> Emit:
    """Takes events, and raises Stopped in place of one once somebody asked the run to stop."""

    def emit(event: Event) -> None:
        context.leave_if_asked()
        context.emit(event)

    return emit


def export_finished(
    run: RunDir,
    plan: Plan,
    summary: Mapping[str, Any],
    emit: Emit,
    section: ExportSection | None = None,
    out_dir: Path | None = None,
    leave: Callable[[], None] = lambda: None,
) -> ExportResult:
    """Export what a run trained, by default what its recipe asks for into its own folder.

    Exports of one run wait for each other; ``leave`` is called while this one waits, and may raise.

    Raises:
        WhetError: ``export.untrained`` while the run has no finished weights, ``export.damaged`` where they
            changed since; those of :func:`export_model`.
    """
    from ..models.locate import resolve_model
    from .held_out import planned_rows

    recipe = plan.recipe
    section = section or recipe.export
    full = recipe.adapter.kind == "none"
    trained = trained_weights(run)
    refuse_changed(trained, run.checkpoints)
    base = resolve_model(recipe.model.name, recipe.model.revision, weights=not full)
    facts = run_facts(run.id, plan, summary, trained)
    with _alone(run, emit, leave):
        return export_model(
            trained,
            None if full else base,
            out_dir or run.export,
            section,
            emit,
            planned_rows(plan, base) if section.smoke_test and asks_rows(section, recipe) else None,
            name=recipe.name or clean_name(Path(recipe.model.name).name),
            trained_precision=plan.resolved.base_precision,
            facts=facts,
            own_rows=lambda: training_rows(plan, base),
        )


def asks_rows(section: ExportSection, recipe: Recipe) -> bool:
    """Whether a proof of what is written begins with rows; all of language models do."""
    weights = section.merged or any(getattr(section, name) for name in TARGETS)
    return bool(section.gguf) or (weights and recipe.method.kind in NEXT_TOKEN)


@contextmanager
def _alone(run: RunDir, emit: Emit, leave: Callable[[], None]) -> Iterator[None]:
    """Two exports of one run would write the same files."""
    lock = locks.try_hold(run.export_lock)
    if lock is None:
        emit(PhaseEvent(phase="wait", detail=f"another export of {run.id} is being written"))
    while lock is None:
        leave()
        lock = locks.try_hold(run.export_lock, locks.PATIENCE)
    with lock:
        yield
