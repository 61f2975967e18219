"""Runs that train a language model on rows of tokens: loading, a first look, samples, and what is written."""

from __future__ import annotations

from pathlib import Path

from ..checks.live import Watch, Watched
from ..checks.loaded import look_at_loaded
from ..models.adapters import save_weights
from ..models.fast_path import FastPathReport
from ..models.loading import ModelHandle, stored_dtype
from ..plan import DataFacts
from ..runs.events import PhaseEvent
from .earlier import earlier_events
from .resuming import look_at_checkpoint
from .sampling import sample_events
from .sft.first_look import loaded_facts
from .sft.loading import load_trainee, locate_base, planned_tokens
from .training import Training
from .watching import Watching


class AnswerTraining(Training):
    """One attempt at training a language model on answers that are compared or drawn.

    A method's constructor calls :meth:`load`, then builds ``trainer`` and calls ``report``.
    """

    handle: ModelHandle
    fused: FastPathReport
    more_ends: bool
    data: DataFacts
    watcher: type[Watching] = Watching
    """Of the live checks."""

    def load(self) -> None:
        """The model with its adapter, and the tokens that were planned; leaves where that is asked for."""
        context = self.context
        context.emit(PhaseEvent(phase="load", detail=self.recipe.model.name))
        path, trusted = locate_base(context)
        trainee = load_trainee(self.plan, path, trusted)
        self.handle, self.fused, self.more_ends = trainee.handle, trainee.report, trainee.more_ends
        context.leave_if_asked()
        self.data = planned_tokens(context, self.handle.path)
        context.leave_if_asked()

    def look(self, checkpoint: Path | None) -> None:
        """What the checks see in the loaded model and the checkpoint; the live ones take over."""
        watch = look_at_language_model(self, self.handle, self.data, checkpoint)
        self.watching = self.watcher(self.context.emit, watch, self.recipe, self.reporter, self.trainer)
        self.trainer.add_callback(self.watching)

    def sample(self, step: int) -> None:
        """Answer the recipe's prompts."""
        sample_events(self.context, self.handle, step, chat=self.data.report.template is not None)

    def write(self, folder: Path) -> None:
        """The weights and the tokenizer with the template in force."""
        write_language_model(self, self.handle, self.data, self.more_ends, folder)


def look_at_language_model(
    run: Training, handle: ModelHandle, data: DataFacts, checkpoint: Path | None
) -> Watch:
    """Say what the checks see in the loaded model and the checkpoint, and return the watch that takes over.

    For rows whose answers are compared or drawn, not learnt token by token as in :mod:`.sft`.

    Raises:
        WhetError: those of :meth:`.training.Training.say`.
    """
    report = data.report
    largest = max(report.train.max_token_id, report.eval.max_token_id if report.eval else -1)
    found = look_at_loaded(loaded_facts(handle, run.recipe, largest_id=largest))
    if checkpoint is not None:
        found += look_at_checkpoint(checkpoint, run.trainer.model, run.plan)
    run.say(found)
    watched = Watched(run.recipe, run.resolved, vocabulary=2, chats=False)
    return Watch(watched, earlier_events(run.context, checkpoint))


def write_language_model(
    run: Training, handle: ModelHandle, data: DataFacts, more_ends: bool, folder: Path
) -> None:
    """The trained weights, and the tokenizer with the template in force.

    Args:
        run: its trainer holds the weights; those of a model trained whole are written as the base's came.
        handle: of the tokenizer.
        data: what the rows were rendered with.
        more_ends: the recipe or the template added end tokens, which the generation config then names.
        folder: receives the files.
    """
    model = run.trainer.accelerator.unwrap_model(run.trainer.model)
    whole = run.trainer.whole
    if run.recipe.adapter.kind == "none":
        dtype = stored_dtype(run.plan.model.dtype)
        if whole is None:
            model = model.to(dtype)
        else:
            whole = {name: weights.to(dtype) for name, weights in whole.items()}
    save_weights(model, folder, whole)
    handle.tokenizer.save_pretrained(folder)
    if more_ends:
        model.generation_config.save_pretrained(folder)
    if data.template_digest is not None:
        (folder / "template_digest").write_text(data.template_digest + "\n", encoding="utf-8")
