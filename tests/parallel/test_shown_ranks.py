"""What people see of several GPUs: the plan, the fit meter, the form, a run's figures, the machine."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console, RenderableType
from support.fake_surroundings import FakeGPU, nvml, versions
from support.plan_inputs import chat_recipe, gpu, machine, plan_for, write_chats
from support.tiny_models import build_tiny_model

from whet.engine import api, hardware
from whet.engine.doctor import report_of
from whet.engine.plan import Plan, make_plan
from whet.engine.surroundings.facts import GPUHealth, Surroundings
from whet.engine.surroundings.gpu_links import read_links, shared_memory_bytes
from whet.tui.home_advice import machine_line
from whet.tui.render.machine import machine_report
from whet.tui.render.plan import plan_details
from whet.tui.run_state import RunProgress
from whet.tui.screens.new_run.draft import Draft
from whet.tui.screens.new_run.fields import Field, fields_of, words_of
from whet.tui.screens.new_run.messages import Situation
from whet.tui.screens.new_run.settings_step import several_gpus
from whet.tui.screens.run.figures import figure_rows
from whet.tui.screens.run.look import Look
from whet.tui.widgets.fit_meter import LOOKS, legend, verdict, way_out

EIGHT = machine(
    *[gpu(14).model_copy(update={"index": n, "uuid": f"GPU-{n}", "name": "H20"}) for n in range(8)],
    ram_gib=256,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 8B shape with a tiny tokenizer, and rows beside it."""
    folder = tmp_path_factory.mktemp("shown")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WHET_HOME", str(folder / "home"))
        tiny = build_tiny_model(folder / "tiny", "llama")
        plan_for(tiny, folder, 80)
    shutil.rmtree(tiny)
    return folder / "8b"


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))


def planned(model: Path, on: hardware.Machine = EIGHT, **patch: Any) -> Plan:
    return make_plan(chat_recipe(model, write_chats(model.parent / "rows.jsonl", 1200), **patch), machine=on)


def text_of(shown: RenderableType) -> str:
    console = Console(width=200, no_color=True)
    with console.capture() as caught:
        console.print(shown)
    return caught.get()


def test_a_plan_on_several_gpus_says_what_each_does(model: Path) -> None:
    shares = planned(model)
    assert (shares.resolved.strategy, shares.memory.fits) == ("fsdp", True)
    text, ranks = text_of(plan_details(shares)), shares.resolved.ranks
    assert f"GPU memory on each of {ranks} GPUs" in text and f"{ranks}, weights in shares (FSDP)" in text
    assert (
        f"of 8 rows ({shares.resolved.batch_size} × {shares.resolved.gradient_accumulation} × {ranks}" in text
    )
    assert "exchange " in text and "ms a step for what they exchange" in text
    assert Plan.model_validate_json(shares.model_dump_json()) == shares
    assert not any(one.id in ("E13", "L11") for one in shares.findings)


def test_one_of_several_gpus_is_told_what_the_others_would_bring(model: Path) -> None:
    plan = planned(model, model__precision="nf4")
    assert plan.resolved.ranks == 1 and "hardware.gpus=8 would share each step" in text_of(plan_details(plan))
    alone = planned(model, machine(gpu(14)), model__precision="nf4")
    assert "GPUs" not in text_of(plan_details(alone)).replace("GPU memory", "")


def test_a_number_that_cannot_be_blocks_with_one_that_can(model: Path) -> None:
    plan = planned(model, hardware__gpus=3)
    (said,) = [one for one in plan.blocked() if one.id == "E13"]
    assert said.fix is not None and said.fix.patch == {"hardware.gpus": 2}


def test_what_no_setting_fits_is_told_how_many_gpus_would(model: Path) -> None:
    one = machine(gpu(14), ram_gib=256)
    tight = {"adapter__rank": 4, "training__gradient_checkpointing": "on"}
    plan = planned(model, one, **tight)
    assert not plan.memory.fits and plan.fitting_gpus is not None and plan.fitting_gpus > 1
    assert f"{plan.fitting_gpus} such GPUs" in text_of(plan_details(plan))
    assert "such GPUs" in way_out(plan.model_copy(update={"alternatives": []}))


