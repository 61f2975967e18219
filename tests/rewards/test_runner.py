"""Rewards as training asks for them: the user's functions, guarded, beside the built-in ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import TypeAdapter
from support.fake_runs import SOURCE, until

from whet.engine.errors import WhetError
from whet.engine.rewards import limits, runner
from whet.engine.rewards.checking import check_functions
from whet.engine.rewards.functions import load
from whet.engine.rewards.process import Scorer
from whet.engine.rewards.runner import Rewards
from whet.engine.rewards.spec import FunctionReward, Reward, RewardList

HERE = Path(__file__).parent
PROMPTS = ["What is 3 + 4?"] * 3
COMPLETIONS = ["7", "It is 8.", ""]
COLUMNS: dict[str, list[Any]] = {"answer": ["7", "8", "9"], "level": [1, 0, 2]}


def read(*rewards: Any) -> list[Reward]:
    return list(TypeAdapter(RewardList).validate_python(list(rewards)))


def function(name: str, **settings: Any) -> dict[str, Any]:
    return {"function": f"reward_functions.py:{name}", **settings}


def failure(name: str, batch: dict[str, Any] | None = None, **settings: Any) -> WhetError:
    """What the far end says of a function, without a process."""
    scorer = Scorer(read(function(name, **settings)), HERE)
    scorer.batch = batch or {
        "prompts": PROMPTS,
        "completions": COMPLETIONS,
        "columns": COLUMNS,
        "completion_ids": None,
    }
    with pytest.raises(WhetError) as error:
        scorer.score(0)
    return error.value


@pytest.fixture(scope="module")
def rewards() -> Iterator[Rewards]:
    specs = read(
        "number",
        {"name": "format", "pattern": "^(a+)+$", "seconds": 0.3},
        function("lengths", weight=0.1),
        function("check_answer"),
        function("array"),
        function("sometimes"),
        function("later"),
    )
    with Rewards(specs, HERE) as running:
        yield running


def test_a_batch_is_scored(rewards: Rewards, capfd: pytest.CaptureFixture[str]) -> None:
    scores = rewards.score(PROMPTS, COMPLETIONS, COLUMNS, [[1], [2, 3], []])
    assert scores.values == {
        "number": [1, 1, 0],
        "format": [0, 0, 0],
        "lengths": [1, 8, 0],
        "check_answer": [1, 1, 0],
        "array": [0, 1, 0],
        "sometimes": [1, None, 1],
        "later": [1, 5, 0],
    }
    assert scores.total == pytest.approx([4.1, 8.8, 1.0])
    assert scores.names == rewards.names == list(scores.values) and scores.weights == rewards.weights
    assert all(0 <= seconds < 5 for seconds in scores.seconds.values()) and scores.warnings == []


def test_backtracking_costs_one_completion_and_not_the_run(rewards: Rewards) -> None:
    scores = rewards.score(
        ["p"] * 2, ["a" * 60 + "!", "aa"], {"answer": ["1", "1"], "level": [1, 1]}, [[0], [0]]
    )
    assert scores.values["format"] == [0.0, 1.0]
    assert "format took over 0.3 s for 1 of 2 completions (the first is number 0)" in scores.warnings[0]


def test_a_column_that_is_no_json_is_left_out_aloud(rewards: Rewards) -> None:
    columns = {**COLUMNS, "image": [object()] * 3}
    first = rewards.score(PROMPTS, COMPLETIONS, columns, [[0]] * 3)
    second = rewards.score(PROMPTS, COMPLETIONS, columns, [[0]] * 3)
    assert first.warnings == [
        "column image is neither text, numbers nor lists of them, so rewards do not see it"
    ]
    assert second.warnings == []


def test_a_column_that_is_missing_is_named(rewards: Rewards) -> None:
    with pytest.raises(WhetError, match="number needs the column answer; the rows have level"):
        rewards.score(PROMPTS, COMPLETIONS, {"level": [1, 1, 1]})


def test_answers_of_chats_come_as_messages() -> None:
    completions = [[{"role": "assistant", "content": "It is 7."}], [{"role": "assistant", "content": "8"}]]
    prompts = [[{"role": "user", "content": "3 + 4?"}]] * 2
    with Rewards(read("number", function("roles")), HERE) as rewards:
        scores = rewards.score(prompts, completions, {"answer": [7, None]})
    assert scores.values == {"number": [1, None], "roles": [1, 1]} and scores.total == [2, 1]


def test_secrets_and_gpus_are_withheld_unless_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "JUDGE_API_KEY", "PLAIN_SETTING"):
        monkeypatch.setenv(name, "value-of-a-secret")
    with Rewards(read(function("environment", environment=["JUDGE_API_KEY"])), HERE) as rewards:
        assert rewards.score(PROMPTS, COMPLETIONS, {}).values == {"environment": [0, 1, 1]}


def test_a_completion_that_nothing_judges_counts_as_zero() -> None:
    with Rewards(read("exact_answer"), HERE) as rewards:
        scores = rewards.score(["p"] * 2, ["a", "b"], {"answer": [None, "b"]})
    assert scores.total == [0, 1] and "no reward applied to 1 of 2" in scores.warnings[0]


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("short", "reward.wrong_length", "short returned 1 values for 3 completions: [1.0]"),
        ("words", "reward.not_numbers", "words returned 'good', a str, for completion 0"),
        ("text", "reward.not_a_list", "text returned '111', not a list of 3 numbers"),
        ("nothing", "reward.not_a_list", "nothing returned None, not a list of 3"),
        ("nan", "reward.not_finite", "nan returned nan for completion 1"),
        ("exits", "reward.raised", "exits raised SystemExit: 0"),
    ],
)
def test_what_a_function_returns_wrong_is_shown(name: str, code: str, said: str) -> None:
    error = failure(name)
    assert error.code == code and said in error.message and error.hint


def test_an_exception_names_its_line_and_the_completion() -> None:
    error = failure("divides")
    assert error.code == "reward.raised" and "resume" in error.hint
    assert "divides raised ZeroDivisionError: division by zero" in error.message
    assert "reward_functions.py:" in error.message and error.message.endswith("for completion 2: ''.")


def test_a_slow_function_is_interrupted_where_it_is() -> None:
    error = failure("sleeps", seconds=0.1)
    assert error.code == "reward.timed_out" and "sleeps took more than 0.1 s" in error.message
    assert "reward_functions.py:" in error.message


def test_a_function_that_cannot_be_interrupted_is_killed_with_its_children(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(limits, "GRACE_SECONDS", 0.3)
    pids = tmp_path / "pids"
    with Rewards(read(function("hangs", seconds=1.0)), HERE) as rewards:
        with pytest.raises(WhetError, match=r"hangs took more than 1 s") as error:
            rewards.score(["p"], ["c"], {"pid_file": [str(pids)]})
        assert error.value.code == "reward.timed_out"
    until(lambda: not any(alive(int(pid)) for pid in pids.read_text().split()), "both to be gone")


def read_pids(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_process_that_ends_and_memory_that_runs_out_are_told_apart() -> None:
    with Rewards(read(function("vanishes")), HERE) as rewards:
        with pytest.raises(WhetError, match="ended in reward vanishes: exit status 3") as error:
            rewards.score(PROMPTS, COMPLETIONS, {})
        assert error.value.code == "reward.died"
    with (
        Rewards(read(function("hungry")), HERE, memory=2**32) as rewards,
        pytest.raises(WhetError, match="hungry raised MemoryError"),
    ):
        rewards.score(PROMPTS, COMPLETIONS, {})


def test_training_can_go_on_without_a_reward() -> None:
    specs = read(function("vanishes"), function("nan"), function("lengths"))
    with Rewards(specs, HERE, on_error="zero") as rewards:
        scores = rewards.score(PROMPTS, COMPLETIONS, {})
        assert scores.values == {"vanishes": [0, 0, 0], "nan": [0, 0, 0], "lengths": [1, 8, 0]}
        assert [warning.split(". ")[-1] for warning in scores.warnings] == ["Its scores count as 0."] * 2
    with (
        Rewards(read("number"), HERE, on_error="zero") as rewards,
        pytest.raises(WhetError, match="number cannot use column answer of row 1, 'x'"),
    ):
        rewards.score(PROMPTS, COMPLETIONS, {"answer": ["1", "x", "2"]})


def test_the_process_ends_with_training(tmp_path: Path) -> None:
    script = (
        "import os, time\nfrom pathlib import Path\nfrom whet.engine.rewards.runner import Rewards\n"
        "from whet.engine.rewards.spec import FunctionReward\n"
        f"rewards = Rewards([FunctionReward(function='reward_functions.py:hangs')], Path({str(HERE)!r}))\n"
        f"rewards.start()\nrewards.score(['p'], ['c'], {{'pid_file': [{str(tmp_path / 'pids')!r}]}})"
    )
    training = subprocess.Popen(
        [sys.executable, "-P", "-c", script], env={**os.environ, "PYTHONPATH": str(SOURCE)}
    )
    pids = until(lambda: read_pids(tmp_path / "pids"), "the call")
    training.send_signal(signal.SIGKILL)
    training.wait()
    until(lambda: not any(alive(int(pid)) for pid in pids), "the reward's processes to end")


@pytest.mark.parametrize(
    ("spec", "code", "said"),
    [
        ("missing.py:f", "reward.no_file", "there is no /"),
        ("reward_functions.py:length", "reward.no_function", "Did you mean lengths?"),
        ("reward_functions.py:NUMBER", "reward.not_callable", "NUMBER is a int"),
        ("reward_functions.py:wants_no_completions", "reward.signature", "no argument `completions`"),
        ("reward_functions.py:by_position", "reward.signature", "takes completions by position only"),
        ("no_such_package.f", "reward.import", "ModuleNotFoundError"),
    ],
)
def test_functions_that_cannot_be_used(spec: str, code: str, said: str) -> None:
    with pytest.raises(WhetError) as error:
        load(FunctionReward(function=spec), HERE)
    assert error.value.code == code and said in str(error.value)


def test_planning_loads_functions_elsewhere_and_knows_what_they_ask_for(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import os, helper\nopen('pid', 'w').write(str(os.getpid()))\n"
        "def score(completions, answer, level=None, **kwargs): return [helper.ONE] * len(completions)\n"
    )
    (tmp_path / "helper.py").write_text("ONE = 1.0\n")
    specs = read({"function": "mine.py:score"})
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        facts = check_functions(specs, tmp_path, ["answer"])
        assert int((tmp_path / "pid").read_text()) != os.getpid()
        with pytest.raises(WhetError, match="score needs the column answer; the rows have solution"):
            check_functions(specs, tmp_path, ["solution"])
        (tmp_path / "mine.py").write_text("def score(completions: list[:")
        with pytest.raises(WhetError, match=r"score cannot be loaded from .*SyntaxError.*mine\.py:1"):
            check_functions(specs, tmp_path)
    finally:
        os.chdir(before)
    assert [(one.name, one.columns) for one in facts] == [("score", ["answer"])]


def test_what_only_trls_trainer_has_is_refused_by_name() -> None:
    with pytest.raises(
        WhetError, match="trainers asks for trainer_state, an object of TRL's trainer"
    ) as error:
        check_functions(read(function("trainers")), HERE, ["answer"])
    assert "GRPOTrainer(reward_funcs" in error.value.hint


def test_programs_are_judged_in_parallel_and_reading_their_tests_is_checked() -> None:
    good, bad = "```python\ndef f(): return 1\n```", "```python\nwhile True: pass\n```"
    specs = read({"name": "code_tests", "seconds": 1.0})
    with Rewards(specs, HERE) as rewards:
        tests = {"tests": ["assert f() == 1"] * 3}
        assert rewards.score(["p"] * 3, [good, bad, "none"], tests).values == {"code_tests": [1, 0, 0]}
        with pytest.raises(WhetError, match="code_tests cannot use column tests of row 1, 'assert \\('"):
            rewards.score(["p"] * 2, [good, good], {"tests": ["assert f()", "assert ("]})


def test_a_process_that_reads_no_more_is_not_written_to_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "TAKING_SECONDS", 0.2)
    with Rewards(read(function("check_answer")), HERE) as rewards:
        process = rewards._process
        assert process is not None
        os.kill(process.process.pid, signal.SIGSTOP)
        until(lambda: psutil.Process(process.process.pid).status() == psutil.STATUS_STOPPED)
        with pytest.raises(WhetError, match="reading the batch") as error:
            rewards.score(["p"], ["x" * 2**20], {"answer": ["1"]})
        assert error.value.code == "reward.timed_out" and process.process.returncode == -signal.SIGKILL
        assert rewards.score(["p"], ["1"], {"answer": ["1"]}).total == [1]


def test_a_batch_beyond_the_memory_is_said_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with (
        Rewards(read(function("check_answer")), HERE, memory=500 * 2**20) as rewards,
        pytest.raises(WhetError, match="ended in reward check_answer: exit status 1") as error,
    ):
        rewards.score(["p"], ["x" * 300 * 2**20], {"answer": ["1"]})
    assert error.value.code == "reward.died"
    assert "does not fit into the rewards' memory" in capfd.readouterr().err
