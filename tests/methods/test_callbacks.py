"""Early stopping follows from the history of held-out losses alone."""

from __future__ import annotations

import pytest

from whet.engine.methods.callbacks import Held, best_of, should_stop_early


def held(*losses: float) -> list[Held]:
    return [Held(step, loss) for step, loss in enumerate(losses, start=1)]


@pytest.mark.parametrize(
    ("losses", "patience", "least", "stops"),
    [
        ((), 1, 0.0, False),
        ((3.0, 2.0, 2.5), None, 0.0, False),
        ((3.0, 2.0, 2.5), 1, 0.0, True),
        ((3.0, 2.0, 2.5), 2, 0.0, False),
        ((3.0, 2.0, 2.5, 2.4), 2, 0.0, True),
        ((3.0, 2.0, 2.5, 1.9), 2, 0.0, False),
        ((3.0, 2.95, 2.91), 2, 0.1, True),
        ((3.0, 2.95, 2.89), 2, 0.1, False),
        ((3.0, 3.0), 1, 0.0, True),
    ],
)
def test_patience(losses: tuple[float, ...], patience: int | None, least: float, stops: bool) -> None:
    assert should_stop_early(held(*losses), patience, least) is stops


def test_best_is_the_earliest_of_the_lowest() -> None:
    assert best_of([]) is None
    assert best_of(held(3.0, 1.0, 2.0, 1.0)) == Held(2, 1.0)
