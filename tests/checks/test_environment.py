"""Surroundings as they are read, and checks that stay silent where nothing is wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.fake_surroundings import gpu, look_at, versions, write_login
from support.plan_inputs import machine, model_facts, plan_facts, recipe

from whet.engine.calibration import ceilings_of, known_ceilings, remember, typical
from whet.engine.checks import run_checks
from whet.engine.checks.environment import LEAST_DRIVER, PINS, TESTED, pins_command
from whet.engine.checks.registry import PlanFacts
from whet.engine.findings import Finding
from whet.engine.surroundings import _calibration, inspect_surroundings
from whet.engine.surroundings.facts import (
    Encoding,
    GPUHealth,
    Hub,
    ImportSmoke,
    KernelCache,
    LibraryLoad,
    LlamaSmoke,
    Packages,
    Session,
    Surroundings,
)
from whet.engine.surroundings.packages import bitsandbytes_cuda, read_packages, wanted_bitsandbytes
from whet.engine.surroundings.session import filesystem_of, read_session

GIB = 2**30
ROOT = Path(__file__).parents[2]
HERE = machine(versions=versions())
WITH_GPU = machine(gpu(), versions=versions())


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path / "home"


def ids(findings: list[Finding]) -> list[str]:
    return [f"{finding.severity} {finding.id}" for finding in findings]


def healthy(tmp_path: Path, **changes: Any) -> Surroundings:
    """A GPU server as it should be."""
    values: dict[str, Any] = {
        "packages": Packages(torch_cuda="13.0", bitsandbytes_cuda=["12.8", "13.0"]),
        "session": Session(user="anna", ssh=True, kills=False, home=tmp_path, home_filesystem="ext4"),
        "hub": Hub(endpoint="https://hub", cache=tmp_path, cache_free=500 * GIB, token_from="HF_TOKEN"),
        "caches": [
            KernelCache(name="triton", path=tmp_path, entries=200, usable=180, kernels=["norm_kernel"],
                        known=40, foreign={"triton 3.5.0, sm_90": 20}),
            KernelCache(name="inductor", path=tmp_path),
        ],
        "gpus": [GPUHealth(index=0, uuid="GPU-0", name="H100", memory_total=80 * GIB, memory_free=79 * GIB,
                           utilization=0, power_limit=600, power_default=700, ecc_uncorrected=0)],
        "encoding": Encoding(preferred="UTF-8", stdout="utf-8", filesystem="utf-8"),
        "imports": ImportSmoke(seconds=5.0),
        "bitsandbytes": LibraryLoad(library="libbitsandbytes_cuda130.so"),
        "llama_cpp": LlamaSmoke(status="works", features=["AVX2", "AMX_INT8"]),
    }  # fmt: skip
    return Surroundings(**(values | changes))


def test_a_healthy_server_raises_nothing(tmp_path: Path) -> None:
    assert look_at(healthy(tmp_path), WITH_GPU) == []
    assert look_at(Surroundings(), HERE) == []


def test_this_machine_raises_no_alarm_at_a_plan() -> None:
    """Of the surroundings alone: what the machine itself lacks is another test's."""
    found = look_at(inspect_surroundings(HERE), HERE)
    assert [
        one for one in found if one.severity != "note" and one.id in ("E04", "E06", "E09", "E10", "E11")
    ] == []


# --- E01


def test_pins_are_the_constraints() -> None:
    for pins, name in zip(PINS, ("cpu.txt", "cuda.txt"), strict=True):
        lines = (ROOT / "constraints" / name).read_text(encoding="utf-8").splitlines()
        constraints = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
        assert pins == {name: constraints[name] for name in pins}
        assert set(pins) == set(TESTED)


def test_pins_come_from_the_set_that_is_nearest() -> None:
    older = versions(torch="2.11.0+cu130", transformers="5.17.0", trl="0.9", datasets="4.8.5")
    assert pins_command(["trl"], older) == "pip install 'trl==1.15.0'"
    newer = versions(torch="2.13.0", transformers="5.99.0")
    assert pins_command(["transformers"], newer) == "pip install 'transformers==5.23.0'"


# --- E02


@pytest.mark.parametrize(
    "torch_cuda, override, wanted",
    [
        ("13.0", None, "13.0"),
        ("12.9", None, "12.8"),
        ("12.0", None, "12.4"),
        ("14.0", None, None),
        ("13.0", "124", "12.4"),
        ("13.0", "999", None),
        (None, None, None),
    ],
)
def test_which_library_bitsandbytes_wants(
    torch_cuda: str | None, override: str | None, wanted: str | None
) -> None:
    packages = Packages(
        torch_cuda=torch_cuda,
        bitsandbytes_cuda=["11.8", "12.4", "12.8", "13.0"],
        bitsandbytes_override=override,
    )
    assert wanted_bitsandbytes(packages) == wanted


