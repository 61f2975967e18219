"""Whatever ends llama.cpp in one of its processes becomes an error with a remedy, and then a finding.

A package of the name ``llama_cpp`` that really crashes lies in front of the real one for the processes' sake
only: trial, quantisation and smoke test run as they always do.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.exported import baseline, healthy_gguf, learnt_model

from whet.engine.checks.exported import ExportFacts, run_export_checks
from whet.engine.data.tokenizer_files import TokenizerFiles
from whet.engine.errors import WhetError
from whet.engine.export.gguf import native
from whet.engine.export.gguf.native import REBUILD, patience_for, run_native
from whet.engine.export.gguf.quantize import quantize
from whet.engine.export.gguf.trial import choose_pretokenizer
from whet.engine.export.gguf.vocabulary import read_vocabulary
from whet.engine.export.smoke import prove
from whet.engine.export.verdict import Verdict
from whet.engine.findings import Finding

ENDS = {
    "SIGSEGV": "ctypes.string_at(0)",
    "SIGILL": "os.kill(os.getpid(), signal.SIGILL)",
    "SIGABRT": "print('GGML_ASSERT(ne0 == 1) failed', file=sys.stderr, flush=True); os.abort()",
    "SIGKILL": "os.kill(os.getpid(), signal.SIGKILL)",
    "bad_alloc": "print('what(): std::bad_alloc', file=sys.stderr, flush=True); os.abort()",
}
STUB = """
import ctypes, os, signal, sys
llama_log_callback = lambda function: function
llama_log_set = lambda *arguments: None
llama_model_quantize_default_params = type("Params", (ctypes.Structure,), {{}})
llama_chat_format = None
class Llama:
    def __init__(self, *arguments, **settings):
        {end}
llama_model_quantize = Llama
"""


@pytest.fixture
def crashing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def put(end: str) -> None:
        (tmp_path / "llama_cpp.py").write_text(STUB.format(end=end))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")

    return put


def trial(folder: Path) -> None:
    files = TokenizerFiles.read(learnt_model())
    choose_pretokenizer(files, read_vocabulary(files, 400))


def quantisation(folder: Path) -> None:
    quantize(healthy_gguf(), folder / "q.gguf", "q8_0")


def findings_of(work: Callable[[Path], None], folder: Path) -> tuple[list[Finding], WhetError]:
    with pytest.raises(WhetError) as caught:
        work(folder)
    assert [path.name for path in folder.iterdir()] == ["llama_cpp.py"], "something half-written stayed"
    return run_export_checks(ExportFacts(failure=caught.value)), caught.value


@pytest.mark.parametrize("work", [trial, quantisation])
@pytest.mark.parametrize(
    ("end", "id", "remedy"),
    [
        ("SIGSEGV", "E05", REBUILD),
        ("SIGILL", "E05", REBUILD),
        ("SIGABRT", "E05", "log's last line"),
        ("SIGKILL", "X02", "memory"),
        ("bad_alloc", "X02", "memory"),
    ],
)
def test_a_crash_ends_the_export_with_a_finding(
    work: Callable[[Path], None],
    end: str,
    id: str,
    remedy: str,
    crashing: Callable[[str], None],
    tmp_path: Path,
) -> None:
    learnt_model(), healthy_gguf()
    crashing(ENDS[end])
    (finding,), error = findings_of(work, tmp_path)
    assert (finding.id, finding.severity) == (id, "error") and finding.fix is not None
    assert remedy in f"{finding.fix.text} {finding.fix.command}"
    name = "SIGABRT" if end == "bad_alloc" else end
    assert name in error.message and (end != "SIGABRT" or "GGML_ASSERT" in error.message)


@pytest.mark.parametrize(
    ("end", "id", "remedy"),
    [
        ("SIGSEGV", "E05", REBUILD),
        ("SIGILL", "E05", REBUILD),
        ("SIGABRT", "X03", "log's last line"),
        ("SIGKILL", "X02", "memory"),
        ("bad_alloc", "X02", "memory"),
    ],
)
def test_a_crash_in_the_smoke_test_fails_the_verdict(
    end: str, id: str, remedy: str, crashing: Callable[[str], None]
) -> None:
    measured, gguf = baseline(), healthy_gguf()
    crashing(ENDS[end])
    verdict = prove(gguf, measured, keep=False)
    crash = verdict.proofs[-1]
    assert verdict.status == "fail" and crash.name == "llama.cpp" and crash.evidence["step"] == "load"
    (finding,) = _findings(verdict)
    assert (finding.id, finding.severity) == (id, "error") and finding.fix is not None
    assert remedy in f"{finding.fix.text} {finding.fix.command}"


def _findings(verdict: Verdict) -> list[Finding]:
    return run_export_checks(ExportFacts(verdicts=(verdict,)))


HANG = "signal.pause()"


@pytest.mark.parametrize("work", [trial, quantisation])
def test_a_hang_is_ended_and_told(
    work: Callable[[Path], None],
    crashing: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    learnt_model(), healthy_gguf()
    impatient(monkeypatch)
    crashing(HANG)
    (finding,), error = findings_of(work, tmp_path)
    assert error.code == "gguf.native_hang" and "said nothing for 1 s" in error.message
    assert finding.id == "E05" and finding.fix is not None and "whet doctor" in finding.fix.text


def test_a_hang_of_the_smoke_test_fails_the_verdict(
    crashing: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured, gguf = baseline(), healthy_gguf()
    impatient(monkeypatch)
    crashing(HANG)
    (finding,) = _findings(prove(gguf, measured, keep=False))
    assert finding.id == "E05" and finding.evidence["code"] == "gguf.native_hang"


def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "PATIENCE", 1.0)
    monkeypatch.setattr(native, "SLOWEST", 1e12)


def test_progress_is_a_sign_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice as long as its patience, but never silent for so long."""
    (tmp_path / "slow_stub.py").write_text(
        "import select\n"
        "def main(request, progress):\n"
        "    for step in range(8):\n"
        "        select.select([], [], [], 0.25)\n"
        "        progress(step, 8)\n"
        "    return {'done': True}\n"
    )
    source = str(Path(native.__file__).parents[4])
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{source}")
    assert run_native("slow_stub", {}, patience=1.0) == {"done": True}


def test_large_files_are_waited_for(tmp_path: Path) -> None:
    large = tmp_path / "model.safetensors"
    with large.open("wb") as file:
        file.truncate(20 << 30)
    assert patience_for(tmp_path) == patience_for(large) > 3600 > patience_for(tmp_path / "none") == 600


def test_what_libraries_print_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "noisy.py").write_text(
        "import os\n"
        "def main(request, progress):\n"
        "    os.write(1, b'[New LWP 1]\\n')\n"
        "    progress(1, 1)\n"
        "    print('a line of Python')\n"
        "    return {'quiet': os.environ['GGML_NO_BACKTRACE']}\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    assert run_native("noisy", {}) == {"quiet": "1"}
