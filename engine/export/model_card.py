"""README.md of an export: where the weights come from, how they were made, and the proof. Light.

Names of models and data sets, templates and what a proof saw are foreign text: in the card they are text and
nothing else, neither Markdown nor HTML nor YAML.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from ..errors import WhetError
from ..redaction import Redactor
from .files import write_text
from .verdict import DIGEST_FILE, Verdict

if TYPE_CHECKING:
    from ..plan import Plan
    from ..recipe import Recipe
    from ..runs.store import RunDir

MEASURES = {
    "steps": "optimizer steps",
    "early_stopped": "stopped early",
    "eval_loss": "held-out loss at the end, nats a token",
    "best_eval_loss": "lowest held-out loss, nats a token",
    "best_step": "step of the lowest held-out loss",
}
PACKAGES = ("whet", "torch", "transformers", "trl", "peft", "gguf", "llama-cpp-python")
LIBRARIES = {
    "adapter": "peft",
    "merged": "transformers",
    "merged_4bit": "transformers",
    "fp8": "transformers",
}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
PICTURE = re.compile(r"(!\[[^\]]*\])\(([^)]+)\)")
"""An image in a prompt."""
TASKS = {
    "vision": "image-text-to-text",
    "speech": "automatic-speech-recognition",
    "classification": "text-classification",
    "token_classification": "token-classification",
    "reranker": "text-ranking",
    "reward": "text-classification",
}
"""The hub's names of what models of a method do; text-generation for all others."""
MARKS = re.compile(
    r"[\\`*\[\]<|~&$@]|(?<![^\W_])_|_(?![^\W_])|(?<=:)/(?=/)|(?<=www)\.|^(?:[-+#=>]|\d+[.)](?=\s))"
)
"""What Markdown or the hub's reader would take for more than text; the last at a line's beginning only."""

Part = Literal["adapter", "adapter_gguf", "merged", "merged_4bit", "fp8", "gguf"]
"""Of a run's export, as it is pushed."""


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
    embedding: bool = False
    """It gives vectors, not text."""


def run_facts(run_id: str, plan: Plan, summary: Mapping[str, Any], trained: Path) -> CardFacts:
    """The facts of a run: its plan, what it measured, and the template's digest beside its weights."""
    recipe, report, digest = plan.recipe, plan.data.report, trained / DIGEST_FILE
    return CardFacts(
        base_model=recipe.model.name,
        revision=recipe.model.revision,
        recipe=_written(recipe),
        data_digest=plan.data.digest,
        rows=report.train.token_rows,
        held_out_rows=report.eval.token_rows if report.eval else 0,
        template_digest=digest.read_text(encoding="utf-8").strip() if digest.is_file() else None,
        metrics={name: value for name, value in summary.items() if isinstance(value, int | float)},
        run=run_id,
    )


def _written(recipe: Recipe) -> dict[str, Any]:
    """What differs from the defaults, and which method it is, so that it can be run again."""
    whole = recipe.model_dump(mode="json", exclude_defaults=True)
    if recipe.method.kind != "sft":
        whole["method"] = {"kind": recipe.method.kind, **whole.get("method", {})}
    return whole


def facts_of(run: RunDir) -> CardFacts:
    """:func:`run_facts` of a run that has ended. Raises WhetError ``run.no_plan``, ``run.unreadable``."""
    from ..runs.store import trained_weights

    return run_facts(run.id, run.load_plan(), run.read_state().summary, trained_weights(run))


def write_card(
    folder: Path,
    facts: CardFacts,
    verdicts: Sequence[Verdict] = (),
    notes: Sequence[str] = (),
    files: Mapping[str, int] | None = None,
) -> Path:
    """Write ``folder/README.md``, see :func:`card_text`."""
    title = folder.resolve().name if facts.run is None else facts.run
    return write_text(folder / "README.md", card_text(title, facts, verdicts, notes, files))


def card_text(
    title: str,
    facts: CardFacts,
    verdicts: Sequence[Verdict] = (),
    notes: Sequence[str] = (),
    files: Mapping[str, int] | None = None,
    part: Part | None = None,
) -> str:
    """The card, with metadata as the hub reads them.

    Args:
        title: its heading.
        facts: of the run.
        verdicts: of the GGUF files and merged weights it is about.
        notes: sentences of the merge and the Modelfile.
        files: name -> bytes of what was exported.
        part: which part of an export; by default a GGUF where one was proven.
    """
    parts = [
        f"---\n{yaml.safe_dump(_metadata(facts, verdicts, part), sort_keys=False)}---",
        f"# {text(title)}",
        _origin(facts),
    ]
    if files:
        rows = "\n".join(f"| {code(name)} | {_size(size)} |" for name, size in files.items())
        parts.append(f"## Files\n\n| file | size |\n|---|---:|\n{rows}")
    parts += _proof(verdicts, part)
    if facts.metrics:
        measured = {MEASURES.get(name, name): value for name, value in facts.metrics.items()}
        rows = "\n".join(f"| {text(name)} | {text(_number(value))} |" for name, value in measured.items())
        parts.append(f"## Training\n\n| measure | value |\n|---|---:|\n{rows}")
    if notes:
        parts.append("## Notes\n\n" + "\n".join(f"- {text(note)}" for note in notes))
    if facts.recipe is not None:
        public = Redactor().value(_without_paths(dict(facts.recipe)))
        written = yaml.safe_dump(public, sort_keys=False, allow_unicode=True)
        fence = "`" * (1 + _longest_run(written, at_least=2))
        parts.append(f"## Recipe\n\n{fence}yaml\n{written}{fence}")
    parts.append("## Made with\n\n" + "\n".join(f"- {line}" for line in _provenance(facts)))
    return "\n\n".join(parts) + "\n"