def test_library_names_are_read_as_versions(tmp_path: Path) -> None:
    for name in ("cuda118", "cuda1210", "cuda128", "cpu", "rocm64", "cuda130"):
        (tmp_path / f"libbitsandbytes_{name}.so").touch()
    assert bitsandbytes_cuda(tmp_path) == ["11.8", "12.8", "12.10", "13.0"]
    assert bitsandbytes_cuda(None) == []
    assert read_packages().bitsandbytes_cuda  # of the real package


def test_torchs_cuda_is_read_without_importing_it() -> None:
    code = (
        "import sys; from whet.engine.surroundings.packages import read_packages;"
        "print(read_packages().torch_cuda, 'torch' in sys.modules)"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, env=env
    )
    import torch

    assert done.stdout.split() == [str(torch.version.cuda), "False"]


@pytest.mark.parametrize(
    "wants, command",
    [
        ("libcudart.so.13", "pip install nvidia-cuda-runtime"),
        ("libcublas.so.12", "pip install nvidia-cublas-cu12"),
        ("libodd.so.1", None),
    ],
)
def test_a_library_that_is_nowhere_is_installed(wants: str, command: str | None, tmp_path: Path) -> None:
    load = LibraryLoad(library="libbitsandbytes_cuda130.so", error=f"{wants}: cannot open", wants=wants)
    (found,) = look_at(healthy(tmp_path, bitsandbytes=load), WITH_GPU)
    assert found.id == "E02" and wants in found.title
    assert found.fix is not None and found.fix.command == command


def test_a_plan_speaks_of_bitsandbytes_only_where_it_is_needed(tmp_path: Path) -> None:
    load = LibraryLoad(library="libbitsandbytes_cuda130.so", error="broken file")
    around = healthy(tmp_path, bitsandbytes=load)
    model = model_facts(tmp_path / "model")
    assert "error E02" in ids(
        run_checks(plan_facts(model, wanted=recipe(model__precision="nf4"), on=WITH_GPU, surroundings=around))
    )
    assert ids(run_checks(plan_facts(model, on=WITH_GPU, surroundings=around))) == []


@pytest.mark.parametrize("major, least", LEAST_DRIVER.items())
def test_the_driver_is_held_against_torchs_cuda(major: int, least: int, tmp_path: Path) -> None:
    around = healthy(tmp_path, packages=Packages(torch_cuda=f"{major}.0"))
    good = machine(gpu(driver=f"{least}.10"), versions=versions())
    old = machine(gpu(driver=f"{least - 1}.99"), versions=versions())
    assert look_at(around, good) == []
    assert ids(look_at(around, old)) == ["error E02"]


# --- E03


def test_a_plan_speaks_of_the_hub_only_where_weights_must_come(tmp_path: Path) -> None:
    hub = Hub(endpoint="https://hub", cache=tmp_path, cache_free=1, offline_by=["WHET_OFFLINE"])
    model = model_facts(tmp_path / "model")
    around = healthy(tmp_path, hub=hub)

    def found(facts: PlanFacts) -> list[str]:
        return [one for one in ids(run_checks(facts)) if one.endswith("E03")]

    assert found(plan_facts(model, on=WITH_GPU, surroundings=around)) == ["error E03", "error E03"]
    local = recipe(model__name=str(tmp_path))
    assert found(plan_facts(model, wanted=local, on=WITH_GPU, surroundings=around)) == []
    there = model.model_copy(update={"missing_weight_files": []})
    assert found(plan_facts(there, on=WITH_GPU, surroundings=around)) == []


def test_leftovers_of_downloads_are_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(endpoint="https://hub", cache=tmp_path, cache_free=GIB, partial_files=2, partial_bytes=3 * GIB)
    (found,) = look_at(healthy(tmp_path, hub=hub), HERE)
    assert (found.id, found.severity) == ("E03", "note") and "3.0 GiB" in found.title


# --- E05


@pytest.mark.parametrize(
    "status, id, severity",
    [("missing", "X04", "warning"), ("unloadable", "X04", "error"), ("crashed", "E05", "error")],
)
def test_llama_at_the_doctor_and_at_a_plan(status: Any, id: str, severity: str, tmp_path: Path) -> None:
    around = healthy(tmp_path, llama_cpp=LlamaSmoke(status=status, step="run", signal="SIGILL"))
    assert ids(look_at(around, WITH_GPU)) == [f"{severity} {id}"]
    model = model_facts(tmp_path / "model")
    with_gguf = plan_facts(model, wanted=recipe(export__gguf=["f16"]), on=WITH_GPU, surroundings=around)
    assert f"{severity} {id}" in ids(run_checks(with_gguf))
    assert ids(run_checks(plan_facts(model, on=WITH_GPU, surroundings=around))) == []


# --- E06


