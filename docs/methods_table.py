"""The table of docs/methods.md: each method's memory, speed beside the plain library, what of it is fused.

Memory is planned by whet's own planner; speed and fusion are what benchmarks/methods.py measured last.

python -P docs/methods_table.py            writes it between its markers
python -P docs/methods_table.py --check    only says whether it is today's
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whet.engine.adapted import with_family_targets
from whet.engine.data.formats import FIELDS, FormatGuess
from whet.engine.data.layouts import READS
from whet.engine.fitting import fit
from whet.engine.hardware import GPU, Machine
from whet.engine.models.facts import ModelFacts, read_model_facts
from whet.engine.models.known import known_facts, known_model
from whet.engine.models.needs import equal_rows
from whet.engine.recipe import METHODS, Recipe
from whet.engine.recipe_files import load_recipe, patched, shipped
from whet.engine.resolve import resolve

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "methods.md"
BEGIN = "<!-- methods: made by make methods-table -->\n"
END = "<!-- methods: end -->\n"
GIB = 2**30
UNITS = ("tokens/s", "pairs/s")
PLAIN = {"hf": "transformers, PEFT and TRL", "trl": "TRL", "st": "sentence-transformers"}
"""Stacks without whet or another's kernels, as the pages of results name them."""
ROWS = 10_000
DECODER = "Qwen/Qwen3-0.6B"
ENCODER = "BGE-M3"
FROM_ENCODER = {"embedding": 2, "classification": 1, "token_classification": 1, "reranker": 1}
"""Methods planned for the encoder's shape, and how many inputs a row has."""
LAYOUTS = {
    "embedding": "pairs",
    "classification": "labelled",
    "token_classification": "tagged",
    "reranker": "scored",
    "preference": "preference",
    "reward": "preference",
}


@dataclass(frozen=True)
class Shape:
    """A model as its config.json describes it."""

    name: str
    config: dict[str, Any]


ENCODER_SHAPE = Shape(
    ENCODER,
    {
        "model_type": "xlm-roberta",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "vocab_size": 250002,
        "max_position_embeddings": 8194,
        "type_vocab_size": 1,
        "dtype": "float32",
    },
)
OF_ITS_OWN = {
    "speech": Shape(
        "Whisper small",
        {
            "model_type": "whisper",
            "d_model": 768,
            "encoder_layers": 12,
            "decoder_layers": 12,
            "encoder_attention_heads": 12,
            "decoder_attention_heads": 12,
            "encoder_ffn_dim": 3072,
            "decoder_ffn_dim": 3072,
            "vocab_size": 51865,
            "num_mel_bins": 80,
            "max_source_positions": 1500,
            "max_target_positions": 448,
            "dtype": "float32",
        },
    ),
    "tts": Shape(
        "Orpheus 3B",
        {
            "model_type": "llama",
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 28,
            "num_attention_heads": 24,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 156940,
            "max_position_embeddings": 131072,
            "tie_word_embeddings": True,
            "dtype": "bfloat16",
        },
    ),
    "vision": Shape(
        "Qwen2.5-VL 3B",
        {
            "model_type": "qwen2_5_vl",
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "max_position_embeddings": 128000,
            "tie_word_embeddings": True,
            "dtype": "bfloat16",
            "vision_config": {
                "depth": 32,
                "hidden_size": 1280,
                "intermediate_size": 3420,
                "num_heads": 16,
                "out_hidden_size": 2048,
                "patch_size": 14,
                "spatial_merge_size": 2,
                "fullatt_block_indexes": [7, 15, 23, 31],
            },
        },
    ),
}
"""Methods planned for the shape that their recipe names."""
MACHINE = Machine(
    gpus=[
        GPU(
            index=0,
            name="a GPU of 80 GB",
            uuid="none",
            memory_total=80 * 10**9,
            memory_free=80 * 10**9,
            capability=(9, 0),
            driver="580.00",
        )
    ],
    cpu_name="a CPU",
    cpu_count=16,
    ram_total=256 * GIB,
    ram_available=256 * GIB,
    disk_free=1000 * GIB,
    versions={"bitsandbytes": "0.50.2", "torch": "2.13.0"},
)
"""The same for everybody, so that the table does not depend on who makes it."""


