"""Broken set-ups of the environment phase: logins, encodings, figures, flags."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from faults.harness import Fault, Looked
from support.fake_surroundings import (
    FakeGPU,
    after,
    command_of,
    environ,
    gpu,
    look_at,
    nvml,
    versions,
    write_login,
)
from support.plan_inputs import machine

from whet.engine import hardware
from whet.engine.calibration import remember, typical
from whet.engine.checks.env_flags import seen_flags
from whet.engine.findings import Finding
from whet.engine.methods.measuring import measure_once
from whet.engine.runs.context import RunContext
from whet.engine.runs.events import Event, FindingEvent
from whet.engine.surroundings import _calibration
from whet.engine.surroundings.facts import Surroundings
from whet.engine.surroundings.session import read_session

HERE = machine(versions=versions())
WITH_GPU = machine(gpu(), versions=versions())

# --- E06: logout


def login(folder: Path, environment: dict[str, str], **files: Any) -> Looked:
    """A login of systemd's that takes a run with it."""
    root = write_login(folder / "root", **files)

    def look() -> list[Finding]:
        return look_at(Surroundings(session=read_session(root, environment, "anna")), HERE)

    def mend(finding: Finding) -> Looked:
        for command in command_of(finding).split(" && "):
            match shlex.split(command):
                case ["loginctl", "enable-linger", user]:
                    (root / "var/lib/systemd/linger" / user).touch()
                case ["systemd-run", "--user", "--scope", *_]:
                    place = "user@1000.service/app.slice/run-r1.scope"
                    (root / "proc/self/cgroup").write_text(f"0::/user.slice/user-1000.slice/{place}\n")
                case other:
                    raise AssertionError(other)
        return Looked(look())

    return Looked(look(), mend)


def home_in_memory(folder: Path) -> Looked:
    """The user's home directory, and whet's in it, lie in a tmpfs."""
    root = write_login(folder / "root", kills="no")
    (root / "proc/self/mounts").write_text(f"/dev/sda1 / ext4 rw 0 0\ntmpfs {folder}/me tmpfs rw 0 0\n")

    def look(home: str) -> list[Finding]:
        with environ(HOME=f"{folder}/me", WHET_HOME=home):
            return look_at(Surroundings(session=read_session(root, {}, "anna")), HERE)

    def mend(finding: Finding) -> Looked:
        fixed = command_of(finding).replace("/path/on/a/disk", f"{folder}/disk")
        return Looked(look(after(fixed, {})["WHET_HOME"]))

    return Looked(look(f"{folder}/me/.whet"), mend)


# --- E10: encodings

LOOK_AT_TEXT = """
import sys
from support.fake_surroundings import look_at
from support.plan_inputs import machine
from whet.engine.surroundings.facts import Surroundings
from whet.engine.surroundings.session import read_encoding
found = look_at(Surroundings(encoding=read_encoding()), machine())
print("[" + ",".join(finding.model_dump_json() for finding in found) + "]")
"""


def text(folder: Path, **variables: str) -> Looked:
    """A Python started in an environment without UTF-8."""
    tests = Path(__file__).parents[1]
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))
    }
    clean["PYTHONPATH"] = f"{tests}:{tests.parent / 'src'}"

    def look(environment: dict[str, str]) -> list[Finding]:
        done = subprocess.run(
            [sys.executable, "-P", "-c", LOOK_AT_TEXT], capture_output=True, check=True, env=environment
        )
        return [Finding.model_validate(one) for one in json.loads(done.stdout)]

    wrong = clean | variables
    return Looked(look(wrong), lambda finding: Looked(look(after(command_of(finding), wrong))))


# --- E11: figures of the GPU


def figures(folder: Path, content: str) -> Looked:
    """What was measured of the GPU cannot be read any more."""
    remember(WITH_GPU, typical(WITH_GPU.gpus[0]))
    path = hardware.settings().cache / "calibration.json"
    path.write_text(content or path.read_text()[:80], encoding="utf-8")

    def look() -> list[Finding]:
        return look_at(Surroundings(calibration=_calibration()), WITH_GPU)

    def mend(finding: Finding) -> Looked:
        subprocess.run(["bash", "-c", command_of(finding)], check=True)
        return Looked(look())

    return Looked(look(), mend)