@pytest.mark.parametrize(
    "files, environment, expected",
    [
        ({"kills": "yes"}, {"SSH_CONNECTION": "x"}, ["warning E06"]),
        ({"kills": "no"}, {"SSH_CONNECTION": "x"}, []),
        ({"kills": "no", "default": "yes"}, {"SSH_CONNECTION": "x"}, []),
        ({"kills": "", "default": "yes"}, {}, ["warning E06"]),
        ({"kills": "yes", "linger": "anna"}, {"SSH_CONNECTION": "x"}, ["warning E06"]),
        ({"kills": "yes", "scope": "user@1000.service/run-1.scope", "linger": "anna"}, {"TMUX": "x"}, []),
        ({"kills": "yes", "scope": "user@1000.service/app.slice/terminal.scope"}, {}, []),
        ({"kills": "yes", "scope": "user@1000.service/tmux.service"}, {"STY": "x"}, ["warning E06"]),
        ({"kills": "yes\nKillExcludeUsers=root anna"}, {"SSH_CONNECTION": "x"}, []),
        ({"kills": "yes\nKillOnlyUsers=ben"}, {"SSH_CONNECTION": "x"}, []),
        ({"kills": "yes\nKillOnlyUsers=anna ben"}, {"SSH_CONNECTION": "x"}, ["warning E06"]),
    ],
)
def test_logins(
    files: dict[str, str], environment: dict[str, str], expected: list[str], tmp_path: Path
) -> None:
    session = read_session(write_login(tmp_path / "root", **files), environment, "anna")
    assert ids(look_at(Surroundings(session=session), HERE)) == expected


def test_root_is_spared_by_default_and_no_systemd_means_no_logind(tmp_path: Path) -> None:
    root = write_login(tmp_path / "root")
    assert read_session(root, {}, "anna").kills is True
    assert read_session(root, {}, "root").kills is False
    assert read_session(tmp_path / "container", {}, "anna").kills is None


def test_a_user_without_a_name_is_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    assert read_session(tmp_path, {}).user == str(os.getuid())


def test_lingering_is_not_asked_for_twice(tmp_path: Path) -> None:
    session = read_session(write_login(tmp_path / "root", linger="anna"), {"SSH_CONNECTION": "x"}, "anna")
    (found,) = look_at(Surroundings(session=session), HERE)
    assert found.fix is not None and found.fix.command == "systemd-run --user --scope whet train RECIPE"


def test_nohup_is_seen(tmp_path: Path) -> None:
    root = write_login(tmp_path / "root")
    assert not read_session(root, {}, "anna").hangup_ignored
    (root / "proc/self/status").write_text("SigIgn:\t0000000000000001\n")
    assert read_session(root, {}, "anna").hangup_ignored
    code = "from whet.engine.surroundings.session import read_session; print(read_session().hangup_ignored)"
    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = ["nohup", sys.executable, "-P", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    assert done.stdout.strip() == "True"
    assert signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN


def test_file_systems_are_told_by_the_deepest_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "proc/self/mounts"
    mounts.parent.mkdir(parents=True)
    mounts.write_text(
        "overlay / overlay rw 0 0\n/dev/sda1 /home ext4 rw 0 0\ntmpfs /home/anna/my\\040memory tmpfs rw 0 0\n"
        "none /home/annabel tmpfs rw 0 0\nnfs:/x /data nfs4 rw 0 0\n/dev/sdb1 /data xfs rw 0 0\n"
    )
    expected = {
        "/tmp/x": "overlay", "/home/anna/.whet": "ext4", "/home/anna/my memory/w": "tmpfs", "/data/w": "xfs",
        "/home": "ext4",
    }  # fmt: skip
    assert {path: filesystem_of(Path(path), tmp_path) for path in expected} == expected


@pytest.mark.parametrize(
    "home, memory, expected",
    [
        ("/run/user/1000/whet", False, "warning"),
        ("/tmp/whet", False, "note"),
        ("/home/anna/.whet", True, "warning"),
    ],
)
def test_a_home_in_memory(home: str, memory: bool, expected: str) -> None:
    session = Session(user="anna", home=Path(home), home_filesystem="tmpfs", user_home_in_memory=memory)
    (found,) = look_at(Surroundings(session=session), HERE)
    assert (found.id, found.severity) == ("E06", expected)


# --- E11


def test_figures_that_cannot_be_read_are_measured_again(home: Path) -> None:
    remember(WITH_GPU, typical(WITH_GPU.gpus[0]).model_copy(update={"measured": True}))
    assert _calibration() is None and known_ceilings(WITH_GPU) is not None
    file = home / "cache" / "calibration.json"
    for broken in ("{", "[]", '{"x": {"matmul": "fast"}}'):
        file.write_text(broken)
        assert _calibration() is not None
        assert known_ceilings(WITH_GPU) is None and ceilings_of(WITH_GPU) == typical(WITH_GPU.gpus[0])
    remember(WITH_GPU, typical(WITH_GPU.gpus[0]))  # a run on that GPU writes the file anew
    assert known_ceilings(WITH_GPU) is not None
