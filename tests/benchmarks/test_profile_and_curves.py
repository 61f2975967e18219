"""What the step profile and the loss curves make of their measurements."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


def script(name: str, patch: pytest.MonkeyPatch) -> ModuleType:
    """A benchmark's file as a module; the path entries it adds are taken back."""
    patch.syspath_prepend(str(FOLDER / "training"))
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    patch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def kernel(name: str, start: float, duration: float) -> dict[str, Any]:
    return {"cat": "kernel", "name": name, "ts": start, "dur": duration}


def test_a_trace_is_counted_by_what_ran_and_what_was_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    module = script("profile_step", monkeypatch)
    events = [
        {"cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": 0, "dur": 5},
        {"cat": "cuda_driver", "name": "cuLaunchKernelEx", "ts": 0, "dur": 5},
        {"cat": "cuda_runtime", "name": "cudaGraphLaunch", "ts": 0, "dur": 5},
        {"cat": "cuda_runtime", "name": "cudaMemcpyAsync", "ts": 0, "dur": 5},
        {"cat": "gpu_user_annotation", "name": "Optimizer.step", "ts": 0, "dur": 900},
        {"ph": "M", "name": "process_name"},
        kernel("nvjet_tst_128x256_64x4", 100, 40),
        kernel("nvjet_tst_128x256_64x4", 120, 40),  # beside the first for 20
        kernel("cudnn_generated_fort_native_sdpa_sm90_flash_fprop", 200, 10),
        kernel("vectorized_elementwise_kernel", 300, 10),
    ]
    found = module.Profile()
    module.read_trace(events, found)
    assert (found.launches, found.graphs, found.kernels) == (2, 1, 4)
    assert found.work == pytest.approx(100e-6)
    assert found.busy == pytest.approx(80e-6)
    assert found.products == pytest.approx(80e-6)
    assert found.attention == pytest.approx(10e-6)
    name, count, seconds = found.top[0]
    assert (name, count) == ("nvjet_tst_128x256_64x4", 2)
    assert seconds == pytest.approx(80e-6)


def test_a_curve_is_judged_by_its_distance_from_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    module = script("loss_curves", monkeypatch)
    curves = {
        "hf fp32": [2.0, 1.0],
        "hf bf16": [2.02, 1.01],
        "hf nf4": [2.2, 1.1],
        "whet fp32": [2.0, 1.00002],
        "whet bf16": [2.02, 1.012],
        "whet fp8": [2.02, 1.012],
        "whet nf4": [2.2, 1.05],
    }
    said = {name: module.verdict(name, curves) for name in curves}
    assert said["hf bf16"] == ""
    assert said["whet fp32"].endswith(": not met")
    assert said["whet bf16"] == "no farther than hf bf16: 1.10× its rms, not met"
    assert said["whet fp8"] == "last losses within 0.5% of bf16's: +0.066%, met"
    assert said["whet nf4"] == "no farther than hf nf4: 0.79× its rms, met"
    table = module.table(curves)
    assert "| whet fp32 | 2.000000 | 1.500010 | 2.00e-05 | 2 |" in table
    assert "| whet nf4 | 1.0e-01 | 5.0e-02 |" in table
