"""Programs that reach for what they must not have, never end, or claim tests that they did not pass."""

from __future__ import annotations

import os
import socket
import struct
import textwrap
from pathlib import Path

import pytest

from whet.engine.errors import WhetError
from whet.engine.rewards.sandbox import programs, seccomp
from whet.engine.rewards.sandbox.programs import MEGABYTE, Limits, run_program, run_tests
from whet.engine.rewards.verifiers.code import code_tests, right_tests

LIMITS = Limits(seconds=5.0, memory=256 * MEGABYTE)
DENIED = "PermissionError"


def attempt(body: str, limits: Limits = LIMITS) -> str:
    """What a program prints that says `did it` after ``body``, or the name of the error that kept it."""
    indented = textwrap.indent(textwrap.dedent(body).strip(), "    ")
    kept = "except BaseException as error:\n    print(type(error).__name__)"
    return run_program(f"try:\n{indented}\n    print('did it')\n{kept}", "", limits).output.strip()


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("outside") / "secret"
    path.write_text("s3cret")
    return path


def test_no_network_which_it_would_have_otherwise() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        connect = f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 1)"
        assert attempt(connect) == DENIED
        assert attempt(connect, Limits(5.0, sandbox="limits")) == "did it"
    assert attempt("import socket; socket.socket(socket.AF_UNIX)") == DENIED


def test_no_file_outside_its_folder(outside: Path) -> None:
    assert attempt(f"open({str(outside)!r}).read()") == DENIED
    assert attempt(f"open({str(outside)!r}, 'w')") == DENIED
    assert attempt(f"import os; os.remove({str(outside)!r})") == DENIED
    assert attempt(f"import os; os.chmod({str(outside)!r}, 0)") == DENIED
    assert attempt(f"open({str(outside.parent / 'new')!r}, 'w')") == DENIED
    assert attempt(f"import os; os.truncate({str(outside)!r}, 0)") == DENIED
    assert outside.read_text() == "s3cret"
    assert attempt(f"open({str(outside)!r}).read()", Limits(5.0, sandbox="limits")) == "did it"
    assert attempt("open('/etc/passwd')") == DENIED


def test_its_own_folder_is_empty_writable_and_gone_afterwards() -> None:
    kept = (
        "import os, tempfile; print(os.listdir(), os.getcwd()); open('a', 'w').write('b'); tempfile.mkdtemp()"
    )
    outcome = run_program(kept, "", LIMITS)
    listed, folder = outcome.output.split()
    assert (outcome.ended, listed) == ("ok", "[]") and not Path(folder).exists()


def test_no_folder_is_too_deep_to_be_deleted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    nested = "import os\nfor _ in range(1200):\n    os.mkdir('a')\n    os.chdir('a')\n"
    awkward = "os.mkdir('closed', 0); os.symlink('/', 'root'); open('file', 'w').close(); print('made')"
    outcome = run_program(nested + awkward, "", LIMITS)
    assert (outcome.output, outcome.ended) == ("made\n", "ok")
    assert list(tmp_path.iterdir()) == []


def test_a_signal_without_a_name_ends_the_program_alone() -> None:
    outcome = run_program("import os; os.kill(os.getpid(), 40)", "", LIMITS)
    assert outcome.ended == "signal SIGRTMIN+6"


def test_no_other_process() -> None:
    assert attempt("import os; os.fork()") == DENIED
    assert attempt("import subprocess; subprocess.run(['true'])") == DENIED
    assert attempt("import os; os.execv('/bin/true', ['true'])") == DENIED
    assert attempt("import os; os.kill(os.getppid(), 0)") == DENIED
    assert attempt("import os; os.killpg(0, 0)") == DENIED
    assert attempt("import os; os.setsid()") == DENIED


def test_no_secret_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret_of_mine")
    outcome = run_program("import os; print(dict(os.environ))", "", LIMITS)
    assert outcome.ended == "ok" and "hf_secret_of_mine" not in outcome.output
    assert attempt("import os; open(f'/proc/{os.getppid()}/environ').read()") == DENIED


def test_no_way_round_the_limits() -> None:
    assert attempt("bytearray(2**30)") == "MemoryError"
    assert attempt("import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))") in (
        DENIED,
        "ValueError",
    )
    assert attempt("open('big', 'wb').write(bytes(2**20) * 20)") == "OSError"
    assert attempt("import os; os.memfd_create('x')") == DENIED
    threads = """
        import threading, time
        while True: threading.Thread(target=time.sleep, args=(9,), daemon=True).start()
    """
    assert attempt(threads) == "RuntimeError"


def test_output_is_bounded() -> None:
    outcome = run_program("while True: print('x' * 10_000)", "", LIMITS)
    assert outcome.ended != "ok" and len(outcome.output) <= programs.FILE_BYTES


def test_what_never_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "START_SECONDS", 0.5)
    short = Limits(seconds=0.2)
    assert run_program("import time; time.sleep(60)", "", short).ended == "timeout"
    assert run_tests("while True: pass", ["assert True"], short).passed == [False]


