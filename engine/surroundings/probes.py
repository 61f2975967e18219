"""Slow looks at the machine, each in a process of its own: what it loads may crash, and must not take us.

Good answers are kept under WHET_HOME's cache for as long as the files they are about stay the same. Bad ones
too, for `whet plan` alone, which never waits: `whet doctor` tries again, since the cure may lie elsewhere.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from ..hardware import Machine
from ..processes import environment
from ..runs.files import private_dir, write_atomic
from ..settings import settings
from .facts import Fact, ImportSmoke, LibraryLoad, LlamaSmoke, Packages
from .packages import library_name, package_folder, wanted_bitsandbytes

FILE = "probes.json"
IMPORTED = ("torch", "transformers", "accelerate", "peft", "datasets", "trl")
WORDS = 400
PATIENCE = 180.0
"""Seconds that a first import from a slow disk may take."""
MISSING = re.compile(r"(\S+?\.so[.\d]*): cannot open shared object file")
LOADER_FLAGS = ("LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONPATH", "BNB_CUDA_VERSION", "LLAMA_CPP_LIB_PATH")
PLACES = (
    "/usr/local/cuda*/lib64",
    "/usr/local/cuda*/targets/*/lib",
    "/usr/lib/x86_64-linux-gnu",
    "/opt/cuda/lib64",
)
"""Where CUDA's libraries lie when the loader does not look there."""

Answer = TypeVar("Answer", bound=Fact)


def try_imports(names: Sequence[str] = IMPORTED) -> ImportSmoke:
    """Import what training imports, in its order; absent packages are another finding's."""
    started = time.monotonic()
    lines, code, said = _run("import_process", *(name for name in names if find_spec(name) is not None))
    last = lines[-1] if lines else {}
    failed = last.get("failed") or (last.get("importing") if code else None)
    return ImportSmoke(
        seconds=round(time.monotonic() - started, 1),
        failed=failed,
        error=last.get("error", said if failed else "")[:WORDS],
        signal=_signal(code),
    )


def bitsandbytes_library(packages: Packages, gpu: bool) -> Path | None:
    """The library that bitsandbytes will choose; None where it is not installed or has none to choose."""
    folder = package_folder("bitsandbytes")
    on_gpu = gpu and packages.torch_cuda is not None
    wanted = wanted_bitsandbytes(packages) if on_gpu else None
    if folder is None or (on_gpu and wanted is None):
        return None
    return folder / library_name(wanted)


def load_library(
    library: Path, after: Sequence[str] = ("torch",), places: Sequence[str] = PLACES
) -> LibraryLoad:
    """Load a native library in a process of its own.

    Args:
        library: the file.
        after: modules imported before; torch's packages bring CUDA's libraries.
        places: patterns of folders in which a library that it wants may lie unseen by the loader.
    """
    code, out, said = _run_text("library_process", str(library), *after)
    error = out.strip() or (said if code else "")
    missing = MISSING.search(error)
    wants = missing[1] if missing else None
    return LibraryLoad(
        library=library.name,
        error=error[-WORDS:],
        wants=wants,
        found_in=_find(wants, places) if wants else None,
    )


def run_llama() -> LlamaSmoke:
    """Quantise, load and run a tiny model with llama.cpp."""
    if find_spec("llama_cpp") is None:
        return LlamaSmoke(status="missing")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="whet-llama-") as folder:
        lines, code, said = _run("llama_process", folder)
    told: dict[str, Any] = {}
    for line in lines:
        told |= line
    step, status = told.get("step", "import"), "works"
    if code:
        status = "crashed" if code < 0 else "failed"
    elif "error" in told:
        status = "unloadable" if step == "import" else "failed"
    return LlamaSmoke.model_validate(
        {
            "status": status,
            "step": step,
            "signal": _signal(code),
            "log": (f"{said} {told.get('error', '')}".strip() if status != "works" else "")[-WORDS:],
            "seconds": round(time.monotonic() - started, 1),
            **{key: told[key] for key in ("version", "features", "gpu_offload") if key in told},
        }
    )


def remembered(name: str, kind: type[Answer], machine: Machine) -> Answer | None:
    """The last answer of a probe, if what it was about has not changed since."""
    kept = _kept().get(name)
    if not isinstance(kept, dict) or kept.get("key") != _key(name, kind, machine):
        return None
    return kind.model_validate(kept["value"])


def ask(
    name: str,
    kind: type[Answer],
    machine: Machine,
    probe: Callable[[], Answer],
    good: Callable[[Answer], bool],
) -> Answer:
    """A remembered good answer, else the probe's, which is then kept."""
    known = remembered(name, kind, machine)
    if known is not None and good(known):
        return known
    answer = probe()
    _keep(name, {"key": _key(name, kind, machine), "value": answer.model_dump(mode="json")})
    return answer


def _keep(name: str, entry: dict[str, Any]) -> None:
    """Add an answer to the file, one process or thread at a time."""
    private_dir(settings().home)
    file = private_dir(settings().cache) / FILE
    with open(file.with_suffix(".lock"), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        write_atomic(file, json.dumps(_kept() | {name: entry}, indent=1).encode())


def _kept() -> dict[str, Any]:
    file = settings().cache / FILE
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_bytes())
    except ValueError:  # a full disk cut it off: the probes are asked again
        return {}
    return found if isinstance(found, dict) else {}


def _key(name: str, kind: type[Fact], machine: Machine) -> str:
    """Versions, files and variables that decide over the answer, and what an answer consists of."""
    packages = {"imports": IMPORTED, "bitsandbytes": ("bitsandbytes", "torch"), "llama_cpp": ("llama_cpp",)}
    parts: list[Any] = [
        name,
        sorted(kind.model_fields),
        sys.executable,
        machine.versions,
        machine.cpu_name,
        [g.name for g in machine.gpus],
    ]
    parts += [(flag, os.environ.get(flag)) for flag in LOADER_FLAGS]
    for package in packages[name]:
        folder = package_folder(package)
        natives = [] if folder is None else [*folder.glob("*.so"), *folder.glob("lib/*.so")]
        files = [] if folder is None else [folder / "__init__.py", *sorted(natives)]
        parts += [
            (str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files if file.is_file()
        ]
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:16]


def _run(module: str, *arguments: str) -> tuple[list[dict[str, Any]], int, str]:
    """JSON lines of a probe's process, its code, the end of what it said."""
    code, out, said = _run_text(module, *arguments)
    return [json.loads(line) for line in out.splitlines() if line.endswith("}")], code, said


def _run_text(module: str, *arguments: str) -> tuple[int, str, str]:
    command = [sys.executable, "-P", "-m", f"whet.engine.surroundings.{module}", *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=PATIENCE, env=environment(), stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        out = (error.stdout or b"").decode(errors="replace")
        return 1, out, f"no end within {PATIENCE:.0f} s"
    said = " ".join(done.stderr.decode(errors="replace").split())[-WORDS:]
    return done.returncode, done.stdout.decode(errors="replace"), said


def _signal(code: int) -> str | None:
    return signal.Signals(-code).name if code < 0 else None


def _find(library: str, places: Sequence[str]) -> str | None:
    """A folder on this machine with the library."""
    site = Path(sysconfig.get_paths()["purelib"])
    folders = [*site.glob("nvidia/*/lib"), *(one for place in places for one in Path("/").glob(place[1:]))]
    return next((str(folder) for folder in folders if (folder / library).exists()), None)
