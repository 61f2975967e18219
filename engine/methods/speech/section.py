"""Recipe section of speech recognition. Light: no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ...errors import WhetError
from ..section import RowMethod

if TYPE_CHECKING:
    from ..stored_rows import StoredRows


class SpeechSection(RowMethod):
    """A Whisper model writes what is said in recordings of at most 30 seconds."""

    kind: Literal["speech"] = "speech"
    language: str | None = Field(
        None,
        pattern=r"^[a-z]{2,3}$",
        description="Code of the language of all rows, e.g. en; by default each row's column `language`. "
        "English-only models need none.",
    )
    task: Literal["transcribe", "translate"] = Field(
        "transcribe", description="The rows' texts are in the language that is spoken, or in English."
    )
    error_rows: int = Field(
        64,
        ge=0,
        description="Held-out rows that each evaluation writes down to count wrong words and characters; 0 "
        "leaves it at the loss.",
    )
    normalize: Literal["words", "none"] = Field(
        "words",
        description="Before texts are compared: words leaves case and punctuation out and unifies "
        "characters (Unicode NFKC); none compares every character.",
    )

    def refuse_rows(self, rows: StoredRows) -> None:
        """Raises WhetError ``speech.language`` for rows in nobody knows which language."""
        unnamed = rows.counts_of("language").get("", 0)
        if unnamed:
            raise WhetError(
                "speech.language",
                f"This model writes many languages, and none is named for {unnamed:,} training rows.",
                "Set method.language, e.g. method.language=en, or give the rows a column `language`.",
            )
