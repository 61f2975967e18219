"""Rewards of a recipe, computed in one guarded process: what training calls. Light: no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from .scores import Completion, Scores
from .spec import Reward

OnError = Literal["stop", "zero"]
MEMORY = 16 * 2**30
"""Bytes of address space for the process; libraries such as torch reserve far more than they use."""


class Rewards:
    """Scores completions; a context manager around the process that does it.

    Args:
        specs: the recipe's rewards, each with a title of its own.
        base: folder that `file.py:function` is relative to, the recipe's.
        on_error: what a function of the user's that raises, hangs or returns nonsense does. ``stop`` raises;
            ``zero`` scores its batch 0 and warns.
        memory: address space of the process, in bytes.
    """

    def __init__(
        self,
        specs: Sequence[Reward],
        base: Path,
        *,
        on_error: OnError = "stop",
        memory: int = MEMORY,
    ) -> None:
        self.specs = list(specs)
        self.base, self.on_error, self.memory = base, on_error, memory

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
        """Start the process and load the functions. Raises what :func:`.checking.check_functions` does."""
        raise NotImplementedError

    def close(self) -> None:
        """End the process and what its functions started; harmless when it is not running."""
        raise NotImplementedError

    def score(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Completion],
        columns: Mapping[str, Sequence[Any]],
        completion_ids: Sequence[Sequence[int]] | None = None,
    ) -> Scores:
        """Values of one batch.

        Args:
            prompts: texts or lists of messages, one a completion.
            completions: texts, or lists of messages for chat rows.
            columns: the data's other columns, repeated so that each has one entry a completion.
            completion_ids: their token ids, for functions that ask for them.

        Raises:
            WhetError: ``reward.raised``, ``reward.timed_out``, ``reward.died``, or one of
                :func:`.scores.checked`; each names the reward and what was seen. Training can be resumed.
        """
        raise NotImplementedError
