"""Environment: packages and their native libraries, text encodings, the login, measured figures."""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import WhetError
from ..findings import Finding, Fix
from ..surroundings.facts import LibraryLoad
from ..surroundings.packages import library_name, wanted_bitsandbytes
from ..surroundings.session import IN_MEMORY
from .registry import HasSurroundings, PlanFacts, check

TESTED = {
    "torch": ">=2.11,<2.15",
    "transformers": ">=5.17,<5.24",
    "trl": ">=1.15,<1.17",
    "peft": ">=0.21,<0.22",
    "accelerate": ">=1.15,<2",
    "datasets": ">=4.8,<6",
    "bitsandbytes": ">=0.50,<0.51",
    "tokenizers": ">=0.23,<0.24",
}
"""As in pyproject.toml (a test holds them together), so that a source checkout is checked too."""

PINS = (
    {
        "torch": "2.13.0", "transformers": "5.23.0", "trl": "1.16.0", "peft": "0.21.2",
        "accelerate": "1.15.0", "datasets": "5.2.0", "bitsandbytes": "0.50.2", "tokenizers": "0.23.3",
    },
    {
        "torch": "2.11.0", "transformers": "5.17.0", "trl": "1.15.0", "peft": "0.21.2",
        "accelerate": "1.15.0", "datasets": "4.8.5", "bitsandbytes": "0.50.2", "tokenizers": "0.23.2",
    },
)  # fmt: skip
"""Sets that ran together: constraints/cpu.txt and constraints/cuda.txt (a test holds them together)."""

OPTIONAL = {"bitsandbytes"}
LEAST_DRIVER = {11: 450, 12: 525, 13: 580}
"""First driver of each CUDA version; later minor versions run on it too."""
WHEELS = "https://download.pytorch.org/whl"
LIBRARY_PACKAGES = {
    "libcudart": "nvidia-cuda-runtime",
    "libcublas": "nvidia-cublas",
    "libcublasLt": "nvidia-cublas",
    "libcusparse": "nvidia-cusparse",
    "libnvJitLink": "nvidia-nvjitlink",
}
UTF8 = {"utf8", "cp65001"}


@check("environment", "E01")
def versions(facts: HasSurroundings) -> Iterator[Finding]:
    """Packages missing, or outside of the range whet was run with."""
    from packaging.specifiers import SpecifierSet

    installed = facts.machine.versions
    missing = [name for name in TESTED if name not in installed and name not in OPTIONAL]
    if missing:
        yield Finding(
            id="E01",
            severity="error",
            title=f"Not installed: {', '.join(missing)}.",
            evidence={"missing": missing},
            fix=Fix(text="Install what is missing.", command=pins_command(missing, installed)),
        )
    outside = {
        name: installed[name]
        for name, tested in TESTED.items()
        if name in installed and not SpecifierSet(tested).contains(installed[name], prereleases=True)
    }
    if outside:
        yield Finding(
            id="E01",
            severity="warning",
            title="Outside of the tested versions: "
            + ", ".join(f"{n} {v}" for n, v in outside.items())
            + ".",
            evidence={"installed": outside, "tested": {name: TESTED[name] for name in outside}},
            fix=Fix(text="Install versions that ran together.", command=pins_command(outside, installed)),
        )
    if (
        not facts.machine.gpus
        and "trl" in installed
        and "trl" not in outside
        and not SpecifierSet(">=1.16").contains(installed["trl"])
    ):
        yield Finding(
            id="E01",
            severity="error",
            title=f"TRL {installed['trl']} trains on a GPU only, and there is none.",
            evidence={"trl": installed["trl"], "gpus": 0},
            fix=Fix(text="Install a newer TRL.", command=f"pip install 'trl=={PINS[0]['trl']}'"),
        )


def pins_command(names: object, installed: dict[str, str]) -> str:
    """Exact versions of ``names`` from the set that agrees most with what is installed."""
    best = max(
        PINS, key=lambda pins: sum(installed.get(name, "").split("+")[0] == pins[name] for name in pins)
    )
    return "pip install " + " ".join(f"'{name}=={best[name]}'" for name in TESTED if name in names)  # type: ignore[operator]


@check("environment", "E01")
def imports(facts: HasSurroundings) -> Iterator[Finding]:
    """Packages that are installed and do not import: versions that do not fit, or broken files."""
    smoke = facts.surroundings.imports
    if smoke is None or smoke.failed is None:
        return
    how = f"takes the process down ({smoke.signal})" if smoke.signal else "does not import"
    names = [smoke.failed, *(name for name in TESTED if f"'{name}'" in smoke.error and name != smoke.failed)]
    command = pins_command(names, facts.machine.versions).replace("install", "install --force-reinstall")
    yield Finding(
        id="E01",
        severity="error",
        title=f"{smoke.failed} {how}.",
        evidence={"installed": facts.machine.versions.get(smoke.failed), "says": smoke.error[-300:]},
        fix=Fix(text="Install it again, in a version that ran with the others.", command=command),
    )


