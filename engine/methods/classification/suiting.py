"""What a head of classes or scores cannot be trained on. Light: a plan asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...errors import WhetError
from .classes import class_names


def refuse_names(named: Sequence[str], labels: Mapping[str, int]) -> None:
    """Raises WhetError ``classification.label_names``; see :func:`.classes.class_names`."""
    class_names(labels, named)


def refuse_fp8(kind: str, base_precision: str) -> None:
    """Raises WhetError ``classification.precision``: FP8 layers are made for causal language models alone."""
    if base_precision == "fp8":
        raise WhetError(
            "classification.precision",
            f"method.kind={kind} does not train over model.precision=fp8.",
            "Set model.precision to auto, nf4 or int8.",
        )
