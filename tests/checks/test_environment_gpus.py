"""GPUs' health and their compiled kernels, as they are read and judged."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from support.fake_surroundings import FakeGPU, environ, gpu, look_at, nvml, versions
from support.plan_inputs import machine

from whet.engine import hardware
from whet.engine.checks.gpu_health import LOW_POWER
from whet.engine.findings import Finding
from whet.engine.surroundings.facts import GPUHealth, GPUProcess, KernelCache, Surroundings
from whet.engine.surroundings.gpu_health import read_gpu_health
from whet.engine.surroundings.kernel_caches import kernel_names, read_caches

GIB = 2**30
HERE = machine(versions=versions())
WITH_GPU = machine(gpu(), versions=versions())


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def ids(findings: list[Finding]) -> list[str]:
    return [f"{finding.severity} {finding.id}" for finding in findings]


# --- E07


def test_gpus_through_nvml() -> None:
    with nvml(FakeGPU(processes=[(os.getpid(), GIB)], busy=30, limit=650_000), FakeGPU(slices=2)):
        first, second = read_gpu_health(["GPU-0"])
    assert (first.visible, second.visible) == (True, False)
    assert first.processes == [
        GPUProcess(pid=os.getpid(), name="this process", user=first.processes[0].user, memory=GIB)
    ]
    assert (first.utilization, first.power_limit, first.power_default) == (30, 650.0, 700.0)
    assert (second.mig, second.slices) == (True, ["MIG-1-0", "MIG-1-1"])


def test_questions_a_gpu_does_not_answer_stay_open(monkeypatch: pytest.MonkeyPatch) -> None:
    with nvml(FakeGPU()):
        module: Any = sys.modules["pynvml"]

        def refuse(*_: object) -> None:
            raise module.NVMLError("not supported")

        for name in vars(module).copy():
            if name.startswith("nvmlDeviceGet") and name.removeprefix("nvmlDeviceGet") not in (
                "Count", "HandleByIndex", "MemoryInfo", "Name", "UUID",
            ):  # fmt: skip
                setattr(module, name, refuse)
        (one,) = read_gpu_health(["GPU-0"])
    assert one == GPUHealth(index=0, uuid="GPU-0", name=one.name, memory_total=80 * GIB, memory_free=79 * GIB)
    assert look_at(Surroundings(gpus=[one]), WITH_GPU) == []


def test_no_driver_no_health(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert read_gpu_health([]) == []


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"processes": [GPUProcess(pid=9, memory=300 * 2**20)], "utilization": 2}, []),  # a desktop
        ({"processes": [GPUProcess(pid=9, name="this process", memory=9 * GIB)], "utilization": 99}, []),
        ({"processes": [GPUProcess(pid=9, memory=9 * GIB)], "holder": "run-1"}, ["note E07"]),
        ({"processes": [GPUProcess(pid=9)], "utilization": 90}, ["warning E07"]),
        ({"utilization": 90}, []),  # just ended, or another container's: nobody to name
        ({"power_limit": LOW_POWER * 700 + 1, "power_default": 700}, []),
        ({"power_limit": LOW_POWER * 700 - 1, "power_default": 700}, ["warning E07"]),
        ({"compute_mode": "exclusive"}, []),
        ({"compute_mode": "exclusive", "processes": [GPUProcess(pid=9, memory=1)]}, ["error E07"]),
        ({"rows_failed": True}, ["error E07"]),
        ({"slowed_by": ["power brake"]}, ["warning E07"]),
        ({"mig": True, "visible": False}, []),  # not the one that is used
    ],
)
def test_gpu_states(changes: dict[str, Any], expected: list[str]) -> None:
    one = GPUHealth.model_validate({"index": 0, "uuid": "GPU-0", "name": "H100"} | changes)
    assert ids(look_at(Surroundings(gpus=[one]), WITH_GPU)) == expected


@pytest.mark.parametrize(
    "asked, expected", [("", []), ("-1", []), ("3", ["warning E07"]), ("MIG-0-1", ["warning E07"])]
)
def test_hidden_gpus(asked: str, expected: list[str]) -> None:
    with nvml(FakeGPU(slices=2)), environ(CUDA_VISIBLE_DEVICES=asked):
        here = hardware.inspect_machine().model_copy(update={"versions": versions()})
        around = Surroundings(gpus=read_gpu_health([]), flags={"CUDA_VISIBLE_DEVICES": asked})
    assert here.gpus == []
    assert ids(look_at(around, here)) == expected


# --- E04, E09


def entry(cache: Path, name: str, triton: str = "3.7.1", arch: int = 90) -> Path:
    """An entry as Triton lays it out."""
    folder = cache / f"{name}-{arch}-{triton}"
    folder.mkdir(parents=True)
    metadata = {
        "target": {"backend": "cuda", "arch": arch, "warp_size": 32},
        "triton_version": triton,
        "name": name,
    }
    (folder / f"{name}.json").write_text(json.dumps(metadata))
    (folder / f"{name}.cubin").write_bytes(b"\x7fELF")
    (folder / f"__grp__{name}.json").write_text('{"child_paths": {}}')
    return folder


def test_caches_are_read_by_version_and_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "none"))
    ours = min(kernel_names())
    entry(tmp_path / "triton", ours)
    entry(tmp_path / "triton", "somebody_elses_kernel")
    entry(tmp_path / "triton", ours, triton="3.5.0")
    entry(tmp_path / "triton", ours, arch=80)
    (tmp_path / "triton" / "launcher").mkdir()
    (tmp_path / "triton" / "launcher" / "__triton_launcher.so").write_bytes(b"\x7fELF")
    (cache,) = read_caches(WITH_GPU)
    assert (cache.entries, cache.usable, cache.more, cache.broken) == (4, 2, False, {})
    assert cache.foreign == {"triton 3.5.0, sm_90": 1, "triton 3.7.1, sm_80": 1}
    assert cache.kernels == [ours] and cache.known == len(kernel_names())
    assert look_at(Surroundings(caches=[cache]), WITH_GPU) == []
    assert read_caches(HERE) == []  # without a GPU nobody will compile


def test_whets_kernels_are_known_by_name() -> None:
    names = kernel_names()
    assert {"norm_kernel", "adamw_kernel", "_normalize_rows"} <= names
    assert "_angles" not in names and len(names) > 20  # a part of a kernel is none


def test_a_cold_cache_is_no_matter_without_triton(tmp_path: Path) -> None:
    cold = KernelCache(name="triton", path=tmp_path, known=40)
    assert ids(look_at(Surroundings(caches=[cold]), WITH_GPU)) == ["note E09"]
    assert look_at(Surroundings(caches=[cold]), HERE) == []
    assert look_at(Surroundings(caches=[cold], flags={"WHET_KERNELS": "reference"}), WITH_GPU) == []


def test_many_broken_entries_are_purged_with_the_folder(tmp_path: Path) -> None:
    few = KernelCache(
        name="triton", path=tmp_path, broken={f"{tmp_path}/a b": "x.cubin is empty"}, kernels=["k"]
    )
    many = few.model_copy(update={"broken": {f"{tmp_path}/{number}": "cut" for number in range(20)}})
    commands = []
    for cache in (few, many):
        (found,) = look_at(Surroundings(caches=[cache]), WITH_GPU)
        assert found.fix is not None
        commands.append(found.fix.command)
    assert commands == [f"rm -rf '{tmp_path}/a b'", f"rm -rf {tmp_path}"]
