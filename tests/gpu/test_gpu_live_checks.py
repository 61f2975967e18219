"""Checks of loading and training on a real GPU: quiet where all is well, cheap, and nothing left behind.

python -P -m pytest -q -s -m gpu tests/gpu/test_gpu_live_checks.py     prints what they cost
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support.live_runs import attempt, findings_of
from support.tiny_models import build_tiny_model
from support.tiny_runs import create_run, events_of, tiny_recipe, write_chat_rows

from whet.engine.checks.loaded import look_at_loaded
from whet.engine.methods.gpu_load import GpuLoad
from whet.engine.methods.sft import job
from whet.engine.methods.sft.first_look import kernel_failure, loaded_facts
from whet.engine.methods.watching import Watching
from whet.engine.models.loading import Precision, load_model
from whet.engine.runs.events import StepEvent

pytestmark = pytest.mark.gpu
MOST = 0.01
"""Share of a step's time that watching may take."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "llama"
    # The usual width of random weights: its first loss is that of guessing.
    return build_tiny_model(folder, wide=True, dtype="bfloat16", initializer_range=0.02)


def test_a_kernel_launches_and_the_driver_answers() -> None:
    device = torch.device("cuda", 0)
    assert kernel_failure(device) is None
    load = GpuLoad(device)
    busy = load.busy()
    assert busy is None or 0 <= busy <= 1
    assert load.others() == ()


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_watching_is_cheap_and_quiet(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dropout: float
) -> None:
    """Steps with and without CUDA graphs; the self-tests before them must not disturb their capture."""
    spent: dict[str, list[float]] = {"watching": [], "self-tests": []}

    def timed(kind: str, function: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            result = function(*args, **kwargs)
            spent[kind].append(time.perf_counter() - began)
            return result

        return run

    for name in ("on_step_end", "on_pre_optimizer_step"):
        monkeypatch.setattr(Watching, name, timed("watching", getattr(Watching, name)))
    monkeypatch.setattr(job, "self_tests", timed("self-tests", job.self_tests))
    rows = write_chat_rows(tmp_path / "rows.jsonl", 1000)
    training = {"max_steps": 400, "batch_size": 8, "save_every": 1000, "precision": "bf16"}
    run = create_run(tiny_recipe(base, rows, adapter={"dropout": dropout}, training=training))
    assert attempt(run) == "finished"
    steps = [event for event in events_of(run) if isinstance(event, StepEvent)]
    seconds = sum(event.seconds for event in steps[5:])
    calls = spent["watching"]  # two a step; the first looks at every gradient, once a run
    share = sum(calls[10:]) / seconds
    step, first, tests = seconds / len(steps[5:]), sum(calls[:2]), sum(spent["self-tests"])
    print(f"\ndropout {dropout}: watching {share:.3%} of a step of {1e3 * step:.1f} ms, "
          f"{1e3 * first:.1f} ms of the first, self-tests {tests:.2f} s")  # fmt: skip
    assert share < MOST
    assert [f for f in findings_of(run) if f.id[0] in "LT" and f.severity != "note"] == []


def test_a_loaded_model_has_nothing_to_say(base: Path) -> None:
    handle = load_model(base, Precision(device="cuda", compute_dtype="bf16", base_precision="bf16"))
    rows = tiny_recipe(base, base)
    assert [f.id for f in look_at_loaded(loaded_facts(handle, rows)) if f.severity != "note"] == []


def test_memory_that_runs_out_is_a_finding(base: Path, tmp_path: Path) -> None:
    """The process may have a hundredth of the GPU; the plan saw all of it."""
    rows = write_chat_rows(tmp_path / "rows.jsonl", 1000)
    recipe = tiny_recipe(
        base, rows, adapter={"kind": "none"}, training={"batch_size": 64, "max_steps": 2, "precision": "bf16"}
    )
    run = create_run(recipe)
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (24 << 20)) / total)
    try:
        assert attempt(run) == "run.out_of_memory"
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    (found,) = [f for f in findings_of(run) if f.id == "L11"]
    assert found.fix is not None and found.evidence["longest_row"] > 0
