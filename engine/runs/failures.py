"""From any exception to the error a person can act on: a code, the fact, the next step."""

from __future__ import annotations

import errno
import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import WhetError
from .damaged_files import damaged_file

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
# Writers in Rust and C++ (safetensors, Arrow) keep the errno only in their text.
DISK_FULL_TEXTS = ("No space left on device", "Disk quota exceeded", "(os error 28)", "(os error 122)")
NO_MEMORY_TEXTS = ("Cannot allocate memory", "can't allocate memory", "(os error 12)")
TORCH_WRITER = "inline_container.cc"
"""In the text of the RuntimeError of torch.save, which tells neither file nor errno."""
KEPT = "Finished checkpoints are untouched."
DISK_ERRORS = {
    errno.EFBIG: (
        "run.file_too_large",
        "A file grew beyond what is allowed here",
        "Raise the limit (`ulimit -f unlimited`), or set WHET_HOME to a disk that takes large files.",
    ),
    errno.EIO: (
        "run.disk_error",
        "The disk failed",
        "Look at `dmesg` and `smartctl -a`, and set WHET_HOME to another disk if need be.",
    ),
    errno.EROFS: (
        "run.disk_error",
        "The disk became read-only, as one with errors does",
        "Look at `dmesg`, and mount it writable again.",
    ),
}
"""Errno -> code, fact, what to do."""
NO_SPACE_BYTES = 1 << 20
"""Below this much free space a failure of unknown cause (torch.save tells none) counts as a full disk."""


LOST_CONTACT_TEXTS = ("gloo", "NCCL", "monitoredBarrier")
"""In the text of the RuntimeError that an exchange between ranks raises when one of them is gone."""


def describe_failure(error: BaseException, directory: Path, log: str = "worker.log") -> WhetError:
    """What ended the run whose files are in ``directory``; its texts are safe to print and to store.

    The traceback is in its file ``log``.
    """
    found = _describe(error, directory, log)
    return WhetError(found.code, _printable(found.message), _printable(found.hint))


def lost_contact(error: BaseException) -> bool:
    """Whether an exchange with another rank failed: mostly because that rank failed before."""
    return any(_is_lost_contact(link) for link in _chain(error))


def _is_lost_contact(error: BaseException) -> bool:
    if isinstance(error, WhetError):
        return error.code == "run.ranks_unmet"
    if not isinstance(error, RuntimeError):
        return False
    # torch's own classes are known by name here: this module is light.
    named = any(kind.__name__ == "DistError" for kind in type(error).__mro__)
    return named or any(text in str(error) for text in LOST_CONTACT_TEXTS)


def _describe(error: BaseException, directory: Path, log: str) -> WhetError:
    chain = list(_chain(error))
    if any(_is_disk_full(link) for link in chain):
        return disk_full(directory)
    for link in chain:
        if isinstance(link, WhetError):
            return link
    if any(_is_out_of_memory(link) for link in chain):
        return WhetError(
            "run.out_of_memory",
            f"Memory ran out: {_headline(error)}",
            "Lower training.batch_size or model.max_length, or set model.precision=nf4; "
            "`whet plan` shows what each costs.",
        )
    if isinstance(error, FloatingPointError):
        return WhetError(
            "train.not_finite",
            f"The numbers left the finite range: {_headline(error)}",
            "Lower training.learning_rate, and look at the last rows for broken data.",
        )
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return WhetError(
            "run.file_missing",
            f"A file the run needs is gone: {error.filename}",
            f"Put it back, or plan again with the data's new place. {KEPT}",
        )
    for link in chain:
        if (damage := _damage(link, directory, log)) is not None:
            return damage
    for number, (code, fact, hint) in DISK_ERRORS.items():
        if any(_is_of_disk(link, number) for link in chain):
            words = f"{hint} {KEPT} Then `whet resume {directory.name}` goes on."
            return WhetError(code, f"{fact}: {_headline(error)}", words)
    if _free_bytes(directory) < NO_SPACE_BYTES:
        return disk_full(directory)
    return WhetError(
        "run.crashed",
        _headline(error),
        f"The traceback is in {directory / log}. {KEPT} `whet resume {directory.name}` goes on.",
    )


def disk_full(directory: Path) -> WhetError:
    """The disk of ``directory`` is full, with what is left of it."""
    return WhetError(
        "run.disk_full",
        f"The disk of {directory} is full ({_free_bytes(directory) / 1e6:.1f} MB free).",
        f"Free some space, then `whet resume {directory.name}`. {KEPT}",
    )


@contextmanager
def readable_disk_errors(directory: Path) -> Iterator[None]:
    """Turn an OSError of writing under ``directory`` into ``run.disk_full`` or ``run.not_writable``."""
    try:
        yield
    except OSError as error:
        if _is_disk_full(error):
            raise disk_full(directory) from error
        raise WhetError(
            "run.not_writable",
            f"Cannot write {error.filename or directory}: {error.strerror}.",
            "Set WHET_HOME to a folder you can write to.",
        ) from error


def _is_disk_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return True
    return not isinstance(error, WhetError) and any(text in str(error) for text in DISK_FULL_TEXTS)


def _damage(error: BaseException, directory: Path, log: str) -> WhetError | None:
    """Where an error comes of weights, or of JSON, that a file of the run no longer holds."""
    mend = (
        f"Put it back from a copy; what is deleted from the hub's cache is fetched again. {KEPT} Then "
        f"`whet resume {directory.name}` goes on."
    )
    if type(error).__name__ == "SafetensorError" and "deserializ" in str(error):  # by name: this is light
        fact = f"A file that was read is damaged: {_headline(error)}"
        return WhetError("run.file_damaged", fact, f"{directory / log} says which one. {mend}")
    if isinstance(error, json.JSONDecodeError):
        path = damaged_file(error, directory)
        if path is not None:
            return WhetError("run.file_damaged", f"{path} is damaged: {_headline(error)}", mend)
    return None


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    system = isinstance(error, OSError | RuntimeError)
    return system and any(text in str(error) for text in NO_MEMORY_TEXTS)


def _is_of_disk(error: BaseException, number: int) -> bool:
    """Whether an error has this errno, or tells it in its text, or means it without telling."""
    if isinstance(error, WhetError):
        return False
    if number == errno.EFBIG and TORCH_WRITER in str(error):
        return resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY
    return (isinstance(error, OSError) and error.errno == number) or f"(os error {number})" in str(error)


def _free_bytes(directory: Path) -> int:
    """Free space where ``directory`` is, or where it would be created."""
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    return shutil.disk_usage(existing).free


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and what it was raised from, newest first."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _headline(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _printable(text: str) -> str:
    """File names may hold undecodable bytes (surrogates); JSON and terminals may not."""
    return text.encode("utf-8", "backslashreplace").decode()
