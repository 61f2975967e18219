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

MEASURES = {
    "steps": "optimizer steps",
    "early_stopped": "stopped early",
    "eval_loss": "held-out loss at the end, nats a token",
    "best_eval_loss": "lowest held-out loss, nats a token",
    "best_step": "step of the lowest held-out loss",
}
PACKAGES = ("whet", "torch", "transformers", "trl", "peft", "gguf", "llama-cpp-python")


@dataclass(frozen=True)
class CardFacts:
    """What only the caller knows of the run; all of it may be missing."""

    base_model: str | None = None
    revision: str | None = None
    recipe: Mapping[str, Any] | None = None
    data_digest: str | None = None
    rows: int | None = None
    held_out_rows: int = 0
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
    if facts.base_model and _on_hub(facts.base_model):
        front["base_model"] = facts.base_model
    if any(verdict.file_type != "merged" for verdict in verdicts):
        front["library_name"] = "gguf"
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {folder.resolve().name if facts.run is None else facts.run}",
        _origin(facts),
    ]
    if files:
        rows = "\n".join(f"| `{name}` | {_size(size)} |" for name, size in files.items())
        parts.append(f"## Files\n\n| file | size |\n|---|---:|\n{rows}")
    parts += _proof(verdicts)
    if facts.metrics:
        measured = {MEASURES.get(name, name): value for name, value in facts.metrics.items()}
        rows = "\n".join(f"| {name} | {_number(value)} |" for name, value in measured.items())
        parts.append(f"## Training\n\n| measure | value |\n|---|---:|\n{rows}")
    if notes:
        parts.append("## Notes\n\n" + "\n".join(f"- {note}" for note in notes))
    if facts.recipe is not None:
        text = yaml.safe_dump(_without_paths(dict(facts.recipe)), sort_keys=False, allow_unicode=True)
        parts.append(f"## Recipe\n\n```yaml\n{text}```")
    parts.append("## Made with\n\n" + "\n".join(f"- {line}" for line in _provenance(facts)))
    return write_text(folder / "README.md", "\n\n".join(parts) + "\n")


def _origin(facts: CardFacts) -> str:
    """One or two sentences: from which model, on how much data."""
    if facts.base_model is None:
        return "Exported with whet."
    revision = f" (revision `{facts.revision}`)" if facts.revision else ""
    text = f"Fine-tuned from `{_public(facts.base_model)}`{revision} with whet."
    if facts.rows is not None:
        held = f"; {facts.held_out_rows:,} were held out to measure it" if facts.held_out_rows else ""
        text += f" It was trained on {facts.rows:,} rows{held}."
    return text


def _proof(verdicts: Sequence[Verdict]) -> list[str]:
    if not verdicts:
        return ["## Proof\n\nNo GGUF file of this export was proven."]
    how = (
        "Merged weights were compared with base and adapter, GGUF files with the trained model by llama.cpp."
    )
    lines = ["## Proof", "", how]
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
    return name if name == "demo" or _on_hub(name) else Path(name).name


def _on_hub(name: str) -> bool:
    path = Path(name).expanduser()
    return name != "demo" and not path.is_absolute() and not path.exists()


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


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 100_000 else f"{count / 1e3:,.1f} kB"


def _number(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value).strip('"')
