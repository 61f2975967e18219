"""Runs of reinforcement learning as people see them: the plan's rewards, answers with their scores."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console, RenderableType
from support.scored import prompts, recipe
from support.tiny_models import build_tiny_model

from whet.engine.plan import make_plan
from whet.engine.runs.events import SampleEvent
from whet.tui.render.outcome import _answers
from whet.tui.render.plan import plan_summary
from whet.tui.run_state import RunProgress
from whet.tui.screens.run.panels import samples


def shown(what: RenderableType) -> str:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(what)
    return capture.get()


def said(step: int, prompt: str, answer: str, reward: float | None = None) -> SampleEvent:
    rewards = {} if reward is None else {"reward": reward, "letters": reward}
    return SampleEvent(step=step, prompt=prompt, answer=answer, stopped=True, rewards=rewards)


def test_a_plan_tells_answers_rewards_and_variant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    tiny = build_tiny_model(tmp_path / "model")
    method = {
        "variant": "dapo",
        "rewards": ["exact_answer", {"name": "format", "pattern": "a", "weight": 0.2}],
    }
    plan = make_plan(recipe(tiny, tmp_path, prompts(), method=method))
    text = " ".join(shown(plan_summary(plan)).split())
    assert "4 a prompt, 16 at once, up to 8 tokens, by whet" in text
    assert "exact_answer × 1, format × 0.2" in text
    assert "dapo: loss dapo, rewards scaled by group, token ratios clipped at -0.2 to +0.28" in text
    assert "the last 2 tokens cost reward, flat groups exchanged 3 times" in text
    divided = plan.model_copy(update={"resolved": plan.resolved.model_copy(update={"turns": 4})})
    assert "16 in 4 turns as memory allows, up to 8" in " ".join(shown(plan_summary(divided)).split())


def test_answers_come_with_their_rewards_and_only_at_their_step() -> None:
    events = [
        said(0, "one", "so"),
        said(0, "two", "bad", 0.25),
        said(5, "one", "well"),
        said(5, "three", "good", 0.75),
    ]
    progress = RunProgress()
    progress.take([event.model_copy(update={"seq": place}) for place, event in enumerate(events)])
    late = shown(samples(progress, 5))
    assert "letters 0.75" in late and "well" in late and "two" not in late and "not asked" not in late
    assert "letters 0.25" in shown(samples(progress, 0))
    table = shown(_answers([event for event in events if event.rewards]))
    assert "reward 0.25, letters 0.25" in table and "three" in table
