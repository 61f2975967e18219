"""Rewards of a recipe, computed in one guarded process: what training calls. Light: no torch."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from ..errors import WhetError
from .functions import missing_column
from .guard import Died, Guarded, Silent
from .limits import LOAD_SECONDS, TAKING_SECONDS, patience, timed_out
from .scores import Completion, Scores
from .spec import FunctionReward, Reward
from .verifiers.registry import check_programs

OnError = Literal["stop", "zero"]
MEMORY = 16 * 2**30
"""Bytes of address space for the process; libraries such as torch reserve far more than they use."""


class FunctionFacts(BaseModel):
    """What is known of a function of the user's before it is first called."""

    model_config = ConfigDict(frozen=True)

    name: str
    columns: list[str]
    """Columns of the data that it asks for."""


class Rewards:
    """Scores completions; a context manager around the process that does it.

    Args:
        specs: the recipe's rewards, each with a title of its own.
        base: folder that `file.py:function` is relative to.
        on_error: what a function of the user's that raises, hangs or returns nonsense does. ``stop`` raises;
            ``zero`` scores its batch 0 and warns.
        memory: address space of the process, in bytes.
        quiet: drop what functions print, which otherwise joins this process's standard error.
    """

    def __init__(
        self,
        specs: Sequence[Reward],
        base: Path,
        *,
        on_error: OnError = "stop",
        memory: int = MEMORY,
        quiet: bool = False,
    ) -> None:
        self.specs = list(specs)
        self.base, self.on_error, self.memory, self.quiet = base, on_error, memory, quiet
        self.functions: list[FunctionFacts] = []
        self._process: Guarded | None = None
        self._dropped: set[str] = set()

    @property
    def names(self) -> list[str]:
        """Titles of the rewards, in order; metrics are called ``rewards/<name>``."""
        return [spec.title for spec in self.specs]

    @property
    def weights(self) -> list[float]:
        """Their weights, in the same order."""
        return [spec.weight for spec in self.specs]

    def __enter__(self) -> Rewards:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the process, load the functions, and see that programs can be confined where they must be.

        Raises WhetError ``reward.no_file``, ``reward.import``, ``reward.no_function``,
        ``reward.not_callable``, ``reward.signature``, ``reward.no_sandbox`` or ``reward.died``.
        """
        check_programs(self.specs)
        self._launch()

    def close(self) -> None:
        """End the process and what its functions started; harmless when it is not running."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def score(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Completion],
        columns: Mapping[str, Sequence[Any]],
        completion_ids: Sequence[Sequence[int]] | None = None,
    ) -> Scores:
        """Values of one batch; starts the process where it is not running.

        Args:
            prompts: texts or lists of messages, one a completion.
            completions: texts, or lists of messages for chat rows.
            columns: the data's other columns, repeated so that each has one entry a completion. Those that
                are no JSON, images for one, are not passed on, which is warned of once.
            completion_ids: their token ids, for functions that ask for them.

        Raises:
            WhetError: ``reward.raised``, ``reward.timed_out``, ``reward.died``, ``reward.missing_column``,
                ``reward.bad_column``, or one of :func:`.scores.checked`; each names the reward and what was
                seen. Training can be resumed.
        """
        if self._process is None:
            self._launch()
        columns, warnings = self._sendable(columns)
        self._check_columns(list(columns))
        batch = {
            "prompts": list(prompts),
            "completions": list(completions),
            "columns": columns,
            "completion_ids": None if completion_ids is None else [list(ids) for ids in completion_ids],
        }
        self._tell(batch)
        values: dict[str, list[float | None]] = {}
        seconds = {}
        for number, spec in enumerate(self.specs):
            started = time.perf_counter()
            values[spec.title], more = self._ask(number, spec, batch)
            seconds[spec.title] = time.perf_counter() - started
            warnings += more
        return Scores.of(dict(zip(self.names, self.weights, strict=True)), values, seconds, warnings)

    def _launch(self) -> Guarded:
        shown = [name for spec in self.specs if isinstance(spec, FunctionReward) for name in spec.environment]
        process = Guarded(shown, self.quiet)
        request = {
            "specs": [spec.model_dump(mode="json") for spec in self.specs],
            "base": str(self.base),
            "memory": self.memory,
        }
        try:
            answer = process.ask(request, LOAD_SECONDS)
            _raise_error(answer)
        except Silent:
            raise timed_out("functions", LOAD_SECONDS, "their import") from None
        except Died as error:
            raise _died("while the reward functions were loaded", error) from error
        except WhetError:
            process.kill()
            raise
        self.functions = [FunctionFacts.model_validate(facts) for facts in answer["functions"]]
        self._process = process
        return process

    def _tell(self, batch: dict[str, Any]) -> Guarded:
        process = self._process or self._launch()
        try:
            process.tell({"batch": batch}, TAKING_SECONDS)
        except Silent:
            self._process = None
            raise timed_out("functions", TAKING_SECONDS, "reading the batch") from None
        return process

    def _ask(self, number: int, spec: Reward, batch: dict[str, Any]) -> tuple[list[float | None], list[str]]:
        count = len(batch["completions"])
        process = self._process or self._tell(batch)
        try:
            answer = process.ask({"score": number}, patience(spec, count))
            _raise_error(answer)
        except (Silent, Died, WhetError) as error:
            if not isinstance(error, WhetError):
                self._process = None
            problem = _problem(spec, error)
            if self.on_error == "stop" or not isinstance(spec, FunctionReward):
                raise problem from error
            return [0.0] * count, [f"{problem.message} Its scores count as 0."]
        return answer["values"], answer["warnings"]

    def _check_columns(self, columns: list[str]) -> None:
        wanted = [(spec.title, column) for spec in self.specs for column in spec.columns]
        wanted += [(facts.name, column) for facts in self.functions for column in facts.columns]
        for title, column in wanted:
            if column not in columns:
                raise missing_column(title, column, columns)

    def _sendable(self, columns: Mapping[str, Sequence[Any]]) -> tuple[dict[str, list[Any]], list[str]]:
        """Columns that are JSON, and a warning about those that are not."""
        sendable = {name: list(values) for name, values in columns.items() if _is_json(values)}
        dropped = set(columns) - set(sendable) - self._dropped
        self._dropped |= dropped
        return sendable, [
            f"column {name} is neither text, numbers nor lists of them, so rewards do not see it"
            for name in sorted(dropped)
        ]


def _is_json(values: Sequence[Any]) -> bool:
    try:
        json.dumps(list(values))
    except (TypeError, ValueError):
        return False
    return True


def _raise_error(answer: dict[str, Any]) -> None:
    if "error" in answer:
        raise WhetError(**answer["error"])


def _problem(spec: Reward, error: Silent | Died | WhetError) -> WhetError:
    if isinstance(error, WhetError):
        return error
    if isinstance(error, Silent):
        return timed_out(spec.title, spec.seconds)
    return _died(f"in reward {spec.title}", error)


def _died(where: str, error: Died) -> WhetError:
    return WhetError(
        "reward.died",
        f"The process that computes rewards ended {where}: {error}.",
        "Out of memory, a crash in C code, or os._exit; the run's log has what it printed. Correct it and "
        "resume the run from its last checkpoint.",
    )
