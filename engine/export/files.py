"""Files that are whole or absent: written beside their place under another name, flushed, then renamed."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import WhetError
from ..runs.failures import NO_SPACE_BYTES
from ..runs.files import sync_path

PARTIAL, REPLACED = ".partial", ".replaced."
AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Of renameat2 in Linux's fcntl.h and fs.h."""


def require_space(directory: Path, needed: int) -> None:
    """Raise WhetError ``export.disk_full`` unless ``needed`` bytes are free where ``directory`` lies."""
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise _disk_full(directory, needed, free)


@contextmanager
def atomic_file(out: Path, needed: int) -> Iterator[Path]:
    """A path to write ``out`` under; it takes its place when the block ends well, else it vanishes.

    Args:
        out: the file's place; its folder is created.
        needed: bytes about to be written, checked first.

    Raises:
        WhetError: ``export.disk_full``, before writing or when the disk fills meanwhile.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    sweep(out.parent)
    require_space(out.parent, needed)
    partial = out.with_name(f".{out.name}.{os.getpid()}{PARTIAL}")
    try:
        yield partial
        sync_path(partial)
        os.replace(partial, out)
        sync_path(out.parent)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise _disk_full(out.parent, needed, shutil.disk_usage(out.parent).free) from error
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def disk_full_said(partial: Path) -> Iterator[None]:
    """Inside :func:`atomic_file`, for a writer that tells no errno: its error on a full disk is of that."""
    try:
        yield
    except WhetError as error:
        if shutil.disk_usage(partial.parent).free < NO_SPACE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(partial)) from error
        raise


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill; it takes ``out``'s place, replacing a folder there, when the block ends well, else it
    vanishes."""
    partial = out.with_name(f".{out.name}.{os.getpid()}{PARTIAL}")
    replaced = out.with_name(f".{out.name}{REPLACED}{os.getpid()}{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in [*partial.rglob("*"), partial]:
            sync_path(path)
        if not (out.exists() and exchange(partial, out)):
            # Moved and not removed here: nobody finds half a folder under this name.
            if out.exists():
                os.replace(out, replaced)
            os.replace(partial, out)
        sync_path(out.parent)
    finally:
        if replaced.exists() and not out.exists():
            os.replace(replaced, out)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step, so that at no moment either is missing; False where it cannot be done."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    if libc.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(other))


def write_text(out: Path, text: str) -> Path:
    """``out`` with this text, whole or as it was before. Raises as :func:`atomic_file`."""
    data = text.encode()
    with atomic_file(out, len(data)) as partial:
        partial.write_bytes(data)
    return out


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A folder in ``parent`` that is there while the block runs."""
    folder = parent / f".scratch.{os.getpid()}{PARTIAL}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what processes that were killed left half-written in ``folder``.

    A folder that one had moved away, and not replaced yet, comes back.
    """
    for stale in folder.glob(f".*{PARTIAL}"):
        pid = stale.name.removesuffix(PARTIAL).rpartition(".")[2]
        if not pid.isdigit() or _alive(int(pid)):
            continue
        name, moved, _ = stale.name[1:].rpartition(REPLACED)
        if moved and not (folder / name).exists():
            os.replace(stale, folder / name)
        elif stale.is_dir():
            shutil.rmtree(stale, ignore_errors=True)
        else:
            stale.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _disk_full(directory: Path, needed: int, free: int) -> WhetError:
    return WhetError(
        "export.disk_full",
        f"The export needs {needed} bytes ({needed / 1e9:.2f} GB) in {directory}, "
        f"and {free} bytes ({free / 1e9:.2f} GB) are free.",
        "Free some space, choose smaller GGUF types, or export to another disk.",
    )
