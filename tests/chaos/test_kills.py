"""A short part of `make chaos`: a few kills, and a resumed run that is the one which was never killed."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest
from chaos.kills import draw
from chaos.pushes import PLACE, PushKills
from chaos.runs import make_recipe
from chaos.suite import Chaos
from chaos.workers import Workers

PLACES = ("a training step", "a checkpoint's writing", "merging", "a GGUF's writing")


@pytest.fixture(scope="module")
def chaos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chaos]:
    folder = tmp_path_factory.mktemp("chaos")
    with pytest.MonkeyPatch.context() as patch, Workers(folder / "home") as workers:
        patch.setenv("WHET_HOME", str(folder / "home"))
        yield Chaos(workers, make_recipe(folder))


def test_a_run_survives_kills(chaos: Chaos) -> None:
    random = Random(4)
    with PushKills.serving(random, kills=1) as push:
        chaos.suffer([draw(random, place) for place in PLACES], push)
    assert chaos.broken == []
    assert chaos.finished == 1 and set(chaos.survived) == {*PLACES, PLACE}


def test_the_draws_follow_from_the_seed() -> None:
    kills = [draw(Random(seed), place) for seed in range(50) for place in PLACES]
    assert kills == [draw(Random(seed), place) for seed in range(50) for place in PLACES]
    assert len({kill.count for kill in kills}) > 6 and len({kill.after for kill in kills}) > 50
