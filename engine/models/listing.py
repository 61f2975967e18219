"""Which models there are: on this machine first, then those people commonly tune. Light."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ..errors import WhetError
from ..hardware import Machine, inspect_machine, with_memory
from ..settings import settings
from ..surroundings.hub import hub_cache
from .facts import ModelFacts, read_model_facts
from .families import Experimental, Unsupported, family_of
from .known import KNOWN, KnownModel, known_facts, known_model
from .locate import missing_weights, resolve_model
from .needs import held_choices, lasting, least_held
from .sentence_folder import is_embedding_model

GIB = 2**30
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
    licence: str | None = Field(description="The hub's word for it; None where whet does not know.")
    gated: bool = Field(description="The hub asks for a login and an accepted licence.")
    chat: bool = Field(description="Has a chat template; else a base model.")
    needs_gib: dict[str, float] = Field(
        description="Least memory for LoRA on rows of 2,048 tokens, by how the base is held."
    )
    fits: dict[str, bool] = Field(description="Whether that fits this machine (or the size asked for).")
    methods: list[str] = Field(description="What whet does with it: sft, lora, dora, full, nf4, ...")
    experimental: dict[str, str] = Field(description="Of these, what is not proven, and in which way.")
    refused: dict[str, str] = Field(description="What it does not, and why.")
    gguf: str | None = Field(description="Why it has no GGUF export; None when it has.")
    note: str = Field(description="What to know before taking it; may be empty.")


@dataclass(frozen=True)
class Place:
    """A model directory that was found, under the name that a recipe gives it."""

    name: str
    source: Source
    path: Path


def list_models(
    query: str | None = None,
    fits_gib: float | None = None,
    folders: Sequence[Path] = (),
    machine: Machine | None = None,
) -> list[ModelEntry]:
    """Models on this machine, then known ones, each group the smallest first.

    Args:
        query: part of a name, family or licence, in any case.
        fits_gib: only what trains in so much memory, held in some way.
        folders: looked through for model directories, themselves and one level down.
        machine: instead of the one at hand.
    """
    machine = machine or inspect_machine()
    if fits_gib is not None:
        machine = with_memory(machine, int(fits_gib * GIB))
    found = [_entry_here(place, machine) for place in places(folders)]
    here = sorted((entry for entry in found if entry is not None), key=lambda entry: entry.parameters)
    names = {entry.name.lower() for entry in here if entry.here}
    here = [entry for entry in here if entry.here or known_model(entry.name) is None]
    known = _known(lasting(machine).model_dump_json(), settings().offline)
    return [
        entry
        for entry in [*here, *(one for one in known if one.name.lower() not in names)]
        if _asked_for(entry, query) and (fits_gib is None or any(entry.fits.values()))
    ]


def encoders(folders: Sequence[Path] = ()) -> list[str]:
    """Names of the encoders and embedding models on this machine, as a recipe's model.name takes them."""
    return [place.name for place in places(folders) if place.source != "demo" and _encodes(place.path)]


def _encodes(path: Path) -> bool:
    try:
        return is_embedding_model(path)
    except (OSError, ValueError):
        return False


def places(folders: Sequence[Path] = ()) -> Iterator[Place]:
    """Model directories on this machine: the demo, the hub's cache, ``folders``, finished runs' models."""
    yield Place("demo", "demo", resolve_model("demo"))
    yield from _cached()
    for folder in folders:
        for path in (folder, *(sorted(folder.iterdir()) if folder.is_dir() else ())):
            if (path / "config.json").is_file():
                yield Place(str(path.absolute()), "folder", path.absolute())
    for path in sorted(settings().runs.glob("*/export/model/config.json")):
        yield Place(str(path.parent), "run", path.parent)


def _cached() -> Iterator[Place]:
    """Models of the hub's cache: of each the newest snapshot with a config.json."""
    from huggingface_hub import scan_cache_dir

    if not hub_cache().is_dir():
        return
    for repo in sorted(scan_cache_dir(hub_cache()).repos, key=lambda repo: repo.repo_id):
        if repo.repo_type != "model":
            continue
        newest = sorted(repo.revisions, key=lambda one: ("main" not in one.refs, -one.last_modified))
        paths = [one.snapshot_path for one in newest if (one.snapshot_path / "config.json").is_file()]
        yield from (Place(repo.repo_id, "cache", path) for path in paths[:1])


