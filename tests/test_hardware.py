"""What the machine has: without a GPU, with one (a stand-in for NVML), and inside a container's limits."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from support.plan_inputs import gpu, machine

from whet.engine import hardware
from whet.engine.hardware import inspect_machine, supports_bf16, usable_cores


def nvml(count: int = 2, capability: tuple[int, int] = (9, 0)) -> ModuleType:
    """A stand-in with the NVML calls that are used: GPUs with four NVLink connections, one of them down."""
    module = ModuleType("pynvml")

    class NVMLError(Exception):
        pass

    def link_state(handle: int, link: int) -> int:
        if link >= 4:
            raise NVMLError("no such link")
        return int(link != 2)

    module.__dict__.update(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlSystemGetDriverVersion=lambda: "580.65",
        nvmlDeviceGetCount=lambda: count,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(total=80 * 2**30, free=79 * 2**30),
        nvmlDeviceGetName=lambda handle: f"GPU {handle}",
        nvmlDeviceGetUUID=lambda handle: f"GPU-{handle}aaa",
        nvmlDeviceGetCudaComputeCapability=lambda handle: capability,
        nvmlDeviceGetNvLinkState=link_state,
    )
    return module


@pytest.fixture(autouse=True)
def visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_this_machine() -> None:
    seen = inspect_machine()
    assert 1 <= seen.cpu_count <= (usable_cores() or 1)
    assert 0 < seen.ram_available <= seen.ram_total
    assert seen.disk_free > 0
    assert seen.versions["torch"]
    assert seen.label


def test_without_nvml_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)  # makes `import pynvml` fail
    seen = inspect_machine()
    assert seen.gpus == [] and "nvidia-ml-py" in seen.gpu_note
    assert seen.device == "cpu"


def test_gpus_through_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml())
    seen = inspect_machine()
    assert [(one.index, one.uuid, one.capability) for one in seen.gpus] == [
        (0, "GPU-0aaa", (9, 0)),
        (1, "GPU-1aaa", (9, 0)),
    ]
    assert seen.device == "cuda" and seen.label == "GPU 0" and seen.gpus[0].driver == "580.65"
    assert seen.gpus[0].nvlinks == 3
    assert 0 < seen.gpus[0].link_rate < 3 * 25e9


@pytest.mark.parametrize(
    "value, expected", [("1", [1]), ("1,0", [1, 0]), ("GPU-1", [1]), ("", []), ("-1", []), ("0,7,1", [0])]
)
def test_cuda_visible_devices(value: str, expected: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert [one.index for one in inspect_machine().gpus] == expected


def test_a_mig_slice_is_said_to_be_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1234")
    seen = inspect_machine()
    assert seen.gpus == [] and "MIG-1234" in seen.gpu_note


@pytest.mark.parametrize(
    "gpus, expected",
    [([(9, 0)], True), ([(8, 0)], True), ([(7, 5)], False), ([(9, 0), (7, 5)], False), ([], False)],
)
def test_bf16_follows_the_capability(gpus: list[tuple[int, int]], expected: bool) -> None:
    assert supports_bf16(machine(*(gpu(capability=one) for one in gpus))) is expected


def test_container_limits_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "memory.max").write_text(f"{2**30}\n")
    (tmp_path / "memory.current").write_text(f"{2**29}\n")
    (tmp_path / "memory.stat").write_text(f"anon 1\ninactive_file {2**28}\nactive_file 5\n")
    monkeypatch.setattr(hardware, "CGROUP", tmp_path)
    seen = inspect_machine()
    assert seen.cpu_count == 1
    assert seen.ram_total == 2**30
    assert seen.ram_available == 2**29 + 2**28

    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert inspect_machine().ram_total > 2**30


def test_fast_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    seconds = []
    for _ in range(3):
        hardware._versions.cache_clear()
        start = time.process_time()
        inspect_machine()
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.05


def test_light() -> None:
    code = (
        "import sys; from whet.engine.hardware import inspect_machine; inspect_machine();"
        "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    assert done.stdout.strip() == "[]"
