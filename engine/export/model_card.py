"""README.md of an export: where the weights come from, how they were made, and the proof. Light."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from .files import write_text
from .verdict import Verdict

PACKAGES = ("whet", "torch", "transformers", "trl", "peft", "gguf", "llama-cpp-python")


@dataclass(frozen=True)
class CardFacts:
    """What only the caller knows of the run; all of it may be missing."""

    base_model: str | None = None
    recipe: Mapping[str, Any] | None = None
    data_digest: str | None = None
    template_digest: str | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    run: str | None = None


def write_card(
    folder: Path,
    facts: CardFacts,
    verdicts: Sequence[Verdict] = (),
    notes: Sequence[str] = (),
    files: Mapping[str, int] | None = None,
) -> Path:
    """Write ``folder/README.md``.

    Args:
        folder: the export's folder.
        facts: of the run.
        verdicts: of the GGUF files in it.
        notes: sentences of the merge and the Modelfile.
        files: name -> bytes of what was exported.
    """
    front: dict[str, Any] = {"tags": ["whet", "fine-tuned"], "pipeline_tag": "text-generation"}
    if facts.base_model and not Path(facts.base_model).exists():
        front["base_model"] = facts.base_model
    if any(verdict.gguf for verdict in verdicts):
        front["library_name"] = "gguf"
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {folder.resolve().name if facts.run is None else facts.run}",
        f"Fine-tuned from `{_public(facts.base_model)}` with whet."
        if facts.base_model
        else "Exported with whet.",
    ]
    if files:
        rows = "\n".join(f"| `{name}` | {size / 1e6:,.1f} MB |" for name, size in files.items())
        parts.append(f"## Files\n\n| file | size |\n|---|---:|\n{rows}")
    parts += _proof(verdicts)
    if facts.metrics:
        rows = "\n".join(f"| {name} | {_number(value)} |" for name, value in facts.metrics.items())
        parts.append(f"## Training\n\n| measure | value |\n|---|---:|\n{rows}")
    if notes:
        parts.append("## Notes\n\n" + "\n".join(f"- {note}" for note in notes))
    if facts.recipe is not None:
        text = yaml.safe_dump(_without_paths(dict(facts.recipe)), sort_keys=False, allow_unicode=True)
        parts.append(f"## Recipe\n\n```yaml\n{text}```")
    parts.append("## Made with\n\n" + "\n".join(f"- {line}" for line in _provenance(facts)))
    return write_text(folder / "README.md", "\n\n".join(parts) + "\n")


def _proof(verdicts: Sequence[Verdict]) -> list[str]:
    if not verdicts:
        return ["## Proof\n\nNo GGUF file of this export was proven."]
    lines = ["## Proof", "", "Each file was run with llama.cpp and compared with the trained model."]
    for verdict in verdicts:
        lines += [
            "",
            f"**`{Path(verdict.gguf).name}`: {verdict.status}**",
            "",
            "| proof | status | what was seen |",
        ]
        lines.append("|---|---|---|")
        lines += [f"| {p.name} | {p.status} | {_cell(p.summary)} |" for p in verdict.proofs]
    return ["\n".join(lines)]


def _provenance(facts: CardFacts) -> list[str]:
    lines = []
    for package in PACKAGES:
        try:
            lines.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    if facts.data_digest:
        lines.append(f"data digest `{facts.data_digest}`")
    if facts.template_digest:
        lines.append(f"chat template digest `{facts.template_digest}`")
    return lines


def _public(name: str) -> str:
    """A local path says nothing to others, and may say too much: only its last part is written."""
    return Path(name).name if Path(name).is_absolute() or Path(name).exists() else name


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_paths(one) for one in value]
    if isinstance(value, str) and Path(value).is_absolute():
        return Path(value).name
    return value


def _cell(text: str) -> str:
    """Text that cannot break out of its table cell."""
    return text.replace("|", "\\|").replace("\n", " ")


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value).strip('"')