def test_a_machine_too_busy_to_start_python_is_not_called_one_without_a_sandbox(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(programs, "START", "import time; time.sleep(60)")
    monkeypatch.setattr(programs, "START_SECONDS", 0.1)
    with pytest.raises(WhetError) as error:
        run_program("print(1)", "", Limits(seconds=0.1))
    assert error.value.code == "reward.no_start"


def test_ordinary_programs_run() -> None:
    source = """
        import asyncio, collections, decimal, json, random, re, threading
        async def later(): await asyncio.sleep(0); return 1
        thread = threading.Thread(target=print, args=("thread",)); thread.start(); thread.join()
        if __name__ == "__main__":
            print(asyncio.run(later()), int(input()) * 2)
    """
    outcome = run_program(textwrap.dedent(source), "21\n", LIMITS)
    assert (outcome.output.split(), outcome.ended) == (["thread", "1", "42"], "ok")


def test_tests_are_judged_one_by_one() -> None:
    tests = [
        "assert f(1) == 2",
        "assert f(1) == 3",
        "assert f('a')",
        "import sys; sys.exit(0)",
        "assert f(2) == 3",
    ]
    outcome = run_tests("def f(x): return x + 1", tests, LIMITS)
    assert outcome.passed == [True, False, False, False, True]


@pytest.mark.parametrize(
    "cheat",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "raise SystemExit(0)",
        "def f(x): import os; os._exit(0)",
        "def f(x): raise SystemExit(0)",
        "import os; os.write(200, b'1 1'); os._exit(0)",
        "import os, sys; os.write(200, sys.stdin.buffer.read() + b' 1'); os._exit(0)",
        "import builtins; builtins.AssertionError = type('Never', (Exception,), {})\ndef f(x): return 0",
        "import sys; sys.excepthook = print\ndef f(x): return 0",
        "import unittest; unittest.TestCase.assertEqual = print\ndef f(x): return 0",
        "print('passed')",
        "def f(x): return 0\nassert f",
        "not python",
    ],
)
def test_no_cheat_passes(cheat: str) -> None:
    assert run_tests(cheat, ["assert f(1) == 2"], LIMITS).passed == [False]


def test_a_kernel_without_the_means_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    switched_off = "from whet.engine.rewards.sandbox import landlock; landlock.version = lambda: 0; from whet"
    monkeypatch.setattr(programs, "START", programs.START.replace("from whet", switched_off))
    with pytest.raises(WhetError, match="cannot be confined here: the kernel has no Landlock") as error:
        programs.check(LIMITS)
    assert error.value.code == "reward.no_sandbox" and "sandbox: limits" in error.value.hint
    assert run_program("print(1)", "", Limits(5.0, sandbox="limits")).output == "1\n"


def test_the_filter_is_whole_on_both_machines() -> None:
    for machine in ("x86_64", "aarch64"):
        code = seccomp.program(machine)
        steps = [struct.unpack("HBBI", code[at : at + 8]) for at in range(0, len(code), 8)]
        assert all(at + 1 + max(yes, no) < len(steps) for at, (_, yes, no, _) in enumerate(steps[:-1]))
        assert steps[-1] == (seccomp.RETURN, 0, 0, seccomp.ERRNO | 1)
    with pytest.raises(OSError, match="system calls of riscv64 are not known"):
        seccomp.program("riscv64")


def test_code_of_a_completion() -> None:
    right = "Sure:\n```python\ndef add(a, b):\n    return a + b\n```"
    asserts = "assert add(1, 2) == 3\nassert add(1, 1) == 3"
    assert code_tests(right, "assert add(1, 2) == 3", limits=LIMITS) == 1
    assert code_tests(right, asserts, limits=LIMITS) == 0
    assert code_tests(right, asserts, partial=True, limits=LIMITS) == 0.5
    assert code_tests("def add(a, b): return a + b", asserts, limits=LIMITS) == 0
    doubles = "```py\nprint(int(input()) * 2)\n```"
    cases = [
        {"input": "2\n", "output": "4"},
        {"input": "3", "output": "7 "},
        {"input": "4", "output": "8\n\n"},
    ]
    assert code_tests(doubles, cases[::2], limits=LIMITS) == 1
    assert code_tests(doubles, cases, partial=True, limits=LIMITS) == pytest.approx(2 / 3)
    assert code_tests(doubles, cases, limits=LIMITS) == 0


ALWAYS = "class Always(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\n"


@pytest.mark.parametrize(
    "cheat",
    [
        f"{ALWAYS}def f(x): return Always()",
        f"{ALWAYS}def f(x): return [Always()] if x else Always()",
        f"{ALWAYS}class Box(list):\n    __iter__ = lambda self: iter(())\ndef f(x): return Box([Always()])",
    ],
)
def test_what_equals_everything_passes_nothing(cheat: str) -> None:
    fence = f"```python\n{cheat}\n```"
    for test in ("assert f(0) == 2", "assert 2 == f(0)", "assert f(1) == [2]", "assert not f(0) != 2"):
        assert code_tests(fence, test, partial=True, limits=LIMITS) == 0


def test_honest_results_of_every_kind_compare_as_before() -> None:
    program = """
        from collections import Counter, OrderedDict, namedtuple
        from dataclasses import dataclass
        from fractions import Fraction
        @dataclass
        class Point:
            x: "int"
        Pair = namedtuple("Pair", "a b")
    """
    tests = [
        "assert Pair(1, 2) == (1, 2)",
        "assert Fraction(1, 2) == 0.5",
        "assert Counter('aa') == {'a': 2} and OrderedDict(a=1) == {'a': 1}",
        "assert Point(1) == Point(1)",
        "assert {1: [2, (3,)]} == {1: [2, (3,)]} and None is None and 1 < 2 <= 3 and 'a' in 'abc'",
    ]
    fence = f"```python\n{textwrap.dedent(program)}\n```"
    assert code_tests(fence, tests, limits=LIMITS) == 1


def test_tests_that_are_none_are_refused() -> None:
    assert right_tests({"inputs": ["1"], "outputs": ["2"]}) == [("1", "2")]
    for value, said in (("assert (", "not Python"), ("", "empty"), ([], "neither"), ([1], "neither")):
        with pytest.raises(ValueError, match=said):
            right_tests(value)


def test_programs_leave_no_descriptor_behind() -> None:
    before = len(os.listdir("/proc/self/fd"))
    run_tests("def f(): pass", ["f()"], LIMITS)
    assert len(os.listdir("/proc/self/fd")) == before
