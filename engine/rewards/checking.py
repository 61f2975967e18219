"""Functions of the user's, looked at by the planner without running in its process. Light: no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from .functions import missing_column, path_of
from .runner import FunctionFacts, Rewards
from .spec import FunctionReward, Reward

Stamp = tuple[tuple[str, int, int], ...]
"""Path, time of change and size of each file: what was known of them holds while this does."""


def check_functions(
    specs: Sequence[Reward], base: Path, columns: Sequence[str] | None = None
) -> list[FunctionFacts]:
    """Load the user's functions in a process of their own and see that the data has what they ask for.

    Loaded once for each state of their files, so that planning again costs nothing; a module's functions
    are loaded once.

    Args:
        specs: rewards, built-in ones among them.
        base: folder that `file.py:function` is relative to.
        columns: the data's, without the prompt; None leaves them unchecked.

    Raises:
        WhetError: what :meth:`.runner.Rewards.start` raises, and ``reward.missing_column``.
    """
    functions = [spec for spec in specs if isinstance(spec, FunctionReward)]
    if not functions:
        return []
    written = json.dumps([spec.model_dump(mode="json") for spec in functions])
    facts = _loaded(written, base.resolve(), _stamp(functions, base))
    for one in facts:
        for column in one.columns:
            if columns is not None and column not in columns:
                raise missing_column(one.name, column, columns)
    return facts


@lru_cache(maxsize=64)
def _loaded(functions: str, base: Path, stamp: Stamp) -> list[FunctionFacts]:
    specs = [FunctionReward.model_validate(one) for one in json.loads(functions)]
    with Rewards(specs, base, quiet=True) as rewards:
        return rewards.functions


def _stamp(functions: Sequence[FunctionReward], base: Path) -> Stamp:
    paths = dict.fromkeys(path for spec in functions if (path := path_of(spec, base)) is not None)
    seen = [(str(path), path.stat()) for path in paths if path.is_file()]
    return tuple((path, stat.st_mtime_ns, stat.st_size) for path, stat in seen)