class Worker:
    """As much of a run's context as the measurement after it needs."""

    plan = SimpleNamespace(resolved=SimpleNamespace(device="cuda"))

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def emit(self, event: Event) -> None:
        if isinstance(event, FindingEvent):
            self.findings.append(event.finding)


def measurement_dies(folder: Path) -> Looked:
    """The process that measures the GPU runs out of memory."""
    (folder / "torch.py").write_text("raise MemoryError('another process took it')")

    def look() -> list[Finding]:
        worker = Worker()
        with nvml(FakeGPU()), environ(PYTHONPATH=f"{folder}:{os.environ.get('PYTHONPATH', '')}"):
            measure_once(cast(RunContext, worker))
        return worker.findings

    def mend(finding: Finding) -> Looked:
        assert finding.fix is not None and "next run" in finding.fix.text
        with nvml(FakeGPU()):  # which measures
            here = hardware.inspect_machine()
            remember(here, typical(here.gpus[0]))
        return Looked(look())

    return Looked(look(), mend)


# --- E12: flags


def flags(folder: Path, on_gpu: bool = False, **variables: str) -> Looked:
    """An environment with these flags."""

    def look(environment: dict[str, str]) -> list[Finding]:
        return look_at(Surroundings(flags=seen_flags(environment)), WITH_GPU if on_gpu else HERE)

    return Looked(look(variables), lambda finding: Looked(look(after(command_of(finding), variables))))


def case(id: str, name: str, fix: str, look: Callable[..., Looked], *arguments: Any, **options: Any) -> Fault:
    severity = options.pop("severity", "warning")
    return Fault(id, name, lambda folder: look(folder, *arguments, **options), fix, severity)


SSH = {"SSH_CONNECTION": "10.0.0.2 50000 10.0.0.1 22"}

FAULTS: tuple[Fault, ...] = (
    case("E06", "logind kills at logout", "systemd-run --user", login, SSH),
    case("E06", "a distribution that kills by default, from within tmux", "systemd-run --user", login,
         {"TMUX": "/tmp/tmux-1000/default,1,0"}, kills="", default="yes", linger="anna"),
    case("E06", "the user's systemd ends with the last login", "enable-linger anna", login, SSH,
         scope="user@1000.service/tmux.service", kills="no"),
    case("E06", "a home directory in memory", "WHET_HOME", home_in_memory),
    case("E10", "the POSIX locale of a bare container", "C.UTF-8", text, LC_ALL="C", PYTHONUTF8="0",
         PYTHONCOERCECLOCALE="0"),
    case("E10", "output in Latin 1", "unset PYTHONIOENCODING", text, LANG="C.UTF-8",
         PYTHONIOENCODING="latin-1"),
    case("E11", "figures cut off by a full disk", "measures again", figures, "", severity="note"),
    case("E11", "figures of another version", "measures again", figures, '{"H100|580|torch": {"flops": 1}}',
         severity="note"),
    case("E11", "the measurement runs out of memory", "next run", measurement_dies, severity="note"),
    case("E12", "a misspelt flag of whet's", "WHET_OFFLINE", flags, WHET_OFLINE="1"),
    case("E12", "a family of flags, misspelt", "WANDB_PROJECT", flags, WANBD_PROJECT="mine"),
    case("E12", "kernels that do not exist", "unset WHET_KERNELS", flags, WHET_KERNELS="refernce"),
    case("E12", "a flag that never was", "unset WHET_BATCH_SIZE", flags, WHET_BATCH_SIZE="8"),
    case("E12", "a token under the wrong name", "HF_TOKEN", flags, HUGGINGFACE_TOKEN="hf_aaaaaaaaaaaaaaaa"),
    case("E12", "two allocators", "unset PYTORCH_CUDA_ALLOC_CONF", flags,
         PYTORCH_ALLOC_CONF="expandable_segments:True", PYTORCH_CUDA_ALLOC_CONF="max_split_size_mb:64"),
    case("E12", "a cache that nobody reads any more", "HF_HOME", flags, TRANSFORMERS_CACHE="/big/disk"),
    case("E12", "kernels in the interpreter beside a GPU", "unset TRITON_INTERPRET", flags, on_gpu=True,
         TRITON_INTERPRET="1"),
    case("E12", "a switch that is neither on nor off", "HF_HUB_OFFLINE", flags, HF_HUB_OFFLINE="ture"),
)  # fmt: skip
