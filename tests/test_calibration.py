"""What is known of a GPU's speed: measured figures first, then its name, then its age."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.plan_inputs import TESTED_VERSIONS, gpu, machine

from whet.engine import calibration
from whet.engine.calibration import (
    BY_CAPABILITY,
    TYPICAL,
    Ceilings,
    ceilings_of,
    known_ceilings,
    remember,
    typical,
)
from whet.engine.errors import WhetError


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))


def named(name: str, capability: tuple[int, int] = (9, 0)) -> Ceilings:
    return typical(gpu(capability=capability).model_copy(update={"name": name}))


def test_names_find_their_figures() -> None:
    table = dict(TYPICAL)
    assert named("NVIDIA H200") is table["H200"]
    assert named("NVIDIA H100 80GB HBM3") is table["H100"]
    assert named("NVIDIA H100 PCIe") is table["H100 PCIe"]
    assert named("NVIDIA L40S") is table["L40S"] and named("NVIDIA L4") is table["L4"]
    assert named("NVIDIA A100-SXM4-80GB", (8, 0)) is table["A100"]
    assert named("NVIDIA GeForce RTX 4090", (8, 9)) is table["4090"]
    assert named("Tesla T4", (7, 5)) is table["T4"]
    names = [part for part, _ in TYPICAL]
    # A name that is part of a later one would hide it.
    assert all(name not in later for at, name in enumerate(names) for later in names[at + 1 :])


def test_unknown_names_go_by_capability() -> None:
    ages = dict(BY_CAPABILITY)
    assert named("Some GPU", (9, 0)) is ages[9, 0]
    assert named("Some GPU", (8, 6)) is ages[8, 0]
    assert named("Some GPU", (12, 0)) is ages[10, 0]
    assert named("Some GPU", (6, 1)) is ages[7, 0]


def test_a_measurement_belongs_to_gpu_driver_and_torch() -> None:
    here = machine(gpu())
    assert ceilings_of(machine()) is None
    assert known_ceilings(here) is None and ceilings_of(here) is typical(gpu())
    measured = typical(gpu()).model_copy(update={"matmul": 1.5e14, "measured": True})
    remember(here, measured)
    assert known_ceilings(here) == ceilings_of(here) == measured
    other_driver = gpu().model_copy(update={"driver": "999.1"})
    assert known_ceilings(machine(other_driver)) is None
    assert known_ceilings(machine(gpu(), versions=TESTED_VERSIONS | {"torch": "9.9"})) is None
    remember(machine(other_driver), typical(gpu()))
    assert known_ceilings(here) == measured  # both are kept


def test_calibrating_takes_the_last_line_and_says_why_it_failed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import sys

    def process(code: str) -> None:
        def start(module: str, *, stderr: object) -> object:
            import subprocess

            assert module == "whet.engine.calibration_process"
            command = [sys.executable, "-c", code]
            return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)  # type: ignore[call-overload]

        monkeypatch.setattr(calibration, "start", start)

    figures = typical(gpu()).model_copy(update={"measured": True})
    process(f"print('noise'); print({figures.model_dump_json()!r})")
    here = machine(gpu())
    assert calibration.calibrate(here) == figures == known_ceilings(here)
    process("import sys; sys.exit('no memory left')")
    with pytest.raises(WhetError, match="no memory left") as caught:
        calibration.calibrate(here)
    assert caught.value.code == "calibration.failed"
    assert known_ceilings(here) == figures


def test_limit_and_ramp_are_the_line_through_two_points() -> None:
    from whet.engine.calibration_process import limit_and_ramp

    limit, ramp = 570e12, 920.0
    points = [(limit * n / (n + ramp), float(n)) for n in (2048, 16384)]
    found = limit_and_ramp(*points)
    assert found == pytest.approx((limit, ramp))
    assert limit_and_ramp((3e14, 2048), (2e14, 16384)) == (2e14, 0.0)  # slower for long ones: no ramp
    bounded, _ = limit_and_ramp((1e13, 1000), (9e13, 9000))
    assert bounded <= 2 * 9e13


def test_the_host_is_timed_through_the_fast_path() -> None:
    import torch

    from whet.engine.calibration_process import tiny_step

    seconds = [tiny_step(torch.device("cpu"), torch.float32, layers) for layers in (1, 9)]
    assert 0 < seconds[0] < seconds[1]


def test_the_file_is_plain_json() -> None:
    here = machine(gpu())
    remember(here, typical(gpu()))
    written = json.loads((calibration.settings().cache / calibration.FILE).read_text())
    (key,) = written
    assert key == f"Test GPU|580.00|torch {TESTED_VERSIONS['torch']}"
    assert Ceilings.model_validate(written[key]) == typical(gpu())
