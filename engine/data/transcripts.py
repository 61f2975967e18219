"""What Whisper's decoder writes of a recording: language, task, no times, the text, the end.

The tokens and their order are those of the model's paper (arXiv:2212.04356, section 2.3).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import WhetError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

START, END, UNTIMED = "<|startoftranscript|>", "<|endoftext|>", "<|notimestamps|>"
LANGUAGE = re.compile(r"<\|([a-z]{2,3})\|>")


@dataclass(frozen=True)
class Transcripts:
    """Ids of a model's marks, and how its labels are made."""

    tokenizer: Tokenizer
    start: int
    end: int
    untimed: int
    languages: dict[str, int]
    """Code -> id; empty for English-only models."""
    task: int | None

    @classmethod
    def of(cls, folder: Path, tokenizer: Tokenizer, task: str) -> Transcripts:
        """Of a model's folder. Raises WhetError ``speech.model`` where it is no Whisper model."""
        marks = {}
        for mark in (START, END, UNTIMED):
            found = tokenizer.token_to_id(mark)
            if found is None:
                raise not_whisper(folder, f"its vocabulary lacks {mark}")
            marks[mark] = found
        languages = {} if _english_only(folder) else _languages(tokenizer)
        if not languages and task != "transcribe":
            raise WhetError(
                "speech.language",
                f"{folder.name} knows English alone, so it translates nothing.",
                "Set method.task=transcribe, or choose a multilingual model.",
            )
        return cls(
            tokenizer,
            start=marks[START],
            end=marks[END],
            untimed=marks[UNTIMED],
            languages=languages,
            task=tokenizer.token_to_id(f"<|{task}|>") if languages else None,
        )

    def prefix(self, language: str | None) -> list[int]:
        """Between the start and the text; without a language, some one's, for counting: the plan refuses such
        rows. Raises WhetError ``speech.language``."""
        if not self.languages or self.task is None:
            return [self.untimed]
        named = language or next(iter(self.languages))
        if named not in self.languages:
            raise WhetError(
                "speech.language",
                f"This model has no language {named!r}.",
                f"Set method.language to one of: {', '.join(sorted(self.languages)[:120])}.",
            )
        return [self.languages[named], self.task, self.untimed]

    def labels(self, text: str, language: str | None) -> list[int]:
        """All that the decoder writes after its start."""
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        return [*self.prefix(language), *ids, self.end]


def not_whisper(folder: Path, what: str) -> WhetError:
    """The error of a model that hears nothing, or in another way."""
    return WhetError(
        "speech.model",
        f"method.kind=speech trains Whisper models, and {folder.name} is none: {what}.",
        "Name one of openai/whisper-*, or a folder of that kind, as model.name (or as the model to look at "
        "rows with).",
    )


def _english_only(folder: Path) -> bool:
    """As generation_config.json says."""
    file = folder / "generation_config.json"
    said = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return said.get("is_multilingual") is False


def _languages(tokenizer: Tokenizer) -> dict[str, int]:
    added = tokenizer.get_added_tokens_decoder()
    found = {number: LANGUAGE.fullmatch(token.content) for number, token in added.items()}
    return {match.group(1): number for number, match in found.items() if match is not None}