@check("environment", "E02")
def bitsandbytes_missing(facts: PlanFacts) -> Iterator[Finding]:
    """nf4 and int8 need bitsandbytes; the 8-bit optimizer falls back, which is said when it was asked for."""
    if facts.bitsandbytes:
        if facts.resolved.base_precision in ("nf4", "int8"):
            yield from library_findings(facts)
        return
    install = f"pip install 'bitsandbytes=={PINS[0]['bitsandbytes']}'"
    if facts.resolved.base_precision in ("nf4", "int8"):
        yield Finding(
            id="E02",
            severity="error",
            title=f"model.precision={facts.resolved.base_precision} needs bitsandbytes; it is not installed.",
            evidence={"bitsandbytes": None},
            fix=Fix(text="Install it, or hold the weights in 16 bits.", command=install),
        )
    training = facts.recipe.training
    if training.optimizer != facts.resolved.optimizer and "optimizer" in training.model_fields_set:
        yield Finding(
            id="E02",
            severity="warning",
            title="training.optimizer=adamw_8bit needs bitsandbytes, which is not installed; adamw is used.",
            evidence={"asked": training.optimizer, "used": facts.resolved.optimizer},
            fix=Fix(
                text="Install it, or ask for adamw.", patch={"training.optimizer": "adamw"}, command=install
            ),
        )


@check("environment", "E02")
def bitsandbytes_library(facts: HasSurroundings) -> Iterator[Finding]:
    """The native library bitsandbytes will choose: is it there, does it load?"""
    yield from library_findings(facts)


def library_findings(facts: HasSurroundings) -> Iterator[Finding]:
    """E02 from the files bitsandbytes brings, then from loading the one it chooses."""
    packages, load = facts.surroundings.packages, facts.surroundings.bitsandbytes
    gpu = bool(facts.machine.gpus) and packages.torch_cuda is not None
    if gpu and packages.bitsandbytes_cuda and wanted_bitsandbytes(packages) is None:
        override = packages.bitsandbytes_override
        asked = (
            f"BNB_CUDA_VERSION={override}" if override is not None else f"torch's CUDA {packages.torch_cuda}"
        )
        install = "pip install --force-reinstall " + f"'bitsandbytes=={PINS[0]['bitsandbytes']}'"
        yield Finding(
            id="E02",
            severity="error",
            title=f"bitsandbytes has no library for {asked}.",
            evidence={
                "wanted": library_name(override or packages.torch_cuda),
                "there": packages.bitsandbytes_cuda,
            },
            fix=Fix(
                text="Let it choose by torch's CUDA." if override is not None else "Install one that has it.",
                command="unset BNB_CUDA_VERSION" if override is not None else install,
            ),
        )
    if load is not None and load.error:
        yield Finding(
            id="E02",
            severity="error" if gpu else "warning",
            title=f"bitsandbytes' {load.library} does not load"
            + (f": it wants {load.wants}, which the loader does not find." if load.wants else "."),
            evidence={"says": load.error[-300:], "torch_cuda": packages.torch_cuda},
            fix=_library_fix(load),
        )


def _library_fix(load: LibraryLoad) -> Fix:
    """The folder that has the library, or the package that brings it; a broken file is installed again."""
    if load.wants is None:
        return Fix(
            text="Install it again.",
            command=f"pip install --force-reinstall --no-deps 'bitsandbytes=={PINS[0]['bitsandbytes']}'",
        )
    if load.found_in is not None:
        return Fix(
            text="Show the loader where it is.",
            command=f"export LD_LIBRARY_PATH={load.found_in}:$LD_LIBRARY_PATH",
        )
    name, _, major = load.wants.partition(".so.")
    package = LIBRARY_PACKAGES.get(name)
    if package is None:
        return Fix(text=f"Install {load.wants}, then add its folder to LD_LIBRARY_PATH.")
    # CUDA 13's packages have plain names, earlier ones carry their version.
    suffix = f"-cu{major.split('.')[0]}" if major.split(".")[0] in ("11", "12") else ""
    return Fix(text="Install the library it wants.", command=f"pip install {package}{suffix}")


@check("environment", "E02")
def torch_cuda(facts: HasSurroundings) -> Iterator[Finding]:
    """A GPU that the installed torch cannot use: a build without CUDA, or for a newer driver."""
    torch, gpus = facts.machine.versions.get("torch", ""), facts.machine.gpus
    if not gpus:
        return
    if torch.endswith("+cpu"):
        yield Finding(
            id="E02",
            severity="error",
            title=f"{gpus[0].name} is there, but torch {torch} was built without CUDA.",
            evidence={"torch": torch, "driver": gpus[0].driver},
            fix=Fix(text="Install a CUDA build of torch.", command="pip install --force-reinstall torch"),
        )
        return
    cuda, driver = facts.surroundings.packages.torch_cuda, gpus[0].driver.split(".")[0]
    if cuda is None or not driver.isdigit():
        return
    least = LEAST_DRIVER.get(int(cuda.split(".")[0]))
    if least is not None and int(driver) < least:
        fitting = max((major for major, needs in LEAST_DRIVER.items() if needs <= int(driver)), default=None)
        pin = torch.split("+")[0]
        yield Finding(
            id="E02",
            severity="error",
            title=f"torch {torch} was built for CUDA {cuda}, which needs driver {least} or newer; {driver} "
            "is installed.",
            evidence={"torch_cuda": cuda, "driver": gpus[0].driver, "least_driver": least},
            fix=Fix(
                text="Update the driver, or install torch for an older CUDA.",
                command=f"pip install --force-reinstall 'torch=={pin}' --index-url {WHEELS}/cu126"
                if fitting == 12
                else None,
            ),
        )


