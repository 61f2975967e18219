"""`whet doctor --kernels`: what runs and why, what failed, and a kernel that takes its process down."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.command_line import whet

from whet.engine import kernel_backends, kernel_check, kernel_check_units, kernel_report
from whet.engine.errors import WhetError
from whet.engine.kernel_check_units import Unit
from whet.engine.processes import start
from whet.kernels.registry import SPECS
from whet.kernels.speed import Ceilings, call_once

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU does")
BEGUN = '{"now": "glu odd", "number": 12, "of": 354}'
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
        ([MACHINE, BEGUN], "os.kill(os.getpid(), 11)", "was ended by SIGSEGV"),
        (
            [MACHINE, BEGUN],
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
    assert heard == ["12 of 354: glu odd"]
    (wrong,) = report.wrong
    assert (wrong.kernel, wrong.case) == ("glu", "odd") and said in wrong.problems[0]
    answer = whet("doctor", "--kernels")
    assert answer.code == 1 and "glu odd" in answer.out and "WHET_KERNELS=reference" in answer.out


def test_a_crash_before_the_first_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_report, "start", _pretend([], "sys.exit('no driver')"))
    with pytest.raises(WhetError, match="ended with code 1: no driver") as caught:
        kernel_report.check_kernels()
    assert caught.value.code == "kernels.crashed"


HELPER = """
import json, os, sys
for line in sys.stdin:
    kind, kernel, case = json.loads(line)
    if case == "dead":
        sys.exit(3)
    print(json.dumps({"now": f"{kernel} {case}"}), flush=True)
    if case == "crash":
        os.kill(os.getpid(), 11)
    if kind == "parity":
        row = {"kernel": kernel, "case": case, "dtype": "float32", "error": 0, "limit": 1}
        print(json.dumps({"parity": row}), flush=True)
    print('{"finished": true}', flush=True)
"""


def helper(ends: list[int]) -> Any:
    """A stand-in for the process that does units; counts how many were started."""

    def start(module: str, *arguments: str, stderr: Any, **variables: str) -> subprocess.Popen[str]:
        ends.append(1)
        assert (module, arguments) == ("whet.engine.kernel_check", ("units", "1024"))
        return subprocess.Popen(
            [sys.executable, "-c", HELPER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    return start


def shared(units: list[Unit], processes: int, monkeypatch: pytest.MonkeyPatch) -> tuple[set[Unit], Any, int]:
    """What was lost, the results, and how many processes it took."""
    started: list[int] = []
    heard: list[dict[str, Any]] = []
    monkeypatch.setattr(kernel_check_units, "start", helper(started))
    lost = kernel_check_units.share(units, processes, 1024, heard.append)
    results = [kernel_report.ParityResult(**message["parity"]) for message in heard if "parity" in message]
    return lost, results, len(started)


def test_all_units_are_done_once_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    units = [Unit("parity", "glu", str(number)) for number in range(12)] + [Unit("compile", "glu", "8b")]
    lost, results, started = shared(units, 3, monkeypatch)
    assert lost == set() and 1 <= started <= 3
    assert sorted(int(result.case) for result in results) == list(range(12))
    _, results, started = shared(units, 1, monkeypatch)
    assert [int(result.case) for result in results] == list(range(12)) and started == 1


def test_a_unit_that_crashes_costs_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    units = [
        Unit("parity", "glu", "odd"),
        Unit("parity", "rope", "crash"),
        Unit("compile", "nf4", "crash"),
        Unit("parity", "rope", "plain"),
    ]
    lost, results, started = shared(units, 1, monkeypatch)
    assert lost == set(units[1:3]) and started == 3
    wrong = [(one.kernel, one.case, *one.problems) for one in results if one.problems]
    assert wrong == [(unit.kernel, unit.case, "the process was ended by SIGSEGV") for unit in units[1:3]]
    assert [one.case for one in results if not one.problems] == ["odd", "plain"]


def test_processes_that_do_not_start_leave_what_was_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    units = [Unit("parity", "glu", "dead"), Unit("compile", "nf4", "dead"), Unit("parity", "rope", "dead")]
    lost, results, started = shared(units, 2, monkeypatch)
    assert lost == set() and started == 2
    assert {one.kernel for one in results} == {"glu", "rope"}
    assert all("was not checked" in one.problems[0] for one in results)


def test_a_process_does_the_units_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """In Triton's interpreter, as the GPU's processes do them."""
    heard: list[dict[str, Any]] = []
    monkeypatch.setattr(kernel_check_units, "start", partial(start, TRITON_INTERPRET="1"))
    said = kernel_check_units.Counted(heard.append, 2)
    assert kernel_check_units.share([Unit("parity", "rms_norm", "odd")], 1, 1024, said) == set()
    assert heard[0] == {"now": "rms_norm odd", "number": 1, "of": 2}
    results = [kernel_report.ParityResult(**message["parity"]) for message in heard[1:]]
    assert {one.dtype for one in results} == {"float32", "bfloat16", "float16"}
    assert not any(one.problems for one in results)


def test_the_units_are_all_cases_and_the_long_ones_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    units = kernel_check.parity_units()
    every = [("parity", spec.name, case.name) for spec in SPECS.values() for case in spec.cases]
    assert sorted(units) == sorted(every) and len(set(units)) == len(units)
    timed = [Unit("compile", spec.name, case.name) for spec in SPECS.values() for case in spec.timed]
    assert len(set(timed)) == len(timed)
    ordered = kernel_check.in_order([*timed, *units])
    assert sorted(ordered) == sorted([*timed, *units])
    attention = SPECS["attention"]
    first = ordered[: len(attention.timed) + len(attention.cases)]
    assert {unit.kernel for unit in first} == {"attention"} and first[0].kind == "compile"


def test_what_cannot_be_compiled_ahead_is_said_when_it_is_timed() -> None:
    cpu, heard = torch.device("cpu"), list[dict[str, Any]]()
    kernel_check.do(Unit("compile", "decode_attention", "0.6b"), cpu, heard.append)
    assert heard == [{"now": "decode_attention 0.6b"}]

    def broken(**inputs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    spec = replace(SPECS["rms_norm"], operation=broken)
    kernel_check._compile(spec, spec.cases[0], cpu)
    rows = list(kernel_check._speeds(spec, spec.cases[0], cpu, Ceilings(1e9, 1e9)))
    assert {row.problem for row in rows} == {"OutOfMemoryError: CUDA out of memory"}


def test_what_is_timed_is_compiled_before_in_every_direction() -> None:
    ran: list[bool] = []

    def operation(x: torch.Tensor) -> torch.Tensor:
        ran.append(x.requires_grad)
        return 2 * x

    spec = replace(SPECS["l2_normalize"], operation=operation, differentiable=("x",), frozen=())
    call_once(spec, {"x": torch.ones(3)})
    assert ran == [False, True]
    call_once(replace(spec, differentiable=()), {"x": torch.ones(3)})
    assert ran == [False, True, False]


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
    rows = list(kernel_check._speeds(timed, case, cpu, Ceilings(1e9, 1e9)))
    assert [row.direction for row in rows] == ["forward", "backward", "both"]
    assert all(row.milliseconds and row.rate and row.plain_milliseconds is None for row in rows)
