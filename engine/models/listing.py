"""Which models there are: on this machine first, then those people commonly tune. Light."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Source = Literal["demo", "cache", "folder", "run", "known"]


class ModelEntry(BaseModel):
    """One model of the list."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="As a recipe's model.name takes it.")
    source: Source = Field(
        description="demo: shipped. cache: the hub's cache here. folder, run: a directory. known: the hub."
    )
    here: bool = Field(description="Config, tokenizer and weights lie on this machine.")
    reachable: bool = Field(description="Here, or not forbidden to be downloaded (whet is not offline).")
    family: str
    parameters: int
    context: int | None = Field(description="Positions the model was made for, in tokens.")
    licence: str | None
    gated: bool = Field(description="The hub asks for a login and an accepted licence.")
    chat: bool = Field(description="An instruct model with a chat template; else a base model.")
    needs_gib: dict[str, float] = Field(
        description="Memory for LoRA on rows of 2,048 tokens at least, by how the base is held."
    )
    fits: dict[str, bool] = Field(description="Whether that fits this machine (or the asked-for size).")
    methods: list[str] = Field(description="What whet can do with it: sft, lora, dora, full, nf4, ...")
    gguf: str | None = Field(description="Why it has no GGUF export; None when it has.")
    note: str = Field(description="What to know before taking it; may be empty.")


def list_models(
    query: str | None = None, fits_gib: float | None = None, folders: Sequence[Path] = ()
) -> list[ModelEntry]:
    """Models on this machine, then known ones."""
    return []
