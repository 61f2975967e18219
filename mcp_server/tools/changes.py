"""``changes`` of a call: recipe keys and values that a finding, an alternative or an agent names.

What arrives is confined before the engine sees it: sources lie inside of the root, templates have names, and
texts that were too long to travel are found again by their finding's id.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from whet.engine import api

from ..results import FoundOut
from ..root import Root

ACCEPT = "accept"
SOURCES = ("model.name", "data.train", "data.eval")
REVISIONS = ("model.revision", "data.revision")
SECTIONS = (
    "model", "data", "method", "adapter", "training", "eval", "sampling", "export", "checks", "hardware",
)  # fmt: skip
TEMPLATE = "data.template"
REWARDS = "method.rewards"
DEEPSPEED = "hardware.deepspeed"
REFERENCE = re.compile(r"@[A-Z]\d\d")
REVISION = re.compile(r"\w[\w.-]*(?:/\w[\w.-]*)*")

Changes = dict[str, Any]


def confined(changes: Changes, root: Root) -> Changes:
    """``changes`` by dotted keys, every source through the root.

    Raises WhetError ``path.*``; ``changes.revision`` for what is none; ``changes.template`` for a template's
    text and ``changes.code`` for a reward function: they are programs, and a call brings none;
    ``changes.deepspeed`` for a file that says where things are written.
    """
    found = {}
    for key, value in _dotted(changes):
        if key in SOURCES:
            value = _sources(value, root)
        elif key in REVISIONS and isinstance(value, str) and not REVISION.fullmatch(value):
            raise api.WhetError(
                "changes.revision",
                f"{key}={value[:80]!r} is no branch, tag or commit.",
                'Example: "main".',
            )
        elif key == TEMPLATE and isinstance(value, str) and "{" in value:
            raise api.WhetError(
                "changes.template",
                "A template's text is a program, which a call cannot bring.",
                f"Name one of: {', '.join(api.chat_templates())}. A finding's fix goes back as it came.",
            )
        elif key.startswith(REWARDS) and (key != REWARDS or any(map(_runs_code, _listed(value)))):
            raise api.WhetError(
                "changes.code",
                f"{key} names a function, or lets a model's programs out of their sandbox: no call can.",
                "Name built-in rewards; functions are for `whet train` with a recipe of the user's.",
            )
        elif key == DEEPSPEED and value is not None:
            raise api.WhetError(
                "changes.deepspeed",
                "DeepSpeed's file says where offloaded weights and logs are written, which no call can.",
                "It is for `whet train` with a recipe of the user's; hardware.gpus goes without it.",
            )
        found[key] = value
    return found


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _runs_code(reward: Any) -> bool:
    """Whether an entry of `method.rewards` would run what is not whet's own, or without confinement."""
    if isinstance(reward, dict):
        return "function" in reward or reward.get("sandbox", "strict") != "strict"
    return isinstance(reward, str) and re.search(r"[.:]", reward) is not None


def _dotted(changes: Changes) -> Iterable[tuple[str, Any]]:
    """Sections given whole are taken apart, so that no key is overlooked."""
    for key, value in changes.items():
        if key in SECTIONS and isinstance(value, dict):
            yield from ((f"{key}.{inner}", one) for inner, one in value.items())
        else:
            yield key, value


def _sources(value: Any, root: Root) -> Any:
    """One source or a list of them; what is neither is the recipe's to refuse."""
    if isinstance(value, str):
        return root.source(value)
    if isinstance(value, list):
        return [root.source(one) if isinstance(one, str) else one for one in value]
    return value


def check_sources(plan: api.Plan, root: Root, except_for: Iterable[str] = ()) -> None:
    """What a kept plan reads must lie inside of the root still. Raises WhetError ``path.*``."""
    recipe = plan.recipe
    sources = {
        "model.name": recipe.model.name,
        "data.train": recipe.data.train,
        "data.eval": recipe.data.eval,
    }
    confined({key: value for key, value in sources.items() if key not in except_for}, root)


def restored(changes: Changes, found: Callable[[], Sequence[api.Finding]]) -> Changes:
    """``changes`` with the value behind each ``@ID``, as :class:`FoundOut` put it there.

    Args:
        changes: confined.
        found: the findings they are about, asked for only where there is such a reference.

    Raises:
        WhetError: ``changes.reference`` where no finding of that id sets the key.
    """
    wanted = {key: str(value)[1:] for key, value in changes.items() if _is_reference(value)}
    if not wanted:
        return changes
    findings = found()
    return {**changes, **{key: _behind(key, id, findings) for key, id in wanted.items()}}


def unnamed(changes: Changes) -> Changes:
    """``changes`` without references."""
    return {key: value for key, value in changes.items() if not _is_reference(value)}


def _is_reference(value: Any) -> bool:
    return isinstance(value, str) and REFERENCE.fullmatch(value) is not None


def _behind(key: str, id: str, findings: Sequence[api.Finding]) -> Any:
    for finding in findings:
        if finding.id == id and finding.fix is not None and key in finding.fix.patch:
            return finding.fix.patch[key]
    raise api.WhetError(
        "changes.reference",
        f"No finding {id} of this plan sets {key}.",
        "Name the plan that the finding is about as base_plan_id, or leave the key out.",
    )


def merged(findings: Iterable[FoundOut]) -> Changes:
    """The fixes of several findings as one, acceptance left out; worst first.

    Lists are joined, since each finding adds its own; of other values the first counts.
    """
    whole: Changes = {}
    for finding in findings:
        for key, value in finding.fix.items():
            known = whole.get(key)
            if key == ACCEPT:
                continue
            if known and value and isinstance(known, list) and isinstance(value, list):
                whole[key] = list(dict.fromkeys([*known, *value]))
            else:
                whole.setdefault(key, value)
    return whole


def check_accepted(plan: api.Plan, before: Sequence[str] = ()) -> None:
    """Only what was found can be accepted, not what may yet come.

    Args:
        plan: the new plan.
        before: what the plan it was made from accepts.

    Raises:
        WhetError: ``changes.accept``.
    """
    found = dict.fromkeys(finding.id for finding in plan.findings)
    early = [id for id in plan.recipe.accept if id not in found and id not in before]
    if early:
        raise api.WhetError(
            "changes.accept",
            f"{', '.join(early)} cannot be accepted: nothing of that id was found.",
            f"Findings of this plan: {', '.join(found) or 'none'}.",
        )
