"""Broken set-ups of the environment phase: GPUs and their compiled kernels."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from faults.harness import Fault, Looked
from support.fake_surroundings import FakeGPU, after, command_of, environ, gpu, look_at, nvml, versions
from support.plan_inputs import machine

from whet.engine import hardware
from whet.engine.checks.env_flags import seen_flags
from whet.engine.findings import Finding
from whet.engine.surroundings.facts import Surroundings
from whet.engine.surroundings.gpu_health import read_gpu_health
from whet.engine.surroundings.gpu_links import read_links
from whet.engine.surroundings.kernel_caches import read_caches

KERNEL = "l2_normalize"

# --- E07: GPUs


def gpus(
    folder: Path, *there: FakeGPU, visible: str | None = None, by_hand: Callable[..., Any] | None = None
) -> Looked:
    """A machine with these GPUs, seen through NVML."""

    def look(visible: str | None) -> list[Finding]:
        with nvml(*there), environ(CUDA_VISIBLE_DEVICES=visible):
            found = hardware.inspect_machine().model_copy(update={"versions": versions()})
            health = read_gpu_health([one.uuid for one in found.gpus])
            flags = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
            return look_at(Surroundings(gpus=health, flags=flags), found)

    def mend(finding: Finding) -> Looked:
        if by_hand is not None:
            by_hand(finding, *there)
            return Looked(look(visible))
        return Looked(look(after(command_of(finding), {}).get("CUDA_VISIBLE_DEVICES")))

    return Looked(look(visible), mend)


def ended(finding: Finding, *there: FakeGPU) -> None:
    """The other process has ended, which is what the fix waits for."""
    for one in there:
        one.processes, one.busy = [], 0


def smi(finding: Finding, *there: FakeGPU) -> None:
    """What nvidia-smi does with the fix's words."""
    words = command_of(finding)
    number = re.search(r"-i (\d+)", words)
    assert number is not None and words.startswith(("sudo nvidia-smi", "nvidia-smi"))
    one = there[int(number[1])]
    if limit := re.search(r"-pl (\d+)", words):
        one.limit = 1000 * int(limit[1])
    elif "--gpu-reset" in words:
        one.uncorrected, one.rows = 0, (1, 0, 0, 0)
    elif "-mig 0" in words:
        one.slices = None
    elif "-c DEFAULT" in words:
        one.mode = 0
    else:  # it only shows; the person then cools the card
        one.reasons = 0


# --- E13: several GPUs


def joined(
    folder: Path,
    *there: FakeGPU,
    shared: int = 8 << 30,
    by_hand: Callable[..., int] | None = None,
    **flags: str,
) -> Looked:
    """A machine with these GPUs, so much shared memory, and NCCL's switches."""

    def look(flags: dict[str, str], shared: int) -> list[Finding]:
        with nvml(*there), environ(CUDA_VISIBLE_DEVICES=None):
            found = hardware.inspect_machine().model_copy(update={"versions": versions()})
            links = read_links([one.uuid for one in found.gpus])
        around = Surroundings(links=links, shared_memory=shared, flags=seen_flags(flags))
        return look_at(around, found)

    def mend(finding: Finding) -> Looked:
        if by_hand is not None:
            return Looked(look(flags, by_hand(finding, *there)))
        return Looked(look(after(command_of(finding), flags), shared))

    return Looked(look(flags, shared), mend)


def remounted(finding: Finding, *there: FakeGPU) -> int:
    """What mount does with the fix's words: bytes of /dev/shm."""
    size = re.search(r"size=(\d+)G /dev/shm", command_of(finding))
    assert size is not None
    return int(size[1]) << 30


def moved(finding: Finding, *there: FakeGPU) -> int:
    """GPUs of one socket were chosen."""
    for one in there:
        one.socket = 0
    return 8 << 30


# --- E04, E09: compiled kernels


@cache
def _compiled() -> tempfile.TemporaryDirectory[str]:
    """Gone with this process."""
    kept = tempfile.TemporaryDirectory(prefix="whet-compiled-")
    command = [sys.executable, "-P", "-m", "whet.kernels.ahead_of_time", "--kernel", KERNEL]
    source = str(Path(__file__).parents[2] / "src")
    with environ(TRITON_CACHE_DIR=kept.name, TRITON_INTERPRET=None, PYTHONPATH=source):
        subprocess.run([*command, "--capability", "90", "--jobs", "1"], check=True, capture_output=True)
    return kept


def compiled() -> Path:
    """A real cache: one of whet's kernels, compiled for capability 9.0 without a GPU."""
    return Path(_compiled().name)


def installed_triton() -> str:
    return hardware.inspect_machine().versions["triton"]


