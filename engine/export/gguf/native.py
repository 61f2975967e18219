"""llama.cpp in a process of its own: a native crash is then an error message, not the end of the program.

A process module reads one JSON request from stdin and answers with JSON lines on stdout: any number of
``{"progress": [done, total]}``, then one ``{"result": ...}`` or ``{"error": {code, message, hint}}``.
llama.cpp's own log goes to stderr, from where the parent quotes it.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import IO, Any

from ...errors import WhetError
from ...processes import send, start

Progress = Callable[[float, float], None]
"""Called with (done, total) in any unit."""

REBUILD = (
    'CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_OPENMP=OFF" '
    "pip install --force-reinstall --no-cache-dir --no-binary llama-cpp-python llama-cpp-python"
)
LOG_TAIL = 2000


def run_native(module: str, request: dict[str, Any], progress: Progress | None = None) -> dict[str, Any]:
    """Run ``python -P -m module`` on ``request`` and return its result.

    Raises:
        WhetError: the process's own error; ``gguf.native_crash`` when a signal ended it;
            ``gguf.native_failed`` when it ended without an answer.
    """
    with tempfile.TemporaryFile() as log:
        process = start(module, stderr=log)
        try:
            answer = _converse(process, request, progress)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
        if answer is None:
            raise _no_answer(module, process.returncode, log)
    if "error" in answer:
        raise WhetError(**answer["error"])
    result: dict[str, Any] = answer["result"]
    return result


def _converse(
    process: subprocess.Popen[str], request: dict[str, Any], progress: Progress | None
) -> dict[str, Any] | None:
    """Send the request, forward progress; None when the process ended before it answered."""
    assert process.stdout is not None
    send(process, request, last=True)
    answer = None
    with process.stdout as stdout:
        for line in stdout:
            message = json.loads(line)
            if "progress" not in message:
                answer = message
            elif progress is not None:
                progress(*message["progress"])
    # An answer counts only from a process that also ended well.
    return answer if process.wait() == 0 else None


def _no_answer(module: str, code: int, log: IO[bytes]) -> WhetError:
    log.seek(0)
    tail = log.read().decode("utf-8", "replace")[-LOG_TAIL:].strip()
    name = module.rpartition(".")[2]
    if code >= 0:
        return WhetError(
            "gguf.native_failed",
            f"{name} ended with exit code {code} and no answer. Its last words: {tail or '(none)'}",
            "This is a bug in whet or a broken installation; `whet doctor` checks the latter.",
        )
    name_of_signal = signal.Signals(-code).name
    if -code == signal.SIGKILL:
        hint = "SIGKILL usually means that memory ran out: free some, or export on a larger machine."
    else:
        hint = f"Builds for another CPU crash like this. Rebuild llama.cpp portably: {REBUILD}"
    return WhetError(
        "gguf.native_crash", f"llama.cpp crashed in {name} ({name_of_signal}). Log: {tail or '(none)'}", hint
    )


def serve(handle: Callable[[dict[str, Any], Progress], dict[str, Any]]) -> None:
    """The other side: read the request, call ``handle(request, progress)``, write the answer."""
    out = sys.stdout

    def say(message: dict[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    try:
        result = handle(json.load(sys.stdin), lambda done, total: say({"progress": [done, total]}))
    except WhetError as error:
        say({"error": error.as_dict()})
    else:
        say({"result": result})


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
