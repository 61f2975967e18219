"""A schedule in force: the layers and the step follow it, the gradients do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.plan_inputs import adapter, gpu, machine
from support.tiny_families import build
from support.tiny_runs import create_run, events_of, next_attempt, tiny_recipe, write_chat_rows

from whet.engine.methods import measuring
from whet.engine.methods.sft import job, scheduled
from whet.engine.methods.sft.fast_step import FastStep
from whet.engine.methods.sft.packed_steps import TokenRow
from whet.engine.methods.sft.scheduled import follow, schedule_here
from whet.engine.models.adapters import add_adapter
from whet.engine.models.facts import read_model_facts
from whet.engine.models.fast_path import apply_fast_path, program_of
from whet.engine.models.fast_shape import Held
from whet.engine.models.fast_time import Rows
from whet.engine.plan import make_plan
from whet.engine.runs.events import StepEvent
from whet.engine.schedule import Schedule
from whet.kernels.spec import relative_error

LENGTHS = (70, 20, 64, 30, 90)
SECTION = adapter(rank=4, target_modules=["q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"])


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))


def rows() -> list[TokenRow]:
    draw = np.random.default_rng(0)
    found = []
    for length in LENGTHS:
        ids = draw.integers(3, 128, length)
        found.append(TokenRow(ids, np.where(np.arange(length) > length // 3, ids, -100)))
    return found


def step_by(schedule: Schedule) -> tuple[float, dict[str, torch.Tensor], FastStep]:
    """Loss and gradients of a step that follows a schedule."""
    model: Any = add_adapter(build("qwen3"), SECTION, seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, param in model.named_parameters():
        if "lora_B" in name:
            param.data = 0.1 * torch.randn(param.shape, generator=generator)
    apply_fast_path(model, torch.float32)
    program = program_of(model)
    assert program is not None
    fast = FastStep(program, torch.device("cpu"), budget=1 << 30)
    follow(fast, schedule)
    loss = fast.train(rows(), 100).loss
    gradients = {name: param.grad for name, param in model.named_parameters() if param.grad is not None}
    return float(loss), gradients, fast


def test_any_schedule_gives_the_same_step() -> None:
    plain_loss, plain, kept = step_by(Schedule(layers=3, budget=1024))
    assert all(keep.attention and keep.mlp and not keep.offload for keep in kept.program.keep)
    assert len(kept.batches(rows())) == 1
    tight = Schedule(layers=3, budget=128, recompute_attention=2, recompute_mlp=3, offload=1, chunk=32)
    loss, gradients, fast = step_by(tight)
    assert [keep.attention for keep in fast.program.keep] == [False, False, True]
    assert [keep.mlp for keep in fast.program.keep] == [False] * 3
    assert [keep.offload for keep in fast.program.keep] == [True, False, False]
    assert (fast.program.chunk, fast.budget, len(fast.batches(rows()))) == (32, 128, 3)
    assert loss == pytest.approx(plain_loss, rel=1e-5)
    assert gradients.keys() == plain.keys()
    for name, gradient in plain.items():
        assert relative_error(gradients[name], gradient) < 1e-4, name


def test_a_run_follows_its_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from support.tiny_models import build_tiny_model

    recipe = tiny_recipe(
        build_tiny_model(tmp_path / "model", "llama"),
        write_chat_rows(tmp_path / "rows.jsonl", 16),
        training={"max_steps": 2},
    )
    plan = make_plan(recipe)
    assert plan.resolved.schedule is not None and plan.resolved.schedule.step_seconds is None
    followed: list[Schedule] = []

    def watched(fast: FastStep, schedule: Schedule) -> None:
        followed.append(schedule)
        follow(fast, schedule)
        assert fast.budget == schedule.budget

    monkeypatch.setattr(job, "follow", watched)
    run = create_run(recipe)
    job.train(next_attempt(run))
    assert followed == [plan.resolved.schedule]
    assert len([event for event in events_of(run) if isinstance(event, StepEvent)]) == 2


def test_a_schedule_for_what_is_free_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build("qwen3").config.save_pretrained(tmp_path)
    facts, held = read_model_facts(tmp_path), Held("fp32", "fp32", device="cpu")
    many = Rows.of_lengths([256] * 4, 64)

    def with_ram(gib: float) -> Schedule:
        monkeypatch.setattr(scheduled, "inspect_machine", lambda: machine(ram_gib=gib))
        found = schedule_here(facts, SECTION, held, many)
        assert found is not None
        return found

    assert with_ram(64).budget == 64 * 256 and not with_ram(64).recomputes
    assert with_ram(0.9).budget < 64 * 256
    assert schedule_here(facts, adapter(kind="dora"), held, many) is None


def test_the_gpu_is_measured_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from whet.engine.calibration import remember, typical
    from whet.engine.errors import WhetError
    from whet.engine.runs.events import Event, FindingEvent

    class Context:
        """What a run's context is asked for."""

        def __init__(self, device: str) -> None:
            self.device, self.events = device, list[Event]()

        @property
        def plan(self) -> Any:
            return self

        resolved = plan

        def emit(self, event: Event) -> None:
            self.events.append(event)

    here, calls = machine(gpu()), list[int]()

    def fails(on: Any) -> None:
        calls.append(1)
        raise WhetError("calibration.failed", "no memory left")

    def measures(on: Any) -> None:
        calls.append(2)
        remember(on, typical(gpu()))

    monkeypatch.setattr(measuring, "inspect_machine", lambda: here)
    monkeypatch.setattr(measuring, "calibrate", fails)
    measuring.measure_once(Context("cpu"))  # type: ignore[arg-type]
    assert calls == []
    context = Context("cuda")
    measuring.measure_once(context)  # type: ignore[arg-type]
    (found,) = (event for event in context.events if isinstance(event, FindingEvent))
    assert found.finding.severity == "note" and "no memory left" in str(found.finding.evidence)
    monkeypatch.setattr(measuring, "calibrate", measures)
    measuring.measure_once(Context("cuda"))  # type: ignore[arg-type]
    measuring.measure_once(Context("cuda"))  # type: ignore[arg-type]
    assert calls == [1, 2]
