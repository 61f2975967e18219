"""The environment's checks on a real GPU: NVML's answers, bitsandbytes' library, a cache of kernels."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from support.fake_surroundings import look_at

from whet.engine import api
from whet.engine.hardware import Machine, inspect_machine
from whet.engine.surroundings import inspect_surroundings, probes
from whet.engine.surroundings.facts import Surroundings
from whet.engine.surroundings.packages import library_name, read_packages, wanted_bitsandbytes

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.fixture
def machine() -> Machine:
    found = inspect_machine()
    assert found.gpus, found.gpu_note
    return found


def test_nvml_answers_and_the_gpu_is_well(machine: Machine) -> None:
    found = inspect_surroundings(machine)
    (one, *_) = [gpu for gpu in found.gpus if gpu.visible]
    assert one.uuid == machine.gpus[0].uuid and one.memory_total == machine.gpus[0].memory_total
    assert one.power_limit and one.power_default and one.temperature
    assert [f for f in look_at(Surroundings(gpus=found.gpus), machine) if f.severity == "error"] == []


def test_a_gpu_that_is_not_there_is_noticed(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "99")
    hidden = inspect_machine()
    assert hidden.gpus == []
    found = [f for f in look_at(inspect_surroundings(hidden), hidden) if f.id == "E07"]
    assert found and found[0].fix is not None
    assert machine.gpus[0].uuid in (found[0].fix.command or "")


def test_the_library_of_bitsandbytes_loads_and_another_is_missed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = read_packages()
    library = probes.bitsandbytes_library(packages, gpu=True)
    assert library is not None and library.name == library_name(wanted_bitsandbytes(packages))
    assert probes.load_library(library).error == ""
    monkeypatch.setenv("BNB_CUDA_VERSION", "999")
    found = look_at(inspect_surroundings(machine), machine)
    assert "E02" in {finding.id for finding in found if finding.severity == "error"}


def test_kernels_warm_the_cache(home: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(home / "triton"))
    assert "E09" in {finding.id for finding in look_at(inspect_surroundings(machine), machine)}
    began, heard = time.monotonic(), list[str]()
    report = api.check_kernels(progress=heard.append)
    print(f"\nkernels checked with a cold cache in {time.monotonic() - began:.0f} s")
    assert [(one.kernel, one.case, *one.problems) for one in report.wrong] == []
    number, _, of = heard[-1].partition(":")[0].partition(" of ")
    assert number == of and len(heard) == int(of)
    found = inspect_surroundings(machine, slow=False)
    assert "E09" not in {finding.id for finding in look_at(found, machine)}
    (cache,) = [one for one in found.caches if one.name == "triton"]
    assert cache.usable and not cache.broken and not cache.foreign


def test_the_doctor_finds_a_healthy_machine(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    report = api.doctor()
    assert report.surroundings.llama_cpp is not None and report.surroundings.llama_cpp.status == "works"
    assert report.surroundings.imports is not None and report.surroundings.imports.failed is None
    serious = [finding for finding in report.findings if finding.severity != "note"]
    assert serious == [], [finding.title for finding in serious]
    assert os.environ.get("HF_TOKEN", "-none-") not in report.model_dump_json()
