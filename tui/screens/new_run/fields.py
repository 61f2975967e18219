"""The recipe's settings as fields of a form, made from its JSON Schema: help, choices, words to values."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["choice", "flag", "whole", "number", "text", "list", "map"]

COMMON = (
    "model.max_length",
    "model.precision",
    "data.eval_fraction",
    "data.template",
    "method.supervise",
    "method.packing",
    "method.loss",
    "method.beta",
    "method.label_names",
    "method.class_weights",
    "method.query_prompt",
    "method.document_prompt",
    "adapter.kind",
    "adapter.rank",
    "adapter.alpha",
    "training.epochs",
    "training.max_steps",
    "training.batch_size",
    "training.gradient_accumulation",
    "training.learning_rate",
    "training.gradient_checkpointing",
    "eval.early_stopping",
    "export.gguf",
)
"""Settings that people change; the others are one key away."""

DOUBLED = ("max_length", "rank", "batch_size", "gradient_accumulation", "max_steps", "save_every", "gpus")
"""Whole numbers that are stepped by factors of two."""

SHARE = 0.05


@dataclass(frozen=True)
class Field:
    """One setting: where it stands, what it may be."""

    key: str
    help: str
    kind: Kind
    choices: tuple[str, ...] = ()
    default: Any = None
    optional: bool = False
    """May be empty, which is None."""
    least: float | None = None
    below: float | None = None
    word: str = ""
    """A word that stands for a number, such as `auto`; it comes before the least."""

    @property
    def section(self) -> str:
        return self.key.rpartition(".")[0]

    @property
    def name(self) -> str:
        return self.key.rpartition(".")[2]

    def value_of(self, words: str) -> Any:
        """What a person typed, as the recipe takes it; nonsense stays text, which the recipe refuses."""
        words = words.strip()
        if not words and self.optional:
            return None
        if self.kind == "list":
            return _list(words, self.choices)
        if self.kind == "text" or self.kind == "choice":
            return words
        if self.kind == "map":
            pairs = (part.partition(":") for part in _strip(words.split(",")))
            return {name.strip(): value.strip() for name, _, value in pairs}
        if self.kind == "flag":
            return {"on": True, "yes": True, "true": True, "off": False, "no": False, "false": False}.get(
                words.lower(), words
            )
        return _number(words, whole=self.kind == "whole")

    def step(self, value: Any, up: bool) -> Any:
        """The next larger or smaller value, the next or last choice; the same where there is none."""
        if self.kind == "choice" and words_of(value) in self.choices:
            place = self.choices.index(words_of(value)) + (1 if up else -1)
            return self.choices[place % len(self.choices)]
        if self.kind == "flag":
            return not value
        if self.kind == "whole":
            return self._whole(value, up)
        if self.kind == "number":
            return self._number(value, up)
        return value

    def _whole(self, value: int | str | None, up: bool) -> int | str | None:
        if value is None or isinstance(value, str):
            return max(1, int(self.least or 1)) if up else value
        least = int(self.least or 0)
        doubled = value * 2 if up else value // 2
        new = doubled if self.name in DOUBLED else value + (1 if up else -1)
        if new >= least:
            return new
        return None if self.optional else self.word or least

    def _number(self, value: float | None, up: bool) -> float | None:
        if self.below == 1:
            new = round((value or 0) + (SHARE if up else -SHARE), 4)
            return min(max(new, 0.0), 1 - SHARE)
        if not value:
            return (self.least or 1.0) if up else value
        return round_step(value, up)


def round_step(value: float, up: bool) -> float:
    """The next of 1, 2, 5, 10, 20, ... in that direction, at any power of ten."""
    power = math.floor(math.log10(value) + 1e-9)
    ladder = [factor * 10.0**place for place in range(power - 1, power + 2) for factor in (1, 2, 5)]
    further = [one for one in ladder if (one > value * 1.0001 if up else one < value * 0.9999)]
    return float(f"{further[0] if up else further[-1]:.3g}")


def words_of(value: Any) -> str:
    """A value as it is typed and shown."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        plain = not any("," in str(one) or str(one).startswith("[") for one in value)
        return ", ".join(map(str, value)) if plain else json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        return ", ".join(f"{name}: {one}" for name, one in value.items())
    return str(value)


def fields_of(schema: dict[str, Any], method: str = "sft") -> list[Field]:
    """Every setting of the recipe's schema that goes with a method, in its order."""
    return list(_walk(schema, schema.get("$defs", {}), "", method))


def _walk(part: dict[str, Any], sections: dict[str, Any], prefix: str, method: str) -> Iterator[Field]:
    for name, said in part["properties"].items():
        choices = [sections[one["$ref"].rsplit("/", 1)[-1]] for one in (said, *said.get("oneOf", ()))
                   if "$ref" in one]  # fmt: skip
        if choices:
            section = next((one for one in choices if kind_of(one) == method), choices[0])
            yield from _walk(section, sections, f"{prefix}{name}.", method)
        elif "const" not in said:
            yield _field(f"{prefix}{name}", said)


def kind_of(section: dict[str, Any]) -> str | None:
    """Which of several sections a setting's value can be; None where there is one only."""
    kind: str | None = section["properties"].get("kind", {}).get("const")
    return kind


def _field(key: str, said: dict[str, Any]) -> Field:
    forms = said.get("anyOf", [said])
    optional = {"type": "null"} in forms
    form = next(one for one in forms if one != {"type": "null"})
    word = next((one["const"] for one in forms if "const" in one), "")
    kinds: dict[str, Kind] = {
        "boolean": "flag",
        "integer": "whole",
        "number": "number",
        "array": "list",
        "object": "map",
    }
    if any(one.get("type") == "array" for one in forms):
        form = next(one for one in forms if one.get("type") == "array")
    choices = form.get("enum") or form.get("items", {}).get("enum") or ()
    kind: Kind = "choice" if "enum" in form else kinds.get(form["type"], "text")
    return Field(
        key=key,
        help=said.get("description", ""),
        kind=kind,
        choices=tuple(choices),
        default=said.get("default"),
        optional=optional,
        least=form.get("minimum", form.get("exclusiveMinimum")),
        below=form.get("exclusiveMaximum"),
        word=word,
    )


def _list(words: str, choices: tuple[str, ...]) -> Any:
    """Items parted by commas, or a JSON list where an item holds a comma; one word that is no list stays."""
    if words.startswith("["):
        try:
            return json.loads(words)
        except ValueError:
            return _strip(words.strip("[]").split(","))
    return "all-linear" if words == "all-linear" else _strip(words.split(","))


def _strip(parts: list[str]) -> list[str]:
    return [part.strip() for part in parts if part.strip()]


def _number(words: str, *, whole: bool) -> int | float | str:
    """A number where it is one; thousands may be parted by commas or underscores."""
    bare = words.replace(",", "").replace("_", "")
    try:
        value = float(bare)
    except ValueError:
        return words
    if not math.isfinite(value):
        return words
    return int(value) if whole and value.is_integer() else value
