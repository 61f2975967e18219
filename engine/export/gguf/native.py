"""llama.cpp in a process of its own: a native crash is then an error message, not the end of the program.

:mod:`.serving` reads one JSON request from stdin there, calls a module's ``main(request, progress)`` and
answers with JSON lines on stdout: any number of ``{"progress": [done, total]}``, then one
``{"result": ...}`` or ``{"error": {code, message, hint}}``.
llama.cpp's own log goes to stderr, from where the parent quotes it.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from ...errors import WhetError
from ...processes import send, start

Item = TypeVar("Item")
Progress = Callable[[float, float], None]
"""Called with (done, total) in any unit."""

REBUILD = (
    'CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_OPENMP=OFF" '
    "pip install --force-reinstall --no-cache-dir --no-binary llama-cpp-python llama-cpp-python"
)
LOG_TAIL = 2000
PATIENCE = 600.0
"""Seconds a process may go without a word of progress."""
SLOWEST = 5e6
"""Bytes a second at which weights are read and computed on the slowest machine worth waiting for."""
OUT_OF_MEMORY = ("bad_alloc", "failed to allocate", "Cannot allocate memory", "unable to allocate")


def told(items: Sequence[Item], progress: Progress, stage: int, stages: int) -> Iterator[Item]:
    """The items of one stage of several; after each, progress is told, so that long work is not taken for a
    hang."""
    for number, item in enumerate(items, 1):
        yield item
        progress(stage + number / len(items), stages)


def patience_for(*files: Path) -> float:
    """Seconds of silence after which a process that works on ``files`` (or model folders) is stuck."""
    weights = [one for file in files for one in (file.glob("*.safetensors") if file.is_dir() else (file,))]
    return PATIENCE + sum(file.stat().st_size for file in weights if file.is_file()) / SLOWEST


def run_native(
    module: str, request: dict[str, Any], progress: Progress | None = None, patience: float | None = None
) -> dict[str, Any]:
    """Run ``module.main`` on ``request`` in a process of its own and return its result.

    Args:
        module: that :mod:`.serving` imports there.
        progress: called whenever the process reports some.
        patience: seconds it may go without doing so, by default PATIENCE; then it is killed.

    Raises:
        WhetError: the process's own error; ``gguf.native_crash`` when a signal ended it,
            ``gguf.native_abort`` when llama.cpp itself gave up, ``gguf.native_hang`` when it was silent for
            too long, ``gguf.native_failed`` when it ended without an answer.
    """
    patience = patience or PATIENCE
    with tempfile.TemporaryFile() as log:
        # An assertion of ggml's would call gdb, where there is one, before it ends the process.
        process = start("whet.engine.export.gguf.serving", module, stderr=log, GGML_NO_BACKTRACE="1")
        watch = _Watch(process, patience)
        try:
            answer = _converse(process, request, progress, watch)
        finally:
            watch.end()
            if process.poll() is None:
                process.kill()
            process.wait()
        if answer is None:
            raise (
                _hung(module, patience, log) if watch.expired else _no_answer(module, process.returncode, log)
            )
    if "error" in answer:
        raise WhetError(**answer["error"])
    result: dict[str, Any] = answer["result"]
    return result


class _Watch:
    """Kills a process that has been silent for ``seconds``."""

    def __init__(self, process: subprocess.Popen[str], seconds: float) -> None:
        self.expired = False
        self._process, self._seconds = process, seconds
        self._timer = self._start()

    def _start(self) -> threading.Timer:
        timer = threading.Timer(self._seconds, self._expire)
        timer.daemon = True
        timer.start()
        return timer

    def heard(self) -> None:
        self._timer.cancel()
        self._timer = self._start()

    def end(self) -> None:
        self._timer.cancel()

    def _expire(self) -> None:
        self.expired = True
        self._process.kill()


def _converse(
    process: subprocess.Popen[str], request: dict[str, Any], progress: Progress | None, watch: _Watch
) -> dict[str, Any] | None:
    """Send the request, forward progress; None when the process ended before it answered."""
    assert process.stdout is not None
    send(process, request, last=True)
    answer = None
    with process.stdout as stdout:
        for line in stdout:
            watch.heard()
            message = json.loads(line)
            if "progress" not in message:
                answer = message
            elif progress is not None:
                progress(*message["progress"])
    # An answer counts only from a process that also ended well.
    return answer if process.wait() == 0 else None


def _no_answer(module: str, code: int, log: IO[bytes]) -> WhetError:
    """What a process that ended without an answer died of, and what helps."""
    tail, name = _last_words(log), module.rpartition(".")[2]
    if code >= 0:
        return WhetError(
            "gguf.native_failed",
            f"{name} ended with exit code {code} and no answer. Its last words: {tail}",
            "This is a bug in whet or a broken installation; `whet doctor` checks the latter.",
        )
    name_of_signal = signal.Signals(-code).name
    if -code == signal.SIGKILL or any(words in tail for words in OUT_OF_MEMORY):
        hint = f"{name_of_signal} here means that memory ran out: free some, or export on a larger machine."
    elif -code == signal.SIGABRT:
        return WhetError(
            "gguf.native_abort",
            f"llama.cpp gave up in {name} (SIGABRT). Log: {tail}",
            "The log's last line says what it did not expect. Convert the file again; if it stays, use f16 "
            "or q8_0, and report that line.",
        )
    else:
        hint = f"Builds for another CPU crash like this. Rebuild llama.cpp portably: {REBUILD}"
    return WhetError(
        "gguf.native_crash", f"llama.cpp crashed in {name} ({name_of_signal}). Log: {tail}", hint
    )


def _hung(module: str, patience: float, log: IO[bytes]) -> WhetError:
    return WhetError(
        "gguf.native_hang",
        f"{module.rpartition('.')[2]} said nothing for {patience:.0f} s and was ended. "
        f"Log: {_last_words(log)}",
        "Free the processor and memory for it (a machine that swaps looks like this) and try again; if it "
        "stays, `whet doctor` tries this build of llama.cpp.",
    )


def _last_words(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read().decode("utf-8", "replace")[-LOG_TAIL:].strip() or "(none)"


class LlamaLog:
    """Collects llama.cpp's log and shows each finished line to ``on_line``; keep it alive while in use."""

    def __init__(self, on_line: Callable[[str], None] | None = None) -> None:
        import ctypes

        import llama_cpp

        self.lines: list[str] = []
        self._rest = ""
        self._on_line = on_line
        self._callback = llama_cpp.llama_log_callback(self._take)
        llama_cpp.llama_log_set(self._callback, ctypes.c_void_p(0))

    def _take(self, level: int, text: bytes, user_data: object) -> None:
        sys.stderr.write(text.decode("utf-8", "replace"))
        *finished, self._rest = (self._rest + text.decode("utf-8", "replace")).split("\n")
        for line in finished:
            self.lines.append(line)
            if self._on_line is not None:
                self._on_line(line)

    def reason(self) -> str:
        """The lines that say what went wrong, newest last."""
        telling = [line for line in self.lines if "error" in line.lower() or "failed" in line.lower()]
        return " ".join((telling or self.lines)[-4:]).strip()


def import_llama_cpp() -> None:
    """Import llama_cpp. Raises WhetError ``gguf.llama_cpp_missing``."""
    try:
        import llama_cpp  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:  # its bindings raise what ctypes raises
        raise WhetError(
            "gguf.llama_cpp_missing",
            f"llama-cpp-python cannot be imported: {error}.",
            f"Install it: {REBUILD}",
        ) from error
