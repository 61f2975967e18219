"""Environment flags: which are set, what each does now, which contradict each other or are misspelt."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache

from pydantic import BaseModel, ConfigDict

from ..findings import Finding, Fix
from ..settings import FALSE_WORDS, OWN_FLAGS, TRUE_WORDS
from .env_flag_table import ALIASES, FLAGS, KNOWN_BESIDE, Flag
from .registry import HasSurroundings, check

SHOWN = "set"
"""What stands for a secret's value."""
SECRET = re.compile(r"TOKEN(?!IZER|S_PATH|_PATH)|API_?KEY|SECRET|PASSW|CREDENTIAL|PRIVATE_KEY")
SHORTEST, LONG, FURTHEST = 7, 15, 2
"""Shorter names are not guessed at; in longer ones two slips are allowed; more make another word."""
EXACT = {flag.name: flag for flag in FLAGS if not flag.name.endswith("*")}
_LETTERS = {name: Counter(name) for name in EXACT}
WILD = [flag for flag in FLAGS if flag.name.endswith("*")]
OTHER_TOOL = "UNSLOTH_"
"""whet reads none of these, so none of them is what was meant: a misspelt one is answered like the right."""
SHORTEST_FAMILY = 5
"""`NCCL` and `HF` are too short to be told from other words."""


class FlagReport(BaseModel):
    """One flag that is set and matters: a line of `whet doctor --env`."""

    model_config = ConfigDict(frozen=True)

    name: str
    value: str
    reader: str
    effect: str
    conflict: str = ""
    advice: str = ""
    command: str | None = None
    """What to type instead."""