def table() -> str:
    """One line a method."""
    measured = newest()
    lines = [
        f"Memory is what `whet plan` says of the recipe beside it on {DECODER}'s shape, or {ENCODER}'s",
        "for encoders, or on the shape named beside it; rows as long as the recipe allows, on a GPU of",
        "80 GB, of whose spare memory the plan makes use. Speed is rows or tokens a second over the plain",
        "library's with the same random weights, rows and batches; fused is what the fast path itself",
        "reported.",
        "",
        "| `method.kind` | recipe | rows | memory | speed beside the plain library | fused |",
        "|---|---|---|---|---|---|",
    ]
    recipes = recipe_names()
    for kind in METHODS:
        lines.append(
            f"| `{kind}` | `{recipes[kind]}` | {rows_of(kind)} | {memory(kind, recipes[kind])} | "
            f"{speeds(kind, measured)} | {fused(kind, measured)} |"
        )
    return "\n".join([*lines, *sources(measured)])


def recipe_names() -> dict[str, str]:
    """Of each method the first shipped recipe that is not the demo's."""
    found: dict[str, str] = {}
    for name in shipped():
        kind = load_recipe(name).method.kind
        if name != "demo":
            found.setdefault(kind, name)
    return found | {"sft": "lora-chat"}


def rows_of(kind: str) -> str:
    """In words, without the columns' names."""
    words = READS.get(kind)
    if words is None:
        formats = ", ".join(f"`{name}`" for name in FIELDS)
        return f"{formats} with images" if kind == "vision" else formats
    return re.sub(r" ?\([^)]*\)", "", words)


def memory(kind: str, name: str) -> str:
    """The planner's, and the shape where it is the method's own."""
    with tempfile.TemporaryDirectory() as scratch:
        facts = shape_of(kind, Path(scratch))
        recipe = patched(load_recipe(name), {"model.name": facts.name, "data.train": "none"})
        size = f"{planned(recipe, facts) / GIB:.1f} GiB"
    return f"{size} ({facts.name})" if kind in OF_ITS_OWN else size


def shape_of(kind: str, scratch: Path) -> ModelFacts:
    """Facts of the model, read as those of a downloaded one."""
    shape = ENCODER_SHAPE if kind in FROM_ENCODER else OF_ITS_OWN.get(kind)
    if shape is None:
        known = known_model(DECODER)
        assert known is not None
        return known_facts(known, scratch)
    (scratch / "config.json").write_text(json.dumps(shape.config), encoding="utf-8")
    return read_model_facts(scratch, shape.name)


def planned(recipe: Recipe, facts: ModelFacts) -> int:
    """Bytes that must be free."""
    kind = recipe.method.kind
    tokens = min(recipe.model.max_length, facts.max_positions or recipe.model.max_length)
    report = equal_rows(tokens)
    if kind in LAYOUTS:
        guess = FormatGuess.model_validate(
            {"format": None, "other": LAYOUTS[kind], "confidence": 1, "reason": "assumed"}
        )
        texts = FROM_ENCODER.get(kind, 2)
        whole = dict.fromkeys(("tokens", "supervised_tokens"), texts * report.train.tokens)
        changed = {"formats": {"none": guess}, "texts_per_row": texts}
        report = report.model_copy(update=changed | {"train": report.train.model_copy(update=whole)})
    recipe, _ = with_family_targets(recipe, facts)
    resolved, _ = resolve(recipe, facts, MACHINE, report, ROWS)
    return fit(recipe, resolved, facts, report, MACHINE)[1].needed


