"""`whet doctor --kernels`: what runs and why, what failed, and a kernel that takes its process down."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.command_line import whet

from whet.engine import kernel_backends, kernel_check, kernel_report
from whet.engine.errors import WhetError
from whet.kernels.registry import SPECS
from whet.kernels.speed import Ceilings

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU does")
MACHINE = '{"machine": {"device": "toy", "dtype": "float32", "torch": "2", "triton": "3"}, "backends": []}'


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))


@NO_GPU
def test_without_a_gpu_references_run_and_the_interpreter_checks_if_asked() -> None:
    told = whet("doctor", "--kernels", "--json")
    assert told.code == 0 and told.err == ""
    chosen = {choice["operation"]: choice["backend"] for choice in told.json["backends"]}
    assert set(chosen) >= {name for name in SPECS if name != "attention"}
    cpu = {name for name, backend in chosen.items() if backend != "reference"}
    assert cpu == {"attention, equal rows of 2048", "attention, mixed lengths", "attention, short chats"}
    assert {chosen[name] for name in cpu} == {"cpu"}
    assert told.json["parity"] == [] and told.json["speeds"] == []
    asked = whet("doctor", "--kernels", "--interpret", "--json").json
    assert {result["kernel"] for result in asked["parity"]} == set(SPECS)
    assert all(result["error"] <= result["limit"] for result in asked["parity"] if not result["problems"])
    assert [result for result in asked["parity"] if result["problems"]] == []


def test_interpret_belongs_to_kernels() -> None:
    assert whet("doctor", "--interpret").code == 2


@pytest.mark.parametrize(
    ("lines", "ending", "said"),
    [
        ([MACHINE, '{"now": "glu odd"}'], "os.kill(os.getpid(), 11)", "was ended by SIGSEGV"),
        (
            [MACHINE, '{"now": "glu odd"}'],
            "sys.exit('illegal address')",
            "ended with code 1: illegal address",
        ),
    ],
)
def test_a_crash_is_the_problem_of_the_kernel_being_checked(
    lines: list[str], ending: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_report, "start", _pretend(lines, ending))
    heard: list[str] = []
    report = kernel_report.check_kernels(progress=heard.append)
    assert heard == ["glu odd"]
    (wrong,) = report.wrong
    assert (wrong.kernel, wrong.case) == ("glu", "odd") and said in wrong.problems[0]
    answer = whet("doctor", "--kernels")
    assert answer.code == 1 and "glu odd" in answer.out and "WHET_KERNELS=reference" in answer.out


def test_a_crash_before_the_first_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_report, "start", _pretend([], "sys.exit('no driver')"))
    with pytest.raises(WhetError, match="ended with code 1: no driver") as caught:
        kernel_report.check_kernels()
    assert caught.value.code == "kernels.crashed"


def test_a_share_that_crashes_costs_its_own_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    right = '{"parity": {"kernel": "glu", "case": "odd", "dtype": "float32", "error": 0, "limit": 1}}'
    lines = ['{"now": "glu odd"}', right, '{"now": "rope empty"}']
    monkeypatch.setattr(kernel_check, "start", _pretend(lines, "os.kill(os.getpid(), 11)"))
    heard: list[dict[str, Any]] = []
    kernel_check.relay_share("1/8", heard.append)
    results = [kernel_report.ParityResult(**message["parity"]) for message in heard if "parity" in message]
    assert [(result.kernel, result.case) for result in results] == [("glu", "odd"), ("rope", "empty")]
    assert results[0].problems == [] and "was ended by SIGSEGV" in results[1].problems[0]


def test_the_shares_are_all_kernels_once() -> None:
    shared = [spec.name for number in range(3) for spec in kernel_check.kernels_of(f"{number}/3")]
    assert sorted(shared) == sorted(SPECS)


def _pretend(lines: list[str], ending: str) -> Any:
    script = f"import os, sys\nfor line in {lines!r}: print(line, flush=True)\n{ending}"

    def start(module: str, *arguments: str, stderr: Any, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=stderr, text=True
        )

    return start


def test_speeds_are_shown_with_their_share_and_beside_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = (
        '{"speed": {"kernel": "glu", "case": "8b", "direction": "forward", "milliseconds": 0.5, '
        '"rate": 4e12, "unit": "B", "share": 0.93, "plain_milliseconds": 1.25}}'
    )
    failed = '{"speed": {"kernel": "rope", "case": "8b", "direction": "both", "problem": "OutOfResources"}}'
    monkeypatch.setattr(kernel_report, "start", _pretend([MACHINE, fast, failed], ""))
    monkeypatch.setenv("COLUMNS", "120")
    lines = [line.split() for line in whet("doctor", "--kernels").out.splitlines()]
    assert ["glu", "8b", "forward", "0.500", "4,000", "GB/s", "93%", "1.250", "2.50×"] in lines
    assert ["rope", "8b", "both", "OutOfResources"] in lines


@pytest.mark.parametrize(
    ("capability", "dtype"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16), (None, torch.bfloat16)]
)
def test_what_a_gpu_computes_in(
    capability: tuple[int, int] | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_backends, "nvidia_capability", lambda device: capability)
    monkeypatch.delenv("WHET_KERNELS", raising=False)
    gpu = torch.device("cuda")
    assert kernel_backends.compute_type(gpu) == dtype
    chosen = {choice.operation: choice for choice in kernel_backends.backends(gpu)}
    assert chosen["rms_norm"].backend == "triton"
    softcap = chosen["attention, softcap"]
    assert softcap.backend == "triton" and softcap.reason
    if capability == (8, 0):
        assert chosen["attention, equal rows of 2048"].backend == "cudnn"


def test_references_by_environment_and_by_age(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    monkeypatch.setattr(kernel_backends, "nvidia_capability", lambda device: (6, 1))
    monkeypatch.delenv("WHET_KERNELS", raising=False)
    assert "6.1 is older" in kernel_backends.why_reference(gpu)
    monkeypatch.setenv("WHET_KERNELS", "reference")
    assert kernel_backends.why_reference(gpu) == "WHET_KERNELS=reference"
    assert {choice.backend for choice in kernel_backends.backends(gpu)} == {"reference"}


def test_a_kernel_that_raises_is_a_finding_and_plain_torch_may_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu = torch.device("cpu")
    spec = SPECS["rms_norm"]
    case = next(case for case in spec.cases if case.name == "odd")

    def broken(**inputs: Any) -> Any:
        raise ValueError("T is 7")

    def too_large(**inputs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    result = kernel_check._parity(replace(spec, operation=broken), case, torch.float32, cpu)
    assert result.problems == ["ValueError: T is 7"]
    timed = replace(spec, timed=(case,), reference=too_large)
    rows = list(kernel_check._speeds(timed, case, torch.float32, cpu, Ceilings(1e9, 1e9)))
    assert [row.direction for row in rows] == ["forward", "backward", "both"]
    assert all(row.milliseconds and row.rate and row.plain_milliseconds is None for row in rows)
