"""The classes of a run: their names in the order of the head's outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...errors import WhetError


def class_names(labels: Mapping[str, int], named: Sequence[str]) -> list[str]:
    """Names of all classes; numbers come in their order.

    Args:
        labels: classes as the rows name them.
        named: names of numbered classes, class 0's first; empty where the rows' own are to be kept.

    Raises:
        WhetError: ``classification.label_names`` where they leave a class out or are not all different.
    """
    numbered = all(label.isdecimal() for label in labels)
    if not named:
        return sorted(labels, key=int) if numbered else sorted(labels)
    lost = [label for label in labels if label not in named and not (numbered and int(label) < len(named))]
    if lost or len(set(named)) < len(named):
        what = f"no name for {', '.join(lost[:5])}" if lost else "a name twice"
        raise WhetError(
            "classification.label_names",
            f"method.label_names holds {len(named)} names, and {what}; the rows' classes are "
            f"{', '.join(list(labels)[:10])}.",
            "List one name a class, class 0's first, or leave method.label_names out.",
        )
    return list(named)


def numbers_of(labels: Mapping[str, int], names: Sequence[str]) -> dict[str, int]:
    """A row's class, as it is written there, to the head's output."""
    return {label: names.index(label) if label in names else int(label) for label in labels}