def _entry_here(place: Place, machine: Machine) -> ModelEntry | None:
    """The entry of a directory; None for what is no decoder: an encoder, an image model, a broken file."""
    try:
        config = json.loads((place.path / "config.json").read_text(encoding="utf-8"))
        family = family_of(str(config.get("model_type", "")))
        if isinstance(family.capabilities.get("sft"), Unsupported):
            return None
        facts = read_model_facts(place.path, place.name)
    except (WhetError, ValueError):
        return None
    known = known_model(place.name)
    here = not missing_weights(place.path) and facts.has_tokenizer_json
    return entry_of(
        facts,
        machine,
        source=place.source,
        here=here,
        known=known,
        note="" if here else _absent("Its weights are not here, only small files"),
    )


@lru_cache(maxsize=16)
def _known(machine_json: str, offline: bool) -> list[ModelEntry]:
    """Entries of the known models, the smallest first: arithmetic on a table, done once for each machine.

    The machine comes as JSON because that can be a key; ``offline`` is the setting that entries tell of.
    """
    machine = Machine.model_validate_json(machine_json)
    with tempfile.TemporaryDirectory(prefix="whet-known-") as scratch:
        return [
            _entry_known(one, known_facts(one, Path(scratch)), machine)
            for one in sorted(KNOWN, key=lambda one: one.parameters)
        ]


def _entry_known(known: KnownModel, facts: ModelFacts, machine: Machine) -> ModelEntry:
    size = 2 * known.parameters / 1e9
    note = _absent(f"A download of about {size:.1f} GB")
    if known.gated:
        note += " It is gated: log in and accept the licence on its page first."
    return entry_of(facts, machine, source="known", here=False, known=known, note=note)


def _absent(what: str) -> str:
    return f"{what}; whet is offline, so it cannot come." if settings().offline else f"{what}."


def entry_of(
    facts: ModelFacts, machine: Machine, *, source: Source, here: bool, known: KnownModel | None, note: str
) -> ModelEntry:
    """What the list says of a model with these facts."""
    capabilities = family_of(facts.model_type).capabilities
    needs, fits = {}, {}
    for precision in held_choices(facts, machine):
        name, memory = least_held(facts, machine, precision)
        needs[name], fits[name] = round(memory.needed / GIB, 1), memory.fits
    return ModelEntry(
        name=facts.name,
        source=source,
        here=here,
        reachable=here or not settings().offline,
        family=facts.family,
        parameters=known.parameters if known else facts.parameters.total,
        context=facts.max_positions,
        licence=known.licence if known else None,
        gated=known.gated if known else False,
        chat=facts.has_chat_template,
        needs_gib=needs,
        fits=fits,
        methods=[name for name, able in capabilities.items() if not isinstance(able, Unsupported)],
        experimental={n: able.note for n, able in capabilities.items() if isinstance(able, Experimental)},
        refused={name: able.reason for name, able in capabilities.items() if isinstance(able, Unsupported)},
        gguf=gguf_reason(facts),
        note=note,
    )


def gguf_reason(facts: ModelFacts) -> str | None:
    """Why a model has no GGUF export (architecture; tokenizer where that is here); None when it has."""
    from ..export.gguf.architectures import supported_architecture
    from ..export.gguf.probe import conversion_refusal

    if not (facts.path / "tokenizer.json").is_file():
        config = json.loads((facts.path / "config.json").read_text(encoding="utf-8"))
        return supported_architecture(str(config.get("model_type", "")), config)
    refusal = conversion_refusal(facts.path, None)
    return None if refusal is None else refusal.message


def _asked_for(entry: ModelEntry, query: str | None) -> bool:
    words = f"{entry.name} {entry.family} {entry.licence or ''}".lower()
    return all(part in words for part in (query or "").lower().split())
