"""The far end of :mod:`.runner`: loads rewards and scores batches, by JSON lines over its first pipes.

Requests: ``{"specs", "base", "memory"}`` once, answered by what the functions ask for; ``{"batch"}``, not
answered; ``{"score": i}``, answered by ``{"values", "warnings"}``. Any answer may be ``{"error"}`` instead.
What functions print goes to standard error: the pipe of answers is not theirs.
"""

from __future__ import annotations

import faulthandler
import json
import os
import queue
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pydantic import TypeAdapter

from ..errors import WhetError
from .functions import Function, described, load, place_of
from .limits import CULPRIT_SECONDS, timed_out, workers
from .scores import SHOWN, checked
from .spec import AnyReward, BuiltIn, CodeTests, FunctionReward, Reward
from .verifiers.answers import text_of
from .verifiers.registry import bad_column, verify

CLOSING_SECONDS = 2.0


class Late(BaseException):
    """The time is up; no Exception, so that a function's own ``except Exception`` does not catch it."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise Late in here after so long; main thread only. Code in C that never returns is not reached."""

    def late(number: int, frame: Any) -> None:
        raise Late

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Scorer:
    """The rewards, loaded, and the batch at hand."""

    def __init__(self, specs: list[Reward], base: Path) -> None:
        self.specs = specs
        self.functions = {
            number: load(spec, base) for number, spec in enumerate(specs) if isinstance(spec, FunctionReward)
        }
        self.batch: dict[str, Any] = {}

    def facts(self) -> list[dict[str, Any]]:
        """What each function asks for."""
        return [
            {"name": function.title, "columns": list(function.wants)} for function in self.functions.values()
        ]

    def score(self, number: int) -> tuple[list[float | None], list[str]]:
        """Values of reward ``number`` for the batch, and warnings. Raises WhetError."""
        spec = self.specs[number]
        if isinstance(spec, BuiltIn):
            return self._built_in(spec)
        return self._function(self.functions[number], spec.seconds), []

    def _built_in(self, spec: BuiltIn) -> tuple[list[float | None], list[str]]:
        texts = [text_of(completion) for completion in self.batch["completions"]]
        column = spec.columns[0] if spec.columns else None
        right = self.batch["columns"][column] if column else [None] * len(texts)

        def one(row: int) -> float | None:
            try:
                return verify(spec, texts[row], right[row])
            except ValueError as error:
                raise bad_column(spec, str(column), row, right[row], error) from error

        if isinstance(spec, CodeTests):  # waits for other processes, which have their own limits
            with ThreadPoolExecutor(workers()) as pool:
                return list(pool.map(one, range(len(texts)))), []
        return _one_by_one(spec, one, len(texts))

    def _function(self, function: Function, seconds: float) -> list[float | None]:
        batch = self.batch
        try:
            with limited(seconds):
                returned = function(
                    batch["prompts"], batch["completions"], batch["columns"], batch["completion_ids"]
                )
                return checked(function.title, returned, len(batch["completions"]))
        except WhetError:
            raise
        except Late as error:
            raise timed_out(function.title, seconds, place_of(error)) from error
        except (Exception, SystemExit) as error:
            raise WhetError(
                "reward.raised",
                f"Reward {function.title} raised {described(error)}{self._culprit(function)}.",
                "Correct the function and resume the run from its last checkpoint.",
            ) from error

    def _culprit(self, function: Function) -> str:
        """The first completion that the function fails on alone."""
        batch = self.batch
        with limited(CULPRIT_SECONDS):
            try:
                for row, completion in enumerate(batch["completions"]):
                    columns = {name: values[row : row + 1] for name, values in batch["columns"].items()}
                    ids = None if batch["completion_ids"] is None else batch["completion_ids"][row : row + 1]
                    try:
                        function(batch["prompts"][row : row + 1], [completion], columns, ids)
                    except (Exception, SystemExit):
                        return f", for completion {row}: {_shown(text_of(completion))}"
            except Late:
                return ""
        return ", for the batch as a whole though for no completion alone"


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + "...")


def _one_by_one(
    spec: BuiltIn, one: Callable[[int], float | None], count: int
) -> tuple[list[float | None], list[str]]:
    """Each completion within its own limit; one that takes longer scores 0."""
    values: list[float | None] = []
    late: list[int] = []
    for row in range(count):
        try:
            with limited(spec.seconds):
                value = one(row)
        except Late:
            value = 0.0
            late.append(row)
        values.append(value)
    warnings = []
    if late:
        warnings.append(
            f"{spec.title} took over {spec.seconds:g} s for {len(late)} of {count} completions (the first is "
            f"number {late[0]}); they score 0"
        )
    return values, warnings


def serve(requests: queue.Queue[str | None], answers: IO[str]) -> None:
    """Answer until there are no more requests."""
    scorer: Scorer | None = None
    while (line := requests.get()) is not None:
        request = json.loads(line)
        if "batch" in request:
            assert scorer is not None
            scorer.batch = request["batch"]
            continue
        try:
            if "specs" in request:
                scorer = _loaded(request)
                answer: dict[str, Any] = {"functions": scorer.facts()}
            else:
                assert scorer is not None
                values, warnings = scorer.score(request["score"])
                answer = {"values": values, "warnings": warnings}
        except WhetError as error:
            answer = {"error": error.as_dict()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _loaded(request: dict[str, Any]) -> Scorer:
    if sys.platform == "linux":
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        memory = request["memory"] if hard == resource.RLIM_INFINITY else min(hard, request["memory"])
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    specs = TypeAdapter(list[AnyReward]).validate_python(request["specs"])
    return Scorer(list(specs), Path(request["base"]))


def _listen(pipe: IO[str], requests: queue.Queue[str | None], done: threading.Event) -> None:
    """Hand on what comes. When training is gone, end in good order, or without it if a function hangs."""
    try:
        for line in pipe:
            requests.put(line)
    except MemoryError:  # of this thread alone, and nobody would be answered any more
        os.write(2, b"The batch of completions does not fit into the rewards' memory.\n")
        os._exit(1)
    requests.put(None)
    if not done.wait(CLOSING_SECONDS):
        os.killpg(os.getpgrp(), signal.SIGKILL)


def main() -> None:
    faulthandler.enable()
    asked, answers = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    silent = os.open(os.devnull, os.O_RDONLY)
    os.dup2(silent, 0)
    os.dup2(2, 1)
    requests: queue.Queue[str | None] = queue.Queue()
    done = threading.Event()
    threading.Thread(target=_listen, args=(asked, requests, done), daemon=True).start()
    serve(requests, answers)
    done.set()


if __name__ == "__main__":
    main()
