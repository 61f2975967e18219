"""Folders of compiled kernels: for whom they were compiled, what is broken in them. Light.

Triton hashes source, options and versions into an entry's name, so entries of other versions or GPUs are
never wrongly used; they are dead weight. What does harm is an entry cut off by a full disk or a kill.
"""

from __future__ import annotations

import json
import os
import pwd
import re
from collections import Counter
from functools import cache
from itertools import islice
from pathlib import Path

from ..hardware import Machine
from ..processes import environment
from .facts import KernelCache

LOOK = 300
"""Entries looked at for a plan; all of them for `whet doctor`."""
KERNELS = Path(__file__).resolve().parents[2] / "kernels"
KERNEL = re.compile(r"^@(?:triton\.)?(?:jit|autotune|heuristics)\b[^\n]*\n(?:@[^\n]*\n)*def (\w+)", re.M)
LAUNCH = re.compile(r"\b(\w+)\[[^\]\n]*\]\(")
BINARIES = (".cubin", ".so", ".hsaco", ".ptx")


def read_caches(machine: Machine, everything: bool = False) -> list[KernelCache]:
    """Triton's cache (for a plan only where there is a GPU), and torch.compile's where it exists."""
    found = [_triton(machine, None if everything else LOOK)] if everything or machine.gpus else []
    inductor = inductor_folder()
    if inductor.is_dir():
        found.append(
            KernelCache(
                name="inductor", path=inductor, writable=_writable(inductor), owner=_owner(inductor),
                size=_size(inductor) if everything else 0,
            )
        )  # fmt: skip
    return found


def triton_folder() -> Path:
    """By Triton's own variables."""
    home = Path(os.environ.get("TRITON_HOME", "~")) / ".triton" / "cache"
    return Path(os.environ.get("TRITON_CACHE_DIR", home)).expanduser().absolute()


def inductor_folder() -> Path:
    """By torch's own variable, or where whet has its processes put it."""
    return Path(environment()["TORCHINDUCTOR_CACHE_DIR"]).expanduser().absolute()


def _triton(machine: Machine, most: int | None) -> KernelCache:
    folder = triton_folder()
    if not folder.is_dir():
        return KernelCache(name="triton", path=folder, writable=_writable(folder), known=len(kernel_names()))
    with os.scandir(folder) as entries:
        folders = [Path(entry.path) for entry in islice(entries, most)]
        more = next(entries, None) is not None
    triton = machine.versions.get("triton", "")
    here = {f"triton {triton}, sm_{gpu.capability[0]}{gpu.capability[1]}" for gpu in machine.gpus}
    looked = [_entry(one) for one in folders if one.is_dir()]
    targets = Counter(entry.target for entry in looked if entry.target)
    mine = [entry for entry in looked if entry.target in here]
    foreign = {target: count for target, count in targets.items() if here and target not in here}
    return KernelCache(
        name="triton",
        path=folder,
        writable=_writable(folder),
        owner=_owner(folder),
        entries=sum(targets.values()),
        more=more,
        size=sum(entry.size for entry in looked),
        usable=len(mine),
        foreign=foreign,
        foreign_folders=sorted(str(entry.folder) for entry in looked if entry.target in foreign),
        broken={str(entry.folder): entry.broken for entry in looked if entry.broken},
        kernels=sorted({entry.kernel for entry in mine} & kernel_names()),
        known=len(kernel_names()),
    )


class _Entry:
    """One folder of the cache: the kernel, what it was compiled for, whether it is whole."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.kernel, self.target, self.broken, self.size = folder, "", "", "", 0
        for file in os.scandir(folder):
            if file.name.startswith("tmp.pid_"):
                continue  # another process is writing it, and will rename it
            size = file.stat(follow_symlinks=False).st_size
            self.size += size
            if size == 0 and file.name.endswith((*BINARIES, ".json")):
                self.broken = f"{file.name} is empty"
            elif file.name.endswith(".json") and not file.name.startswith("__grp__"):
                self._read(Path(file.path))

    def _read(self, file: Path) -> None:
        try:
            found = json.loads(file.read_bytes())
        except ValueError:
            self.broken = f"{file.name} is cut off"
            return
        target = found.get("target") if isinstance(found, dict) else None
        if target:
            self.kernel = file.stem
            self.target = f"triton {found.get('triton_version', '?')}, sm_{target['arch']}"


def _entry(folder: Path) -> _Entry:
    return _Entry(folder)


@cache
def kernel_names() -> frozenset[str]:
    """Names of whet's Triton kernels, from their source: what is launched, not the parts it is made of."""
    texts = [file.read_text(encoding="utf-8") for file in KERNELS.glob("*.py")]
    launched = {name for text in texts for name in LAUNCH.findall(text)}
    compiled = (name for text in texts for name in KERNEL.findall(text))
    return frozenset(name for name in compiled if name in launched or name.endswith("_kernel"))


def _writable(folder: Path) -> bool:
    """Whether files can be made in ``folder``, or in what it would be made in."""
    while not folder.exists():
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def _owner(folder: Path) -> str:
    number = folder.stat().st_uid
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:  # a user of another machine, on a shared disk
        return str(number)


def _size(folder: Path) -> int:
    return sum(file.stat(follow_symlinks=False).st_size for file in folder.rglob("*") if file.is_file())
