"""How each family of speaking models writes a text and the codes of its sound as tokens.

Orpheus' order of a frame is that of its published notebooks: SNAC has three codebooks of one, two and four
codes a frame, interleaved so that each code follows those that are earlier in time and coarser.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ..errors import WhetError
from ..methods.tts.section import CsmMarks, OrpheusMarks, SparkMarks, TTSSection
from ..methods.tts.section import Voice as Layout
from .masking import IGNORE
from .rows import RowError
from .spoken import VOICE, Codes, codes_of, speaker_of

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers import Tokenizer

ORDER = ((0, 0), (1, 0), (2, 0), (2, 1), (1, 1), (2, 2), (2, 3))
"""Of a SNAC frame's codes: (codebook, number within the frame)."""
PLACES = len(ORDER)
PARTS = re.compile(r"(\{\w+\})")


@dataclass(frozen=True)
class Spoken:
    """A row as tokens. ``frames`` are of models that write several codebooks at once, behind the ids."""

    input_ids: list[int]
    labels: list[int]
    frames: list[list[int]] = field(default_factory=list)
    """[frame][codebook]"""


class Voice(ABC):
    """A family's way of writing rows."""

    @abstractmethod
    def write(self, text: str, codes: Codes, value: Mapping[str, Any]) -> Spoken:
        """A row as tokens. Raises RowError where the codes are not of this family's codec.

        Args:
            text: what is said.
            codes: of its sound.
            value: the row, for what else the family wants of it.
        """


class Orpheus(Voice):
    """See :class:`..methods.tts.section.OrpheusMarks`."""

    def __init__(self, marks: OrpheusMarks, tokenizer: Tokenizer, rows: int, all_tokens: bool) -> None:
        self.marks, self.tokenizer, self.all_tokens = marks, tokenizer, all_tokens
        last = marks.codes_start + PLACES * marks.codebook_size
        highest = max(last, *(value + 1 for name, value in marks if name.endswith(("_start", "_end"))))
        if highest > rows:
            raise WhetError(
                "tts.vocabulary",
                f"The orpheus layout writes tokens up to {highest - 1:,}, and the model's embedding has "
                f"{rows:,} rows.",
                "Name a model of that family as model.name (or as the model to look at rows with), or set "
                "the numbers of yours in method.orpheus.",
            )

    def write(self, text: str, codes: Codes, value: Mapping[str, Any]) -> Spoken:
        """Marks, text, marks, codes, marks."""
        marks, speaker = self.marks, speaker_of(value)
        said = text if speaker is None else _filled(marks.prompt, speaker=speaker, text=text)
        before = [
            marks.human_start,
            *self.tokenizer.encode(said).ids,
            marks.text_end,
            marks.human_end,
            marks.ai_start,
            marks.speech_start,
        ]
        speech = [*self.codes(codes), marks.speech_end, marks.ai_end]
        return _joined(before, speech, self.all_tokens)

    def codes(self, codes: Codes) -> list[int]:
        """Tokens of codes in any of the three ways that data sets hold them."""
        flat = self._flat(codes)
        frames = [flat[place : place + PLACES] for place in range(0, len(flat), PLACES)]
        if self.marks.drop_repeats:
            frames = [frames[0], *(now for was, now in pairwise(frames) if now[0] != was[0])]
        return [token for frame in frames for token in frame]

    def _flat(self, codes: Codes) -> list[int]:
        start, size = self.marks.codes_start, self.marks.codebook_size
        if isinstance(codes[0], list):
            return [
                start + place * size + code
                for frame in interleaved(codes, size)  # type: ignore[arg-type]
                for place, code in enumerate(frame)
            ]
        given: list[int] = codes  # type: ignore[assignment]
        if len(given) % PLACES:
            raise RowError(f"{len(given)} codes are no whole frames of {PLACES}")
        shift = 0 if min(given) >= start else start  # already tokens, or counted from code 0
        tokens = [shift + code for code in given]
        for number, token in enumerate(tokens):
            place = number % PLACES
            if not 0 <= token - start - place * size < size:
                raise RowError(
                    f"code {number} is {given[number]}: at place {place} of a frame it lies from "
                    f"{place * size} to {(place + 1) * size - 1}, or {start} more as a token"
                )
        return tokens


class Spark(Voice):
    """See :class:`..methods.tts.section.SparkMarks`."""

    def __init__(self, marks: SparkMarks, tokenizer: Tokenizer, all_tokens: bool) -> None:
        self.marks, self.tokenizer, self.all_tokens = marks, tokenizer, all_tokens
        for code in (marks.global_code, marks.code):
            if tokenizer.token_to_id(code.replace("{}", "0")) is None:
                raise WhetError(
                    "tts.vocabulary",
                    f"The spark layout writes {code.replace('{}', '0')}, which is no token of this model.",
                    "Choose a model of that family (its folder LLM), or set your names in method.spark.",
                )

    def write(self, text: str, codes: Codes, value: Mapping[str, Any]) -> Spoken:
        """The marks are tokens of the vocabulary; those of codes are looked up, not parsed."""
        marks = self.marks
        voice = next((name for name in VOICE if name in value), None)
        if voice is None and "{global_codes}" in marks.prompt:
            raise RowError(f"there is no field {VOICE[0]!r} with the codes of the voice")
        globals_ = [] if voice is None else codes_of(value, voice)
        parts: dict[str, list[int]] = {
            "text": self._encode(text),
            "global_codes": self._tokens(globals_, marks.global_code),
            "codes": self._tokens(codes, marks.code),
        }
        return _joined(self._fill(marks.prompt, parts), self._fill(marks.speech, parts), self.all_tokens)

    def _fill(self, form: str, parts: Mapping[str, list[int]]) -> list[int]:
        found: list[int] = []
        for piece in PARTS.split(form):
            name = piece[1:-1]
            found += parts[name] if piece.startswith("{") and name in parts else self._encode(piece)
        return found

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids) if text else []

    def _tokens(self, codes: Codes, form: str) -> list[int]:
        if codes and isinstance(codes[0], list):
            if len(codes) != 1:
                raise RowError(f"there are {len(codes)} codebooks, expected one")
            codes = codes[0]
        found = [self.tokenizer.token_to_id(form.replace("{}", str(code))) for code in codes]
        if None in found:
            raise RowError(f"{form.replace('{}', str(codes[found.index(None)]))} is no token of this model")
        return [token for token in found if token is not None]


