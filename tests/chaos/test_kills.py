"""A short part of `make chaos`: a few kills, and a resumed run that is the one which was never killed."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from random import Random

import pytest
from chaos.kills import Kill, draw
from chaos.pushes import PLACE, PushKills
from chaos.runs import make_recipe
from chaos.suite import Chaos
from chaos.survival import Seen, broken_at_the_end, shown
from chaos.workers import Workers
from support.tiny_runs import create_run, events_of

from whet.engine.methods.checkpoints import last_complete
from whet.engine.runs.events import FindingEvent

SHORT, LIGHT = {"max_steps": 5}, {"gguf": ["q8_0"], "merged": False}
PLACES = ("a training step", "a checkpoint's writing", "merging", "a GGUF's writing")


@pytest.fixture(scope="module")
def chaos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chaos]:
    folder = tmp_path_factory.mktemp("chaos")
    with pytest.MonkeyPatch.context() as patch, Workers(folder / "home") as workers:
        patch.setenv("WHET_HOME", str(folder / "home"))
        yield Chaos(workers, make_recipe(folder, training=SHORT, export=LIGHT))


def test_a_run_survives_kills(chaos: Chaos) -> None:
    random = Random(4)
    with PushKills.serving(random, kills=1) as push:
        chaos.suffer(create_run(chaos.recipe), [draw(random, place) for place in PLACES], push)
    assert chaos.broken == []
    assert chaos.finished == 1 and set(chaos.survived) == {*PLACES, PLACE}


PREEMPTED = {
    "a training step": ('"type":"step"', 3),
    "an export": ('"detail":"GGUF q8_0"', 1),
}


@pytest.mark.parametrize("place", ["a training step", pytest.param("an export", marks=pytest.mark.slow)])
def test_a_preempted_machine(chaos: Chaos, place: str) -> None:
    """SIGTERM, and in 30 seconds the machine is gone: by then there is a checkpoint, or nothing to lose."""
    run, (words, count) = create_run(chaos.recipe), PREEMPTED[place]
    began = time.monotonic()
    assert chaos.workers.attempt(run, Kill(place, said=words, count=count, number=signal.SIGTERM)) == 0
    assert time.monotonic() - began < 30
    seen = Seen.of(run)
    assert seen.status == "stopped" and f"whet resume {run.id}" in shown(run)
    assert seen.checkpoints[-1] == max(seen.curve) >= 3, "none of its steps is lost"
    assert chaos.workers.attempt(run) == 0
    assert [one for one in broken_at_the_end(run, chaos.reference) if not one.startswith("checkpoints")] == []


def test_what_the_disk_changed_is_not_gone_on_from(chaos: Chaos) -> None:
    """A bit of the newest checkpoint and one of the prepared rows: the curve is that of the whole run."""
    run = create_run(chaos.recipe)
    chaos.workers.attempt(run, Kill("a training step", said='"type":"step"', count=5))
    newest = last_complete(run.checkpoints)  # the kill may have met the next one's writing
    assert newest is not None
    for file in (newest / "optimizer.pt", run.load_plan().data.train):
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    assert chaos.workers.attempt(run) == 0 and broken_at_the_end(run, chaos.reference) == []
    told = [event.finding.title for event in events_of(run) if isinstance(event, FindingEvent)]
    assert any(f"{newest.name} is damaged" in title and "optimizer.pt" in title for title in told)


STARVED = {
    "memory": ({"memory": 10 << 20}, "run.out_of_memory"),
    "file size": ({"file": 150 << 10}, "run.file_too_large"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", STARVED)
def test_starved_and_then_fed(chaos: Chaos, what: str) -> None:
    """The error says what was lacking, and the run goes on once it is there."""
    run, (limit, code) = create_run(chaos.recipe), STARVED[what]
    chaos.workers.attempt(run, limit=limit)
    error = run.read_state().error
    assert run.status() == "failed" and error is not None and error.code == code, run.log_tail()
    assert "Traceback" not in error.message and error.hint and f"whet resume {run.id}" in shown(run)
    assert chaos.workers.attempt(run) == 0 and broken_at_the_end(run, chaos.reference) == []


def test_the_draws_follow_from_the_seed() -> None:
    kills = [draw(Random(seed), place) for seed in range(50) for place in PLACES]
    assert kills == [draw(Random(seed), place) for seed in range(50) for place in PLACES]
    assert len({kill.count for kill in kills}) > 6 and len({kill.after for kill in kills}) > 50
