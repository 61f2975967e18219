"""A language model that learns to speak, as a run: supervised fine-tuning on tokens of text and codes."""

from __future__ import annotations

from ...runs.context import RunContext
from .. import training
from ..sft.job import SFTTraining


def run_tts(context: RunContext) -> None:
    """Train what the plan says and export it. See :func:`whet.engine.methods.jobs.run_job`."""
    training.run_method(context, kind_of_training(context))


def kind_of_training(context: RunContext) -> type[training.Training]:
    """By how the model writes codes: as tokens of one vocabulary, or several codebooks a frame."""
    if context.plan.model.codebooks is None:
        return SpeakingTraining
    from .frames_job import FramesTraining

    return FramesTraining


class SpeakingTraining(SFTTraining):
    """Codes are tokens: rows, steps and checks are those of supervised fine-tuning."""
