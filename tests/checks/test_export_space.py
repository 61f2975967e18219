"""Bytes are counted a filesystem at a time; an export's tools are tried with the model's own files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.plan_inputs import GIB, chat_recipe, gpu, machine, model_facts, plan_facts, recipe, write_chats
from support.tiny_models import build_tiny_model

from whet.engine.checks.export import disk_space
from whet.engine.disk import disk_bytes
from whet.engine.export.gguf import probe
from whet.engine.hardware import Disk, Machine, inspect_machine
from whet.engine.models.facts import read_model_facts
from whet.engine.plan import make_plan
from whet.engine.settings import settings


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))


def disks(**free: int) -> Machine:
    """Home, hub and temporary files each on a filesystem of its own."""
    made = [
        Disk(folder=name, path=Path("/") / name, device=number, free=free.get(name, 1000 * GIB))  # type: ignore[arg-type]
        for number, name in enumerate(("home", "hub", "temporary"))
    ]
    return machine(gpu(), disks=made)


@pytest.mark.parametrize(
    ("full", "variable", "patch"),
    [
        ("home", "WHET_HOME", {"training.keep_checkpoints": 1}),
        ("hub", "HF_HOME", {}),
        ("temporary", "TMPDIR", {}),
    ],
)
def test_the_disk_that_is_too_small_is_named(
    tmp_path: Path, full: str, variable: str, patch: dict[str, int]
) -> None:
    needs = {"checkpoints": 3 * GIB, "download": 3 * GIB, "temporary": 3 * GIB}
    model = model_facts(tmp_path / "model")
    assert list(disk_space.run(plan_facts(model, on=disks(), disk_bytes=needs))) == []
    (finding,) = disk_space.run(plan_facts(model, on=disks(**{full: 2 * GIB}), disk_bytes=needs))
    assert finding.id == "X02" and finding.severity == "error" and variable in finding.title
    assert finding.evidence["folders"] == [full] and sum(finding.evidence["needed_gib"].values()) == 3
    assert finding.fix is not None and finding.fix.patch == patch
    assert (finding.fix.command or "").startswith(f"export {variable}=")


def test_folders_on_one_disk_share_it(tmp_path: Path) -> None:
    one = [
        Disk(folder="home", path=Path("/a"), device=7, free=5 * GIB),
        Disk(folder="hub", path=Path("/b"), device=7, free=5 * GIB),
    ]
    needs = {"checkpoints": 3 * GIB, "download": 3 * GIB}
    facts = plan_facts(model_facts(tmp_path / "model"), on=machine(gpu(), disks=one), disk_bytes=needs)
    (finding,) = disk_space.run(facts)
    assert finding.evidence["folders"] == ["home", "hub"]


def test_this_machine_tells_where_whet_writes() -> None:
    found = {disk.folder: disk for disk in inspect_machine().disks}
    assert set(found) == {"home", "hub", "temporary"} and all(disk.free > 0 for disk in found.values())
    assert found["home"].path == settings().home


def test_a_hub_models_weights_are_still_to_come(tmp_path: Path) -> None:
    """A folder of one's own without weights gets none."""
    facts = model_facts(tmp_path / "model")
    plan = plan_facts(facts)
    assert disk_bytes(plan.recipe, plan.resolved, facts)["download"] == 2 * facts.parameters.total
    own = recipe(model__name=str(tmp_path / "model"))
    assert disk_bytes(own, plan.resolved, facts)["download"] == 0


def test_the_trial_runs_once_for_a_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_tiny_model(tmp_path / "model")
    rows = read_model_facts(model).embedding_rows
    asked: list[str] = []
    real = probe.choose_pretokenizer

    def counted(*arguments: Any) -> str:
        asked.append(real(*arguments))
        return asked[-1]

    monkeypatch.setattr(probe, "choose_pretokenizer", counted)
    assert probe.conversion_refusal(model, rows) is None and len(asked) == 1
    assert probe.conversion_refusal(model, rows) is None and len(asked) == 1
    refused = probe.conversion_refusal(model, rows - 1)
    assert refused is not None and refused.code == "gguf.vocab_mismatch"
    wanted = chat_recipe(model, write_chats(tmp_path / "chats.jsonl", 200), export__gguf=["q8_0"])
    assert make_plan(wanted, machine=machine()).blocked() == [] and len(asked) == 1