def kernels(
    folder: Path, spoil: Callable[[Path], Any], capability: tuple[int, int] = (9, 0), warm: bool = True
) -> Looked:
    """A GPU and a cache of compiled kernels, spoilt."""
    place = folder / "triton"
    if warm:
        shutil.copytree(compiled(), place)
    spoil(place)
    here = machine(gpu(capability), versions=versions(triton=installed_triton()))

    def look(place: Path) -> list[Finding]:
        with environ(TRITON_CACHE_DIR=str(place), TORCHINDUCTOR_CACHE_DIR=str(folder / "none")):
            return look_at(Surroundings(caches=read_caches(here, everything=True)), here)

    def mend(finding: Finding) -> Looked:
        words = command_of(finding)
        if (
            words == "whet doctor --kernels"
        ):  # compiles and runs them on the GPU: compiling is what fills the cache
            shutil.copytree(compiled(), place)
            return Looked(look(place))
        if words.startswith("export "):
            return Looked(look(Path(after(words, {"HOME": str(folder)})["TRITON_CACHE_DIR"])))
        subprocess.run(["bash", "-c", words], check=True)
        return Looked(look(place))

    return Looked(look(place), mend)


def first(place: Path, pattern: str) -> Path:
    return next(file for file in sorted(place.rglob(pattern)) if not file.name.startswith("__grp__"))


def empty_cubin(place: Path) -> None:
    """The disk was full."""
    first(place, "*.cubin").write_bytes(b"")


def cut_metadata(place: Path) -> None:
    """The process was killed while it wrote."""
    file = first(place, "*.json")
    file.write_bytes(file.read_bytes()[:100])


def file_in_the_way(place: Path) -> None:
    """TRITON_CACHE_DIR names something that is no folder."""
    place.write_text("not a folder")


def always_compile(folder: Path) -> Looked:
    """A flag from an earlier hunt makes every run compile."""
    here = machine(gpu(), versions=versions(triton=installed_triton()))

    def look(environment: dict[str, str]) -> list[Finding]:
        with environ(TRITON_CACHE_DIR=str(compiled()), TORCHINDUCTOR_CACHE_DIR=str(folder / "none")):
            caches = read_caches(here, everything=True)
        return look_at(Surroundings(caches=caches, flags=seen_flags(environment)), here)

    wrong = {"TRITON_ALWAYS_COMPILE": "1"}
    return Looked(look(wrong), lambda finding: Looked(look(after(command_of(finding), wrong))))


def nothing(place: Path) -> None:
    pass


def case(id: str, name: str, fix: str, look: Callable[..., Looked], *arguments: Any, **options: Any) -> Fault:
    severity = options.pop("severity", "warning")
    return Fault(id, name, lambda folder: look(folder, *arguments, **options), fix, severity)


def on_gpus(name: str, fix: str, *there: FakeGPU, severity: str = "warning", **options: Any) -> Fault:
    """Each look gets GPUs of its own: mending changes them."""

    def look(folder: Path) -> Looked:
        return gpus(folder, *(FakeGPU(**vars(one)) for one in there), **options)

    return Fault("E07", name, look, fix, severity)


BUSY = FakeGPU(processes=[(1, 30 * 2**30)], busy=97, free=49 * 2**30)

FAULTS: tuple[Fault, ...] = (
    case("E04", "a kernel cut off by a full disk", "rm -rf", kernels, empty_cubin),
    case("E04", "metadata cut off by a kill", "rm -rf", kernels, cut_metadata),
    case("E04", "a cache that is no folder", "TRITON_CACHE_DIR", kernels, file_in_the_way, warm=False),
    case("E04", "kernels of the GPU before this one", "rm -rf", kernels, nothing, (8, 0), severity="note"),
    on_gpus("someone computes on the first of two", "CUDA_VISIBLE_DEVICES=GPU-1", BUSY, FakeGPU()),
    on_gpus("someone computes on the only one", "Wait for it", BUSY, by_hand=ended),
    on_gpus("a GPU that is not there is asked for", "CUDA_VISIBLE_DEVICES=GPU-0", FakeGPU(), visible="4"),
    on_gpus("divided by MIG", "-mig 0", FakeGPU(slices=3), by_hand=smi),
    on_gpus(
        "memory rows wait for a reset", "--gpu-reset", FakeGPU(uncorrected=2, rows=(0, 1, 1, 0)), by_hand=smi
    ),
    on_gpus("a power limit of a third", "-pl 700", FakeGPU(limit=250_000), by_hand=smi),
    on_gpus("clocks held down by heat", "-q -d PERFORMANCE", FakeGPU(reasons=0x40), by_hand=smi),
    on_gpus("closed to all processes", "-c DEFAULT", FakeGPU(mode=2), by_hand=smi, severity="error"),
    case(
        "E13",
        "a container's own shared memory",
        "--shm-size",
        joined,
        FakeGPU(),
        FakeGPU(),
        shared=64 << 20,
        by_hand=remounted,
    ),
    case(
        "E13",
        "GPUs may not talk to each other",
        "unset NCCL_P2P_DISABLE",
        joined,
        FakeGPU(),
        FakeGPU(),
        NCCL_P2P_DISABLE="1",
    ),
    case(
        "E13",
        "GPUs of two sockets",
        "topo -m",
        joined,
        FakeGPU(),
        FakeGPU(socket=1),
        by_hand=moved,
        severity="note",
    ),
    case(
        "E09",
        "no kernel compiled yet",
        "whet doctor --kernels",
        kernels,
        nothing,
        warm=False,
        severity="note",
    ),
    case("E09", "every run compiles", "unset TRITON_ALWAYS_COMPILE", always_compile),
)