@check("environment", "E06")
def logout(facts: HasSurroundings) -> Iterator[Finding]:
    """What happens to a run when its user logs out, or the machine restarts."""
    session = facts.surroundings.session
    if session is None:
        return
    start = "systemd-run --user --scope whet train RECIPE"
    linger = f"loginctl enable-linger {session.user}"
    owned = (session.scope == "login" and session.kills) or (
        session.scope == "user" and not session.lingering
    )
    if owned and (session.ssh or session.multiplexer is not None or session.scope == "login"):
        why = (
            "logind ends this login's processes at logout (KillUserProcesses=yes), tmux and nohup included"
            if session.scope == "login"
            else f"systemd ends {session.user}'s processes after the last logout (no lingering)"
        )
        commands = [] if session.lingering else [linger]
        commands += [start] if session.scope == "login" else []
        yield Finding(
            id="E06",
            severity="warning",
            title=f"A run would die with this login: {why}.",
            evidence={
                "KillUserProcesses": session.kills, "lingering": session.lingering, "ssh": session.ssh,
                "started_in": session.scope, "multiplexer": session.multiplexer,
                "nohup": session.hangup_ignored,
            },
            fix=Fix(text="Start runs outside of the login, lingering.", command=" && ".join(commands)),
        )  # fmt: skip
    yield from _memory_home(facts)


def _memory_home(facts: HasSurroundings) -> Iterator[Finding]:
    session = facts.surroundings.session
    if session is None or session.home_filesystem not in IN_MEMORY:
        return
    runtime = session.home.parts[:3] == ("/", "run", "user")
    gone = "at logout" if runtime else "at the next restart"
    yield Finding(
        id="E06",
        # A home directory in memory is an accident, another folder in memory was chosen.
        severity="warning" if runtime or session.user_home_in_memory else "note",
        title=f"WHET_HOME {session.home} lies in memory ({session.home_filesystem}): runs and checkpoints "
        f"are gone {gone}, and take memory until then.",
        evidence={"home": str(session.home), "filesystem": session.home_filesystem},
        fix=Fix(text="Keep runs on a disk.", command="export WHET_HOME=/path/on/a/disk"),
    )


@check("environment", "E10")
def encodings(facts: HasSurroundings) -> Iterator[Finding]:
    """Text that is not UTF-8 by default: rows, templates and logs with letters beyond ASCII fail."""
    encoding = facts.surroundings.encoding
    if encoding is None:
        return
    names = {
        "preferred": encoding.preferred,
        "stdout": encoding.stdout,
        "filesystem": encoding.filesystem,
    }
    wrong = {
        what: name for what, name in names.items()
        if name and name.lower().replace("-", "").replace("_", "") not in UTF8
    }  # fmt: skip
    if not wrong:
        return
    commands = ["export LANG=C.UTF-8 LC_ALL=C.UTF-8 PYTHONUTF8=1"]
    commands += ["unset PYTHONIOENCODING"] if "PYTHONIOENCODING" in encoding.variables else []
    yield Finding(
        id="E10",
        severity="warning",
        title=f"Text is not UTF-8 here: {', '.join(f'{what} {name}' for what, name in wrong.items())}.",
        evidence=dict(encoding.variables) or {"variables": "none set"},
        fix=Fix(
            text="Set UTF-8 before Python starts; in a notebook, restart it.", command="; ".join(commands)
        ),
    )


@check("environment", "E11")
def measured_figures(facts: HasSurroundings) -> Iterator[Finding]:
    """Figures of the GPU that were measured and cannot be read."""
    calibration = facts.surroundings.calibration
    if calibration is not None:
        yield Finding(
            id="E11",
            severity="note",
            title="The GPU's measured figures cannot be read; plans use typical ones of its kind.",
            evidence={"file": str(calibration.path), "says": calibration.problem},
            fix=Fix(text="Remove them: the next run measures again.", command=f"rm '{calibration.path}'"),
        )


def calibration_failed(error: WhetError) -> Finding:
    """E11 from a measurement that failed; it spoils no run."""
    return Finding(
        id="E11",
        severity="note",
        title="The GPU could not be measured; plans use typical figures of its kind.",
        evidence={"code": error.code, "says": error.message[-300:]},
        fix=Fix(text="Nothing needs to be done: the next run on a GPU that is not shared measures again."),
    )


CHECKS = (versions, imports, torch_cuda, logout, encodings, measured_figures)
