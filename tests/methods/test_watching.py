"""What a finding of the live checks does to a run, as the recipe says; and what looking costs and leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.live_runs import attempt, findings_of, plain_trainer, watched
from support.tiny_models import build_tiny_model
from support.tiny_runs import create_run, events_of, tiny_recipe, write_chat_rows

from whet.engine.checks.live import Pace, Watch, Watched
from whet.engine.findings import Finding
from whet.engine.methods.sft.self_tests import self_tests
from whet.engine.methods.watching import without_gradient
from whet.engine.models.fast_path import apply_fast_path
from whet.engine.models.loading import Precision, load_model
from whet.engine.run_view import view_run
from whet.engine.runs.events import CheckpointEvent, DoneEvent, FindingEvent, StepEvent


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))


class AtThree(Watch):
    """Finds an error at step 3."""

    def step(self, event: StepEvent, pace: Pace | None = None) -> list[Finding]:
        found = [Finding(id="T07", severity="error", title="The loss diverges: it was told to.")]
        return found if event.step == 3 else []


def run_with(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str, **more: Any) -> Any:
    monkeypatch.setattr("whet.engine.methods.sft.first_look.Watch", AtThree)
    rows = write_chat_rows(tmp_path / "rows.jsonl", 100)
    recipe = tiny_recipe(base, rows, training={"save_every": 100}, checks={"on_error": wanted})
    run = create_run(recipe.model_copy(update=more))
    return run, attempt(run)


@pytest.mark.parametrize(
    ("wanted", "ended", "steps", "saved"),
    [
        ("continue", "finished", 6, [6]),
        ("checkpoint", "finished", 6, [3, 6]),
        ("pause", "stopped", 3, [3]),
        ("stop", "train.stopped_by_check", 3, []),
    ],
)
def test_an_error_does_what_the_recipe_says(
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wanted: str,
    ended: str,
    steps: int,
    saved: list[int],
) -> None:
    run, how = run_with(base, tmp_path, monkeypatch, wanted)
    events = events_of(run)
    assert how == ended
    assert len([e for e in events if isinstance(e, StepEvent)]) == steps
    assert [e.step for e in events if isinstance(e, CheckpointEvent)] == saved
    assert "T07" in {f.id for f in findings_of(run)}


def test_a_paused_run_says_why_and_goes_on(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = run_with(base, tmp_path, monkeypatch, "pause")
    view = view_run(run)
    assert view.paused_by == "T07: The loss diverges: it was told to."
    done = [event for event in events_of(run) if isinstance(event, DoneEvent)]
    assert done[-1].summary["paused_by"] == view.paused_by
    assert attempt(run) == "finished"
    assert view_run(run).paused_by is None and "paused_by" not in run.read_state().summary


def test_an_accepted_error_stops_nothing(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, how = run_with(base, tmp_path, monkeypatch, "stop", accept=["T07"])
    assert how == "finished" and "T07" in {f.id for f in findings_of(run)}


@pytest.mark.parametrize("fast", [False, True])
def test_the_self_tests_leave_nothing_behind(base: Path, tmp_path: Path, fast: bool) -> None:
    handle = load_model(base, Precision())
    torch.manual_seed(0)
    handle.model = get_peft_model(handle.model, LoraConfig(target_modules="all-linear", lora_dropout=0.2))
    if fast:
        apply_fast_path(handle.model, handle.dtype)
    trainer, rows = plain_trainer(handle, tmp_path / "out")
    assert (trainer.fast is not None) == fast
    before = {name: value.clone() for name, value in handle.model.state_dict().items()}
    modes = [module.training for module in handle.model.modules()]
    drops = [m.p for m in handle.model.modules() if isinstance(m, torch.nn.Dropout)]
    state, stats = torch.get_rng_state(), trainer.stats
    assert self_tests(trainer, rows) == []
    assert torch.equal(torch.get_rng_state(), state) and trainer.stats is stats
    assert all(param.grad is None for param in handle.model.parameters())
    assert [module.training for module in handle.model.modules()] == modes
    assert [m.p for m in handle.model.modules() if isinstance(m, torch.nn.Dropout)] == drops and drops
    assert all(torch.equal(before[name], value) for name, value in handle.model.state_dict().items())
    assert torch.isnan(torch.tensor(trainer.stats.loss))


def test_an_adapter_beside_the_way_to_the_loss(base: Path, tmp_path: Path) -> None:
    """One of two adapters' layers is not called: its gradients are missing after the first step."""
    handle = load_model(base, Precision())
    handle.model = get_peft_model(handle.model, LoraConfig(target_modules=["q_proj", "up_proj"]))
    layer = handle.model.get_base_model().model.layers[1]
    layer.mlp.forward = lambda x: x
    trainer, _ = plain_trainer(handle, tmp_path / "out", max_steps=1, gradient_checkpointing=False)
    recipe = tiny_recipe(base, write_chat_rows(tmp_path / "rows.jsonl", 100))
    found = watched(trainer, recipe)
    assert [(f.id, f.severity) for f in found if f.id == "L09"] == [("L09", "warning")]
    assert found[0].evidence["without_gradient"] == [
        "base_model.model.model.layers.1.mlp.up_proj.lora_B.default.weight"
    ]


def test_gradients_are_looked_at_without_the_a_matrices(base: Path) -> None:
    handle = load_model(base, Precision())
    model = get_peft_model(handle.model, LoraConfig(target_modules=["q_proj"]))
    model(torch.arange(9)[None], labels=torch.arange(9)[None]).loss.backward()
    assert without_gradient(model) == ([], 2)


def test_findings_before_the_first_step_end_the_run(base: Path, tmp_path: Path) -> None:
    """A weight is lost between the plan and the run."""
    from support.broken_models import change_weights, whole_model

    path = whole_model(tmp_path / "model")
    recipe = tiny_recipe(path, write_chat_rows(tmp_path / "rows.jsonl", 100))
    run, accepting = create_run(recipe), create_run(recipe.model_copy(update={"accept": ["E08"]}))

    def lose(tensors: dict[str, Any]) -> None:
        del tensors["model.layers.0.mlp.up_proj.weight"]

    change_weights(path, lose)
    assert attempt(run) == "load.blocked"
    error = run.read_state().error
    assert error is not None and error.message.startswith("E08: ") and "up_proj" in error.message
    assert [e.finding.id for e in events_of(run) if isinstance(e, FindingEvent)][-1] == "E08"
    assert not [e for e in events_of(run) if isinstance(e, StepEvent)]
    assert attempt(accepting) == "finished"


def test_a_watched_run_is_the_run_nobody_watches(base: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(base, write_chat_rows(tmp_path / "rows.jsonl", 100))
    watch = Watched(recipe, create_run(recipe).load_plan().resolved, 400, chats=True)
    losses = []
    for look in (True, False):
        handle = load_model(base, Precision())
        torch.manual_seed(1)
        handle.model = get_peft_model(handle.model, LoraConfig(target_modules="all-linear", lora_dropout=0.1))
        trainer, rows = plain_trainer(handle, tmp_path / "out", max_steps=3)
        if look:
            self_tests(trainer, rows)
        trainer.train()
        losses.append(trainer.stats.loss)
    assert losses[0] == losses[1] and watch.vocabulary == 400