def test_the_meter_counts_one_rank_and_says_how_many_there_are(model: Path) -> None:
    plan = planned(model)
    assert verdict(plan).plain.endswith(f"GPU memory × {plan.resolved.ranks}")
    assert set(plan.memory.components) <= set(LOOKS)
    assert "exchange" in " ".join(line.plain for line in legend(plan, 200))


def test_the_field_is_there_where_there_is_a_choice(model: Path) -> None:
    def offered(plan: Plan, text: str = "") -> bool:
        draft = Draft()
        draft.text = text or "model: {name: demo}\ndata: {train: demo}\n"
        return several_gpus(replace(Situation(draft), plan=plan))

    alone = planned(model, machine(gpu(80)))
    assert offered(planned(model)) and not offered(alone)
    asked = "model: {name: demo}\ndata: {train: demo}\nhardware: {gpus: 2}\n"
    assert offered(alone, asked)


def test_the_field_steps_from_auto_over_powers_of_two() -> None:
    field = next(one for one in fields_of(api.Recipe.model_json_schema()) if one.key == "hardware.gpus")
    assert isinstance(field, Field) and field.word == "auto" and field.kind == "whole"
    assert [field.step(value, True) for value in ("auto", 1, 2, 4)] == [1, 2, 4, 8]
    assert [field.step(value, False) for value in ("auto", 1, 2, 4)] == ["auto", "auto", 1, 2]
    assert field.value_of("auto") == "auto" and field.value_of("4") == 4 and words_of("auto") == "auto"


def test_a_run_shows_every_gpu_it_holds(model: Path) -> None:
    def health(index: int, holder: str) -> GPUHealth:
        return GPUHealth(
            index=index, uuid=f"GPU-{index}", name="H20", memory_total=100 << 30, memory_free=40 << 30,
            holder=holder, utilization=90 + index,
        )  # fmt: skip

    state = SimpleNamespace(gpu="GPU-1", attempt=1)
    summary: Any = SimpleNamespace(id="mine", state=state, status="running")
    gpus = [health(0, "other"), health(1, "mine"), health(2, "mine"), health(3, "")]
    look = Look(summary=summary, now=0.0, gpus=gpus)
    assert [one.index for one in look.held] == [1, 2]
    rows = figure_rows(look, RunProgress(), None)
    assert [(name, value.plain) for name, value in rows if name.startswith("GPU")] == [
        ("GPU 1", "91% busy"),
        ("GPU 2", "92% busy"),
    ]


def test_the_doctor_tells_how_gpus_reach_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with nvml(FakeGPU(nvlinks=18), FakeGPU(nvlinks=18), FakeGPU(socket=1)):
        seen = hardware.inspect_machine().model_copy(update={"versions": versions()})
        links = read_links([one.uuid for one in seen.gpus])
        assert read_links([seen.gpus[0].uuid]) == []
    assert [one.kind for one in links] == ["nvlink", "host", "host"]
    assert seen.gpus[0].nvlinks == 18 and seen.gpus[2].nvlinks == 0
    report = report_of(seen, Surroundings(links=links, shared_memory=64 << 20))
    text = text_of(machine_report(report))
    assert "0-1 by NVLink; 0-2 1-2 through host memory, across sockets; /dev/shm 64.0 MiB" in text
    assert {one.id for one in report.findings} == {"E13"}
    assert "192" in next(one.title for one in report.findings if "shm" in one.title)


def test_the_first_screen_counts_gpus_of_one_name_together() -> None:
    assert machine_line(EIGHT, "no").startswith("8 × H20 112/112 GiB · ")
    mixed = machine(*EIGHT.gpus[:1], gpu(80))
    assert machine_line(mixed, "no").startswith("H20 14/14 GiB · Test GPU 80/80 GiB · ")


def test_shared_memory_is_measured_where_it_is(tmp_path: Path) -> None:
    assert (shared_memory_bytes(tmp_path) or 0) > 0
    assert shared_memory_bytes(tmp_path / "none") is None
