"""What a trainer's arguments and a trainer of models that see are known by. Light: imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class PictureProcessor:
    """The kind of :class:`.seeing_processor.SeeingProcessor`."""


class PictureCollator:
    """The kind of :class:`.vision_collator.VisionDataCollator`."""


class PictureTrainer:
    """The kind of :class:`.vision_trainer.VisionSFTTrainer`."""

    def supervise_responses(self, *markers: str | None) -> None:
        """Label what the assistant writes, and nothing else, from now on."""
        raise NotImplementedError


def is_for_seeing(args: Sequence[Any], given: Mapping[str, Any]) -> bool:
    """Whether a trainer's arguments are about a model that sees: they hold a processor, or the collator."""
    found = [*args, given.get("processing_class"), given.get("tokenizer"), given.get("data_collator")]
    return any(isinstance(one, PictureProcessor | PictureCollator) for one in found)