def seen_flags(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Flags that are set and matter, misspelt ones too, with the values of secrets left out."""
    environment = os.environ if environment is None else environment
    return {
        name: SHOWN if is_secret(name) else value
        for name, value in sorted(environment.items())
        if name not in KNOWN_BESIDE
        and (flag_of(name) is not None or right_name(name) is not None or name.startswith("WHET_"))
    }


def is_secret(name: str) -> bool:
    """Whether a variable of this name, or the one it was meant to be, holds what must not be shown."""
    flag = EXACT.get(right_name(name) or name)
    return (flag is not None and flag.kind == "secret") or SECRET.search(name.upper()) is not None


def flag_of(name: str) -> Flag | None:
    """The table's entry for a name, or for its family."""
    if name not in EXACT and (meant := _meant(name)) is not None and meant.startswith(OTHER_TOOL):
        name = meant
    if name in EXACT:
        return EXACT[name]
    return next((flag for flag in WILD if name.startswith(flag.name[:-1])), None)


def right_name(name: str) -> str | None:
    """The name that a misspelt or mistaken one means; None for right names and for unknown ones."""
    if name in EXACT or name in KNOWN_BESIDE:
        return None
    meant = ALIASES.get(name) or _meant(name)
    return None if meant is None or meant.startswith(OTHER_TOOL) else meant


def _meant(name: str) -> str | None:
    """The known name, or one of a known family, that differs by a slip of the keyboard."""
    head, _, rest = name.upper().partition("_")
    families = {flag.name.partition("_")[0] for flag in WILD} if rest else set()
    near = (one for one in families if len(one) >= SHORTEST_FAMILY and edit_distance(head, one) == 1)
    return _nearest(name.upper()) or next((f"{family}_{rest}" for family in near), None)


@cache
def _nearest(name: str) -> str | None:
    """The known name that differs by a slip of the keyboard: two in long names, else one."""
    if len(name) < SHORTEST - 1:
        return None
    letters = Counter(name)
    for known in (one for one in EXACT if len(one) >= SHORTEST and abs(len(one) - len(name)) <= FURTHEST):
        limit = FURTHEST if len(known) >= LONG or known.startswith("WHET_") else 1
        # Letters that one has and the other lacks: a bound that is quickly known.
        if max((letters - _LETTERS[known]).total(), (_LETTERS[known] - letters).total()) > limit:
            continue
        if edit_distance(name, known) <= limit:
            return known
    return None


def edit_distance(a: str, b: str) -> int:
    """Insertions, deletions, substitutions and swaps of neighbours between two words (Damerau 1964, in the
    restricted form in which no part is edited twice)."""
    if abs(len(a) - len(b)) > FURTHEST:
        return FURTHEST + 1
    before: list[int] = []
    last = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            best = min(last[j] + 1, row[-1] + 1, last[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                best = min(best, before[j - 2] + 1)
            row.append(best)
        before, last = last, row
    return last[-1]


def explain_flags(flags: Mapping[str, str], gpu: bool) -> list[FlagReport]:
    """What each flag that is set does now, in the order of the table.

    Args:
        flags: as :func:`seen_flags` gives them.
        gpu: this machine has one; some flags matter only then.
    """
    against = conflicts(flags, gpu)
    order = [flag.name for flag in FLAGS]
    reports = [_report(name, value, against.get(name, "")) for name, value in flags.items()]
    return sorted(reports, key=lambda report: order.index(_family(report.name)))


def conflicts(flags: Mapping[str, str], gpu: bool) -> dict[str, str]:
    """Flag to what it contradicts, or the harm it does as it stands."""
    found: dict[str, str] = {}
    for one, other in (("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"),
                       ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")):  # fmt: skip
        if one in flags and other in flags and flags[one] != flags[other]:
            found[other] = f"{one} says {flags[one]}, and goes before it"
    if "HF_TOKEN" in flags and "HUGGING_FACE_HUB_TOKEN" in flags:
        found["HUGGING_FACE_HUB_TOKEN"] = "HF_TOKEN goes before it"
    if "HF_TOKEN" in flags and _on(flags, "HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        found["HF_HUB_DISABLE_IMPLICIT_TOKEN"] = (
            "HF_TOKEN is set and will not be sent: private models are not found"
        )
    if _on(flags, "HF_HUB_DISABLE_XET") and _on(flags, "HF_XET_HIGH_PERFORMANCE"):
        found["HF_XET_HIGH_PERFORMANCE"] = "HF_HUB_DISABLE_XET=1 switches Xet off"
    if "WHET_OFFLINE" in flags and not _on(flags, "WHET_OFFLINE") and _on(flags, "HF_HUB_OFFLINE"):
        found["WHET_OFFLINE"] = "HF_HUB_OFFLINE=1 keeps whet offline all the same"
    if gpu and _on(flags, "TRITON_INTERPRET"):
        found["TRITON_INTERPRET"] = "there is a GPU, and its kernels would run in Python on the CPU"
    if gpu and _on(flags, "CUDA_LAUNCH_BLOCKING"):
        found["CUDA_LAUNCH_BLOCKING"] = "each kernel is waited for: steps take several times as long"
    for name in flags:
        if wrong := _wrong_value(name, flags[name]):
            found[name] = wrong
    return found


@check("environment", "E12")
def misspelt(facts: HasSurroundings) -> Iterator[Finding]:
    """A flag that nobody reads, and the one that was meant."""
    flags = facts.surroundings.flags
    for name in flags:
        meant = right_name(name)
        unknown = meant is None and name not in EXACT and name.startswith("WHET_")
        if meant is not None:
            value = flags.get(name, "")
            yield Finding(
                id="E12",
                severity="warning",
                title=f"{name} is set and nobody reads it; {meant} was probably meant.",
                evidence={"set": name, "meant": meant},
                fix=Fix(
                    text="Set the right name.",
                    command=f'export {meant}="${name}"; unset {name}'
                    if is_secret(name)
                    else f"export {meant}={value}; unset {name}",
                ),
            )
        elif unknown:
            yield Finding(
                id="E12",
                severity="warning",
                title=f"{name} is no flag of whet's.",
                evidence={"set": name, "known": [flag.name for flag in OWN_FLAGS]},
                fix=Fix(
                    text="A recipe says what a run does; flags only where and how.", command=f"unset {name}"
                ),
            )


@check("environment", "E12")
def contradicting(facts: HasSurroundings) -> Iterator[Finding]:
    """Flags that contradict each other, slow everything down, or hold a value that means nothing."""
    flags = facts.surroundings.flags
    for name, why in conflicts(flags, bool(facts.machine.gpus)).items():
        yield Finding(
            id="E12",
            severity="warning",
            title=f"{name}={flags[name]}: {why}.",
            evidence={name: flags[name]},
            fix=Fix(text=f"Unset {name}, or mend its value.", command=f"unset {name}"),
        )


@check("environment", "E12")
def outdated(facts: HasSurroundings) -> Iterator[Finding]:
    """Old names. One that nobody reads any more sends downloads to another disk than was meant."""
    flags = facts.surroundings.flags
    for name in flags:
        flag = EXACT.get(name)
        if flag is None or flag.instead is None or flag.instead in flags:
            continue
        shown = f'"${name}"' if is_secret(name) else flags[name]
        yield Finding(
            id="E12",
            severity="warning" if flag.ignored and flag.kind == "value" else "note",
            title=f"{name} is an old name"
            + (", and nobody reads it any more." if flag.ignored else f" of {flag.instead}; it still works."),
            evidence={"set": name, "today": flag.instead},
            fix=Fix(text="Use today's name.", command=f"export {flag.instead}={shown}; unset {name}"),
        )


@check("environment", "E12")
def of_unsloth(facts: HasSurroundings) -> Iterator[Finding]:
    """Unsloth's flags, each answered with whet's way."""
    known = {name: flag_of(name) for name in facts.surroundings.flags}
    found = {name: flag for name, flag in known.items() if flag and flag.name.startswith(OTHER_TOOL)}
    if not found:
        return
    answers = {name: flag.advice for name, flag in found.items()}
    commands = list(dict.fromkeys(flag.command for flag in found.values() if flag.command))
    yield Finding(
        id="E12",
        severity="note",
        title=f"Flags of Unsloth are set, which whet does not read: {', '.join(answers)}.",
        evidence={name: facts.surroundings.flags[name] for name in answers},
        fix=Fix(text=" ".join(dict.fromkeys(answers.values())), command="; ".join(commands) or None),
    )


CHECKS = (misspelt, contradicting, outdated, of_unsloth)


def _report(name: str, value: str, conflict: str) -> FlagReport:
    meant = right_name(name)
    flag = flag_of(name)
    if meant is not None or flag is None:
        return FlagReport(
            name=name, value=value, reader="nobody", effect="nothing",
            conflict=f"{meant or 'another name'} was probably meant",
        )  # fmt: skip
    effect = flag.does.format(value=value or "nothing")
    if flag.kind == "switch" and value.lower() not in TRUE_WORDS:
        effect = flag.off
    if name == "CUDA_VISIBLE_DEVICES" and value.strip() in ("", "-1"):
        effect = "all GPUs are hidden"
    advice = flag.advice or (f"{flag.instead} is its name today." if flag.instead else "")
    return FlagReport(
        name=name,
        value=value,
        reader=flag.reader,
        effect=effect,
        conflict=conflict,
        advice=advice,
        command=flag.command,
    )


def _family(name: str) -> str:
    flag = flag_of(right_name(name) or name)
    return flag.name if flag is not None else FLAGS[0].name


def _on(flags: Mapping[str, str], name: str) -> bool:
    return flags.get(name, "").lower() in TRUE_WORDS


def _wrong_value(name: str, value: str) -> str:
    flag = EXACT.get(name)
    own = next((own for own in OWN_FLAGS if own.name == name), None)
    if flag is not None and flag.kind == "switch" and value.lower() not in TRUE_WORDS | FALSE_WORDS:
        return "neither on (1, true, yes) nor off (0, false, no); it counts as off"
    if own is not None and own.choices not in ((), ("switch",), ("secret",)) and value not in own.choices:
        return f"must be one of {', '.join(own.choices)}; it counts as {own.otherwise}"
    return ""
