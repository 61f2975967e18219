"""Evaluation of a finished run of any method but supervised fine-tuning: base and tuned on the same rows.

The method's own objects are built as for training, with a fresh adapter that changes nothing: that is the
base. Then the trained weights are put in. So both are measured exactly as the run measured itself.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import WhetError
from ..plan import DataFacts
from ..recipe_files import patched
from ..runs.context import RunContext
from ..runs.events import PhaseEvent
from ..runs.jobs import EvaluateJob
from ..runs.store import RunStore, trained_weights
from .memory_errors import out_of_memory_said
from .sft.evaluation import recipe_of
from .sft.loading import planned_tokens, prepare_tokens

if TYPE_CHECKING:
    from .training import Training

ROWS = "eval.arrow"


def evaluate_method(context: RunContext, job: EvaluateJob, method: Callable[[RunContext], Training]) -> None:
    """Measure what the parent trained; the numbers end in the job's summary, by ``base_`` and ``tuned_``.

    The base is step 0, the tuned model the parent's last step.

    Raises:
        Stopped: the job ended on request.
        WhetError: ``export.untrained``, ``eval.layout``, ``eval.classes``; those of loading and of data.
    """
    assert job.parent is not None
    parent = RunStore(context.dir.path.parent).get(job.parent)
    trained = trained_weights(parent)
    changed: dict[str, object] = {"data": _rows(context, job)}
    if job.prompts:
        changed["recipe"] = patched(context.recipe, {"sampling.prompts": job.prompts})
    context.plan = context.plan.model_copy(update=changed)
    training = method(context)
    with training.running():
        _measure(context, training, "base", 0)
        training.trainer.load_weights(trained)
        _measure(context, training, "tuned", max(1, parent.read_state().step))


def _measure(context: RunContext, training: Training, name: str, step: int) -> None:
    """The evaluation's own callbacks say what it found."""
    context.leave_if_asked()
    context.emit(PhaseEvent(phase="eval", detail=name))
    trainer = training.trainer
    trainer.state.global_step = step
    with out_of_memory_said(context):
        metrics = trainer.evaluate()
    context.summary |= {f"{name}_loss": metrics["eval_loss"], "rows": len(trainer.eval_dataset)}
    context.summary |= {f"{name}_{key}": value for key, value in training.shown(metrics).items()}


def _rows(context: RunContext, job: EvaluateJob) -> DataFacts:
    """The data of the plan, held-out rows replaced by those that the job asks for."""
    path = context.plan.model.path
    planned = planned_tokens(context, path)
    file = planned.eval
    if job.data is not None:
        recipe = recipe_of(context.plan.data_recipe(), job.data, job.max_rows)
        given = prepare_tokens(context, recipe, path)
        _refuse_others(planned, given)
        file = given.train
        report = planned.report.model_copy(update={"eval": given.report.train})
        planned = planned.model_copy(update={"report": report})
    assert file is not None  # a run without held-out rows is refused before the job is made
    if job.max_rows is not None:
        file = _first(file, context.dir.path / ROWS, job.max_rows)
    return planned.model_copy(update={"eval": file})


def _refuse_others(planned: DataFacts, given: DataFacts) -> None:
    """Rows of another layout, or of classes that the run never heard of, cannot be held against it."""
    trained, other = planned.report, given.report
    if trained.format.name != other.format.name:
        raise WhetError(
            "eval.layout",
            f"The rows are {other.format.name}, and the run was trained on {trained.format.name}.",
            "Give rows with the same columns as those it was trained on; whet data SOURCE shows them.",
        )
    unknown = sorted(set(other.labels) - set(trained.labels))
    if unknown:
        raise WhetError(
            "eval.classes",
            f"The rows name classes that the run does not know: {', '.join(unknown[:5])}.",
            f"It knows {', '.join(list(trained.labels)[:20])}.",
        )


def _first(file: Path, to: Path, rows: int) -> Path:
    """A copy of a file of rows with the first ones only."""
    import pyarrow as pa

    with pa.memory_map(str(file)) as source:
        table = pa.ipc.open_stream(source).read_all().slice(0, rows)
        with pa.OSFile(str(to), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    return to