def newest() -> list[dict[str, Any]]:
    """Pages of results, a GPU's first, each with the methods that no later one has of the same device."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(RESULTS.glob("methods-*.json"), key=by_day):
        results = json.loads(path.read_text(encoding="utf-8"))
        earlier = found.setdefault(results["device"], [])
        for page in earlier:
            page["methods"] = {
                kind: row for kind, row in page["methods"].items() if kind not in results["methods"]
            }
        earlier.append({"name": path.stem, **results})
    return [
        page for device in sorted(found, reverse=True) for page in reversed(found[device]) if page["methods"]
    ]


def by_day(page: Path) -> tuple[str, str]:
    """The order of pages: by the day that ends their names."""
    return page.stem[-len("2026-11-29") :], page.stem


@dataclass(frozen=True)
class Beside:
    """whet beside a plain library in one table of a page of results."""

    page: str
    title: str
    library: str
    ratio: float


def pages() -> dict[str, Beside]:
    """What end_to_end.py and preference.py measured: of each method the first table of its newest page that
    has whet and the plain library."""
    found: dict[str, Beside] = {}
    for path in sorted(RESULTS.glob("*.md"), key=by_day):
        for kind, beside in reversed(tables_of(path)):
            found[kind] = beside
    return found


def tables_of(path: Path) -> list[tuple[str, Beside]]:
    """Those of a page whose rows are stacks."""
    found, title, header = [], "", []
    rates: dict[str, float] = {}
    for line in [*path.read_text(encoding="utf-8").splitlines(), ""]:
        cells = [cell.strip(" *") for cell in line.strip("|").split("|")] if line.startswith("|") else []
        title = line.removeprefix("## ") if line.startswith("## ") else title
        if cells[:1] == ["stack"]:
            header, rates = cells, {}
        elif cells and header:
            unit = next((name for name in UNITS if name in header), None)
            words = cells[header.index(unit)].replace(",", "") if unit and len(cells) == len(header) else ""
            if re.fullmatch(r"[0-9.]+", words):
                rates[cells[0]] = float(words)
        elif header:
            plain = next((name for name in PLAIN if name in rates), None)
            if "whet" in rates and plain is not None:
                kind = "embedding" if "pairs/s" in header else path.stem.partition("-")[0]
                ratio = rates["whet"] / rates[plain]
                beside = Beside(path.stem, title, PLAIN[plain], ratio)
                found.append((kind if kind in METHODS else "sft", beside))
            header = []
    return found


def speeds(kind: str, measured: list[dict[str, Any]]) -> str:
    """Each device's ratio, and the page that it stands on."""
    said = []
    if (one := pages().get(kind)) is not None:
        link = f"[{one.title or one.page}](../benchmarks/results/{one.page}.md)"
        said.append(f"{one.ratio:.2f} × {one.library} ({link})")
    for results in measured:
        one = results["methods"].get(kind)
        if one is None or one["whet"]["error"]:
            continue
        plain = one["plain"]
        link = f"[{results['device']}: {one['model']}](../benchmarks/results/{results['name']}.md)"
        ours, theirs = one["whet"]["peak"], plain["peak"]
        if plain["error"]:
            words = f"{plain['library']} {plain['error']} ({link}"
        else:
            words = f"{one['whet']['rate'] / plain['rate']:.2f} × {plain['library']} ({link}"
        if ours:
            words += f"; peak {ours / GIB:.1f}" + (f" and {theirs / GIB:.1f}" if theirs else "") + " GiB"
        said.append(f"{words})")
    return "; ".join(said) or "not measured"


def fused(kind: str, measured: list[dict[str, Any]]) -> str:
    """What the fast path itself reported in the newest measurement of the method, a GPU's first."""
    for results in measured:
        one = results["methods"].get(kind)
        if one is not None and one["whet"]["fused"]:
            return str(one["whet"]["fused"])
    return "not measured"


def sources(measured: list[dict[str, Any]]) -> list[str]:
    """Where the figures come from."""
    if not measured:
        return []
    named = ", ".join(f"[{one['machine']}](../benchmarks/results/{one['name']}.md)" for one in measured)
    return ["", f"Measured by `benchmarks/methods.py`: {named}."]


def page() -> str:
    """docs/methods.md with the table between its markers."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"{PAGE} lacks the markers of the table.")
    return f"{before}{BEGIN}\n{table()}\n\n{END}{after}"


def main() -> int:
    """Write the page; with --check, only say whether it is today's."""
    made = page()
    if "--check" not in sys.argv:
        PAGE.write_text(made, encoding="utf-8")
        return 0
    if PAGE.read_text(encoding="utf-8") == made:
        return 0
    print("docs/methods.md is not today's: make methods-table", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
