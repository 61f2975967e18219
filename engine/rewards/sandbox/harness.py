"""The far end of :mod:`.programs`: confines itself, runs a program, and proves that its tests were reached.

The job comes on standard input, in frames: the source, then each test, then a token. The token is read only
when the tests have been run, and written beside their outcomes: a program that ends early, however it does,
has none to show. Standard input of a program without tests is what follows its source.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import sys
from pathlib import Path
from types import ModuleType

from .plain import NAME, plain

PARENT_DEATH = 1
FILES_OPEN = 64
BLOCK = 65536
CONFINED, REFUSED = b"confined\n", b"refused "
RESULT = 200
"""Descriptor that outcomes go to, out of the way of those that a program opens."""


def main() -> None:
    """Arguments: the folder to write to, strict or limits; then the descriptor for outcomes, seconds of CPU,
    bytes of memory and of a file, and the count of tests (-1: none, standard input follows the source).
    """
    folder, sandbox = sys.argv[1:3]
    result, seconds, memory, file, tests = map(int, sys.argv[3:])
    if result != RESULT:
        os.dup2(result, RESULT, inheritable=False)
        os.close(result)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PARENT_DEATH, ctypes.c_ulong(signal.SIGKILL))
    limit(seconds, memory, file)
    if sandbox == "strict":
        try:
            confine(Path(folder))
        except OSError as error:
            os.write(RESULT, REFUSED + str(error.strerror).encode())
            os._exit(1)
    os.write(RESULT, CONFINED)
    source = frame(0)
    if tests < 0:
        sys.argv = ["program.py"]
        run(source, vars(_main()))
        return
    job = os.dup(0)
    silent = os.open(os.devnull, os.O_RDONLY)
    os.dup2(silent, 0)
    os.close(silent)
    judge(source, tests, job)


def _main() -> ModuleType:
    """A fresh `__main__`, as a program expects to find itself."""
    module = sys.modules["__main__"] = ModuleType("__main__")
    return module


def limit(seconds: int, memory: int, file: int) -> None:
    """Bound what a runaway program costs; bytes and seconds."""
    for kind, soft, hard in (
        (resource.RLIMIT_CPU, seconds, seconds + 1),  # a signal first, whose name says what happened
        (resource.RLIMIT_AS, memory, memory),
        (resource.RLIMIT_FSIZE, file, file),
        (resource.RLIMIT_NOFILE, RESULT + FILES_OPEN, RESULT + FILES_OPEN),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        now = resource.getrlimit(kind)[1]
        most = hard if now == resource.RLIM_INFINITY else min(hard, now)
        resource.setrlimit(kind, (min(soft, most), most))


def confine(folder: Path) -> None:
    """Leave Python's own files to read, ``folder`` to write, and few system calls. Raises OSError."""
    from . import landlock, seccomp

    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, f"{sys.platform} has neither seccomp nor Landlock")

    own = [Path(prefix) for prefix in {sys.prefix, sys.base_prefix, sys.exec_prefix}]
    system = [Path(path) for path in ("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime")]
    landlock.restrict([*own, *system, Path("/dev/urandom")], [folder, Path(os.devnull)])
    seccomp.install()


def frame(descriptor: int) -> bytes:
    """The next part of the job: its length in digits, a line end, its bytes. Never reads further."""
    digits = b""
    while (byte := os.read(descriptor, 1)) not in (b"\n", b""):
        digits += byte
    parts, left = [], int(digits or b"0")
    while left and (part := os.read(descriptor, min(left, BLOCK))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def run(source: bytes, namespace: dict[str, object]) -> None:
    exec(compile(source, "program.py", "exec", dont_inherit=True), namespace)


def judge(source: bytes, tests: int, job: int) -> None:
    """Load the program, run the tests one after the other, and only then fetch the token."""
    write, end, take, execute, check = os.write, os._exit, frame, run, plain
    module = ModuleType("program")
    sys.modules["program"] = module  # where dataclasses look their types up
    namespace = vars(module)
    try:
        execute(source, namespace)
    except BaseException:
        end(1)
    outcomes = b""
    for _ in range(tests):
        test = take(job)
        try:
            namespace[NAME] = check
            execute(test, namespace)
            outcomes += b"1"
        except BaseException:
            outcomes += b"0"
    write(RESULT, take(job) + b" " + outcomes)
    end(0)


if __name__ == "__main__":
    main()
