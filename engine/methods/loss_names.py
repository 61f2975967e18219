"""Losses by name: which one `auto` means for rows, and whether rows suit the one that is asked for. Light."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..errors import WhetError


def suited_loss(
    kind: str, asked: str, layout: str, *, auto: Mapping[str, str], reads: Mapping[str, Sequence[str]]
) -> str:
    """The loss that a recipe asks for.

    Args:
        kind: of the method, ahead of the error's code.
        asked: ``method.loss``.
        layout: of the rows.
        auto: layout -> loss.
        reads: loss -> layouts of rows that it learns from.

    Raises:
        WhetError: ``<kind>.loss`` where the rows do not suit it.
    """
    name = auto[layout] if asked == "auto" else asked
    if layout not in reads[name]:
        fitting = [loss for loss, layouts in reads.items() if layout in layouts]
        raise WhetError(
            f"{kind}.loss",
            f"method.loss={name} learns from {' or '.join(reads[name])}, and these rows are {layout}.",
            f"Set method.loss to auto or one of {', '.join(fitting)}.",
        )
    return name