def check_card(card: str) -> None:
    """Raise WhetError ``hub.card`` for a card whose metadata the hub would refuse after hours."""
    block = re.match(r"---\r?\n(.*?)\r?\n---\s*(?:\n|$)", card, re.S)
    try:
        front = yaml.safe_load(block[1]) if block else {}
        wrong = None if isinstance(front, dict) else "they are no mapping of names to values"
    except yaml.YAMLError as error:
        wrong = _line(str(error))
    if wrong:
        raise WhetError(
            "hub.card",
            f"The metadata of README.md are not what the hub reads: {wrong}.",
            "Mend the block between the two --- lines, or remove the file.",
        )


def text(words: str) -> str:
    """Foreign words on one line, so that Markdown and HTML show them as they are."""
    return MARKS.sub(lambda found: found[0][:-1] + "\\" + found[0][-1], _line(words))


def code(words: str) -> str:
    """Foreign words as code that fits into a table's cell too."""
    fence = "`" * (1 + _longest_run(words))
    pad = " " if words.startswith("`") or words.endswith("`") else ""
    return f"{fence}{pad}{_line(words).replace('|', chr(92) + '|')}{pad}{fence}"


def is_local(name: str) -> bool:
    """Whether a model's name is a place on this machine, which says nothing to others, or too much."""
    path = Path(name).expanduser()
    return name != "demo" and (path.is_absolute() or path.exists())


def _metadata(facts: CardFacts, verdicts: Sequence[Verdict], part: Part | None) -> dict[str, Any]:
    proven = any(verdict.gguf.endswith(".gguf") for verdict in verdicts)
    library = ("gguf" if proven else None) if part is None else LIBRARIES.get(part, "gguf")
    kind = ((facts.recipe or {}).get("method") or {}).get("kind", "")
    does = TASKS.get(kind, "text-generation")
    front: dict[str, Any] = {"tags": ["whet", "fine-tuned"], "pipeline_tag": does}
    if facts.embedding:
        front |= {"tags": ["whet", "sentence-transformers"], "pipeline_tag": "sentence-similarity"}
    if facts.base_model and not is_local(facts.base_model) and HUB_ID.fullmatch(facts.base_model):
        front["base_model"] = facts.base_model
    if library:
        front["library_name"] = library
    return front


def _origin(facts: CardFacts) -> str:
    """One or two sentences: from which model, on how much data."""
    if facts.base_model is None:
        what = "An embedding model: it turns a text into a vector. " if facts.embedding else ""
        return f"{what}Exported with whet."
    base = Path(facts.base_model).name if is_local(facts.base_model) else facts.base_model
    revision = f" (revision {code(facts.revision)})" if facts.revision else ""
    words = f"Fine-tuned from {code(base)}{revision} with whet."
    if facts.rows is not None:
        held = f"; {facts.held_out_rows:,} were held out to measure it" if facts.held_out_rows else ""
        words += f" It was trained on {facts.rows:,} rows{held}."
    return words


def _proof(verdicts: Sequence[Verdict], part: Part | None) -> list[str]:
    if not verdicts:
        if part == "adapter":
            return []
        what = "weights" if part in LIBRARIES else "GGUF file"
        return [f"## Proof\n\nNo {what} of this export was proven."]
    how = (
        "Merged weights were compared with base and adapter, those in 4 and 8 bits with the merged ones, "
        "GGUF files with the trained model by llama.cpp."
    )
    lines = ["## Proof", "", how]
    for verdict in verdicts:
        name = code(Path(verdict.gguf).name)
        lines += [
            "",
            f"**{name}: {verdict.status}**",
            "",
            "| proof | status | what was seen |",
            "|---|---|---|",
        ]
        lines += [f"| {text(p.name)} | {p.status} | {text(p.summary)} |" for p in verdict.proofs]
    return ["\n".join(lines)]


def _provenance(facts: CardFacts) -> list[str]:
    lines = []
    for package in PACKAGES:
        try:
            lines.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    if facts.data_digest:
        lines.append(f"data digest {code(facts.data_digest)}")
    if facts.template_digest:
        lines.append(f"chat template digest {code(facts.template_digest)}")
    return lines


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_paths(one) for one in value]
    if not isinstance(value, str):
        return value
    if Path(value).expanduser().is_absolute():
        return Path(value).name
    return PICTURE.sub(lambda found: f"{found[1]}({Path(found[2]).name})", value)


def _line(words: str) -> str:
    return " ".join(words.split())


def _longest_run(words: str, at_least: int = 0) -> int:
    return max([at_least, *(len(run) for run in re.findall("`+", words))])


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 100_000 else f"{count / 1e3:,.1f} kB"


def _number(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value).strip('"')
