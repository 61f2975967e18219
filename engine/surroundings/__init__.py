"""What lies around a run: packages, GPUs' health, the network, caches, the login, encodings, flags. Light."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ..calibration import FILE as CALIBRATION_FILE
from ..calibration import Ceilings
from ..hardware import Machine
from ..settings import settings
from . import probes
from .facts import Calibration, ImportSmoke, LibraryLoad, LlamaSmoke, Surroundings
from .gpu_health import read_gpu_health
from .gpu_links import read_links, shared_memory_bytes
from .hub import ask_hub, read_hub
from .kernel_caches import read_caches
from .packages import read_packages
from .session import read_encoding, read_session

__all__ = ["Surroundings", "inspect_surroundings"]


def inspect_surroundings(
    machine: Machine, *, slow: bool = False, progress: Callable[[str], None] | None = None
) -> Surroundings:
    """Look around.

    Args:
        machine: what :func:`whet.engine.hardware.inspect_machine` said.
        slow: also load libraries, run llama.cpp and ask the hub, some seconds the first time. Without it
            only what an earlier slow look has left is added.
        progress: told what is being looked at.
    """
    from ..checks.env_flags import seen_flags

    say = progress or (lambda what: None)
    uuids = [gpu.uuid for gpu in machine.gpus]
    quick = Surroundings(
        packages=read_packages(),
        session=read_session(),
        hub=read_hub(),
        caches=read_caches(machine, everything=slow),
        gpus=read_gpu_health(uuids),
        links=read_links(uuids),
        shared_memory=shared_memory_bytes() if len(uuids) > 1 else None,
        encoding=read_encoding(),
        calibration=_calibration(),
        flags=seen_flags(),
    )
    if slow:
        return quick.model_copy(update=_slowly(quick, machine, say))
    return quick.model_copy(
        update={
            "imports": probes.remembered("imports", ImportSmoke, machine),
            "bitsandbytes": probes.remembered("bitsandbytes", LibraryLoad, machine),
            "llama_cpp": probes.remembered("llama_cpp", LlamaSmoke, machine),
        }
    )


def _slowly(quick: Surroundings, machine: Machine, say: Callable[[str], None]) -> dict[str, object]:
    """The probes, beside each other: most of their time is reading files and waiting for the network."""
    hub = quick.hub
    assert hub is not None
    say("asking the hub, loading libraries, running llama.cpp")
    with ThreadPoolExecutor(3) as pool:
        reach = pool.submit(ask_hub, hub)
        llama = pool.submit(
            probes.ask, "llama_cpp", LlamaSmoke, machine, probes.run_llama, lambda one: one.status == "works"
        )
        imports = pool.submit(
            probes.ask, "imports", ImportSmoke, machine, probes.try_imports, lambda one: one.failed is None
        )
        library = pool.submit(_bitsandbytes, quick, machine)
        return {
            "hub": hub.model_copy(update={"reach": reach.result()}),
            "llama_cpp": llama.result(),
            "imports": imports.result(),
            "bitsandbytes": library.result(),
        }


def _bitsandbytes(quick: Surroundings, machine: Machine) -> LibraryLoad | None:
    library = probes.bitsandbytes_library(quick.packages, bool(machine.gpus))
    if library is None:
        return None
    return probes.ask(
        "bitsandbytes", LibraryLoad, machine, lambda: probes.load_library(library), lambda one: not one.error
    )


def _calibration() -> Calibration | None:
    """What was measured of GPUs, where it cannot be read; None where it can, or was never measured."""
    path = settings().cache / CALIBRATION_FILE
    if not path.is_file():
        return None
    try:
        for entry in json.loads(path.read_bytes()).values():
            Ceilings.model_validate(entry)
    except (ValueError, AttributeError) as error:  # no JSON, no object, or not figures
        return Calibration(path=path, problem=str(error).splitlines()[0])
    return None