@dataclass(frozen=True)
class Codebooks:
    """Of a model that writes several codes a frame, as its config.json says."""

    count: int
    size: int
    end: int
    """Written in all of them behind the last frame."""


class Csm(Voice):
    """See :class:`..methods.tts.section.CsmMarks`."""

    def __init__(self, marks: CsmMarks, tokenizer: Tokenizer, books: Codebooks, all_tokens: bool) -> None:
        self.marks, self.tokenizer, self.books = marks, tokenizer, books
        if all_tokens:
            raise WhetError(
                "tts.learn",
                "method.learn=all is for models that write text and codes with one head; csm writes codes.",
                "Set method.learn=speech.",
            )

    def write(self, text: str, codes: Codes, value: Mapping[str, Any]) -> Spoken:
        """The text, then frames, then the frame that ends them."""
        books = self.books
        if not isinstance(codes[0], list) or len(codes) != books.count:
            found = len(codes) if isinstance(codes[0], list) else 1
            raise RowError(
                f"there are {found} codebooks, the model writes {books.count}: codes[codebook][frame]"
            )
        lists: list[list[int]] = codes  # type: ignore[assignment]
        if len(set(map(len, lists))) > 1:
            raise RowError(f"codebooks are not equally long: {', '.join(str(len(one)) for one in lists[:8])}")
        largest = max(map(max, lists))
        if largest >= books.size:
            raise RowError(f"a code is {largest}, the codebooks have {books.size}")
        speaker = speaker_of(value) or self.marks.speaker
        said = _filled(self.marks.prompt, speaker=speaker, text=text)
        ids = list(self.tokenizer.encode(said, add_special_tokens=False).ids)
        frames = [*map(list, zip(*lists, strict=True)), [books.end] * books.count]
        return Spoken(ids, [], frames)


def layout_of(section: TTSSection, tokenizer: Tokenizer, folder: Path) -> Layout:
    """The recipe's, else what the model's type and vocabulary are made for."""
    if section.layout != "auto":
        return section.layout
    if json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type") == "csm":
        return "csm"
    code = section.spark.code.replace("{}", "0")
    return "orpheus" if tokenizer.token_to_id(code) is None else "spark"


def voice_of(section: TTSSection, tokenizer: Tokenizer, folder: Path, rows: int) -> Voice:
    """Of a recipe's layout and a model's folder.

    Args:
        section: the recipe's.
        tokenizer: of the model.
        folder: with config.json.
        rows: of the model's embedding.

    Raises:
        WhetError: ``tts.*`` where the model is not of that family.
    """
    whole, layout = section.learn == "all", layout_of(section, tokenizer, folder)
    if layout == "orpheus":
        return Orpheus(section.orpheus, tokenizer, rows, whole)
    if layout == "spark":
        return Spark(section.spark, tokenizer, whole)
    return Csm(section.csm, tokenizer, codebooks_of(folder), whole)


def codebooks_of(folder: Path) -> Codebooks:
    """Raises WhetError ``tts.model`` where config.json is not CSM's."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind = config.get("model_type")
    if kind != "csm":
        raise WhetError(
            "tts.model",
            f"method.layout=csm trains CSM models, and {folder.name} is of the type {kind!r}.",
            "Set method.layout to orpheus or spark, or choose a model of the kind of sesame/csm-1b.",
        )
    end = config.get("codebook_eos_token_id", 0)
    return Codebooks(int(config["num_codebooks"]), int(config["vocab_size"]), int(end))


def interleaved(levels: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """Frames of seven codes out of SNAC's three codebooks. Raises RowError."""
    lengths = [len(one) for one in levels]
    frames = lengths[0]
    if len(levels) != 3 or lengths != [frames, 2 * frames, 4 * frames]:
        raise RowError(f"codebooks are {', '.join(map(str, lengths))} long, expected n, 2n and 4n codes")
    largest = max(map(max, levels))
    if largest >= size:
        raise RowError(f"a code is {largest}, the codebooks have {size}")
    counts = [1, 2, 4]
    return [
        [levels[book][frame * counts[book] + number] for book, number in ORDER] for frame in range(frames)
    ]


def _joined(before: list[int], speech: list[int], all_tokens: bool) -> Spoken:
    ids = before + speech
    return Spoken(ids, list(ids) if all_tokens else [IGNORE] * len(before) + speech)


def _filled(form: str, **parts: str) -> str:
    """Not `str.format`: a text may hold braces."""
    first, *rest = form.split("{text}")
    named = [one.replace("{speaker}", parts["speaker"]) for one in (first, *rest)]
    return parts["text"].join(named)
