"""A reward function of the user's: found, its signature understood, called as TRL calls it. Light."""

from __future__ import annotations

import asyncio
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import WhetError
from .scores import SHOWN
from .spec import FunctionReward

GIVEN = ("prompts", "completions", "completion_ids")
"""Arguments that are no columns of the data."""
IN_PROCESS_ONLY = ("trainer_state", "log_metric", "log_extra", "environments")
"""Objects of TRL's trainer, which do not cross into another process."""
SIGNATURES = "def name(completions, **kwargs) or def name(prompts, completions, answer, **kwargs)"


@dataclass(frozen=True)
class Function:
    """A callable and what it asks for: ``wants`` must come, ``takes`` may; ``takes_all`` is ``**kwargs``."""

    title: str
    call: Callable[..., Any]
    wants: tuple[str, ...]
    takes: tuple[str, ...]
    takes_all: bool

    @classmethod
    def of(cls, title: str, call: Any) -> Function:
        """Raises WhetError ``reward.not_callable`` or ``reward.signature``."""
        if not callable(call):
            raise WhetError(
                "reward.not_callable",
                f"Reward {title} is a {type(call).__name__}, not a function.",
                f"Write {SIGNATURES}.",
            )
        parameters = inspect.signature(call).parameters.values()
        hidden = [one.name for one in parameters if one.kind == one.POSITIONAL_ONLY]
        named = [one for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
        takes_all = any(one.kind == one.VAR_KEYWORD for one in parameters)
        takes = tuple(one.name for one in named)
        if hidden or not (takes_all or "completions" in takes):
            what = f"takes {hidden[0]} by position only" if hidden else "takes no argument `completions`"
            raise WhetError(
                "reward.signature",
                f"Reward {title}{inspect.signature(call)} {what}; everything is passed by name.",
                f"Write {SIGNATURES}.",
            )
        wants = tuple(one.name for one in named if one.default is one.empty and one.name not in GIVEN)
        return cls(title, call, wants, takes, takes_all)

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raises WhetError ``reward.missing_column`` when the data lacks what the function asks for."""
        missing = [name for name in self.wants if name not in columns]
        if missing:
            raise missing_column(self.title, missing[0], columns)

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        columns: Mapping[str, Sequence[Any]],
        completion_ids: Sequence[Sequence[int]] | None,
    ) -> Any:
        """What the function returns; its own exceptions pass."""
        given = {**columns, "prompts": prompts, "completions": completions, "completion_ids": completion_ids}
        arguments = {name: value for name, value in given.items() if self.takes_all or name in self.takes}
        returned = self.call(**arguments)
        return asyncio.run(_awaited(returned)) if inspect.isawaitable(returned) else returned


async def _awaited(returned: Any) -> Any:
    return await returned


def missing_column(title: str, column: str, columns: Sequence[str]) -> WhetError:
    """The error for a reward whose column the data has not."""
    if column in IN_PROCESS_ONLY:
        return WhetError(
            "reward.signature",
            f"Reward {title} asks for {column}, an object of TRL's trainer, which functions of a recipe "
            "cannot reach: they run in a process of their own.",
            f"Give {column} a default, or pass the function to GRPOTrainer(reward_funcs=[...]) in Python.",
        )
    return WhetError(
        "reward.missing_column",
        f"Reward {title} needs the column {column}; the rows have {', '.join(columns) or 'none'}.",
        "Add it to every row, or name another by `column:` (built in) or the function's argument (yours).",
    )


def load(spec: FunctionReward, base: Path) -> Function:
    """The function a spec names; its module's top level runs.

    Raises WhetError ``reward.no_file``, ``reward.import``, ``reward.no_function`` or what
    :meth:`Function.of` raises.
    """
    match = spec.spelling.fullmatch(spec.function)
    assert match is not None, "the recipe has checked it"
    module = _file(spec, base) if match["file"] else _module(spec, match["module"], base)
    name = match["in_file"] or match["in_module"]
    if name not in vars(module):
        near = difflib.get_close_matches(
            name, [key for key, value in vars(module).items() if callable(value)]
        )
        raise WhetError(
            "reward.no_function",
            f"{module.__file__} has no {name}, which the reward {spec.title} names.",
            f"Did you mean {near[0]}?" if near else f"Define it: {SIGNATURES}.",
        )
    return Function.of(spec.title, vars(module)[name])


def path_of(spec: FunctionReward, base: Path) -> Path | None:
    """The file that a spec names, or None for a module's function."""
    return None if spec.file is None else (base / Path(spec.file).expanduser()).resolve()


def _file(spec: FunctionReward, base: Path) -> ModuleType:
    path = path_of(spec, base)
    assert path is not None
    if not path.is_file():
        raise WhetError(
            "reward.no_file",
            f"The reward {spec.title} names {spec.file}, and there is no {path}.",
            f"The path begins at {base}.",
        )
    name = f"whet_reward_file_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    _importable(path.parent)
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses and pickles of the file look themselves up by it
    try:
        found.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise _import_failed(spec, str(path), error) from error
    return module


def _module(spec: FunctionReward, name: str, base: Path) -> ModuleType:
    _importable(base)
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise _import_failed(spec, name, error) from error


def _importable(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _import_failed(spec: FunctionReward, where: str, error: BaseException) -> WhetError:
    return WhetError(
        "reward.import",
        f"The reward {spec.title} cannot be loaded from {where}: {described(error)}.",
        "Import it alone to see the whole traceback; packages it uses must be in whet's environment.",
    )


def described(error: BaseException) -> str:
    """An exception in one line: its type, its words, and the place of the user's own code that raised it."""
    text = f"{type(error).__name__}: {error}"
    text = text if len(text) <= 2 * SHOWN else text[: 2 * SHOWN] + "..."
    if isinstance(error, SyntaxError):
        return f"{text} ({error.filename}:{error.lineno})"
    place = place_of(error)
    return f"{text} ({place})" if place else text


def place_of(error: BaseException) -> str:
    """File and line of the last frame that is not ours; empty without one."""
    others = (str(Path(__file__).parent), importlib.__file__, "<frozen")
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(others)
    ]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
