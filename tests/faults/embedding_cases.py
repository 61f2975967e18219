"""Set-ups of embedding models: texts twice in a batch, prompts left out, vectors changed by loading."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from faults.harness import Fault, Healthy, Looked, planned
from support.broken_models import change_weights
from support.live_runs import findings_of
from support.plan_inputs import machine
from support.tiny_embedders import build_embedder
from support.tiny_runs import create_run, next_attempt

from whet.engine.errors import WhetError
from whet.engine.findings import Finding
from whet.engine.recipe import Recipe
from whet.engine.recipe_files import patched

ROWS = 300
SEARCH = "Represent this sentence for searching relevant passages: "
Row = dict[str, str]


@lru_cache
def bert() -> Path:
    return build_embedder(Path(mkdtemp(prefix="whet-fault-embedding-")) / "model", "bert")


def pair(number: int) -> Row:
    return {"anchor": f"what is {number} and {number}", "positive": f"{number} twice makes {2 * number}"}


def triplet(number: int) -> Row:
    return pair(number) | {"negative": f"the colour of stone {number} is grey"}


def recipe(
    folder: Path, row: Callable[[int], Row] = pair, name: str = "model", **sections: dict[str, Any]
) -> Recipe:
    """One step of a copy of the tiny BERT, in a folder of this name."""
    model = Path(shutil.copytree(bert(), folder / name))
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row(number)) + "\n" for number in range(ROWS)), encoding="utf-8")
    training = {"max_steps": 1, "batch_size": 16, "gradient_accumulation": 1, "optimizer": "adamw"}
    return Recipe.model_validate(
        {
            "model": {"name": str(model), "max_length": 32} | sections.get("model", {}),
            "data": {"train": str(path)},
            "method": {"kind": "embedding"} | sections.get("method", {}),
            "adapter": {"rank": 8},
            "training": training | sections.get("training", {}),
        }
    )


# --- D14


def shared(row: Callable[[int], Row], column: str, every: int, **method: Any) -> Callable[[Path], Looked]:
    """Every so many rows have one text of a column in common."""

    def changed(number: int) -> Row:
        return row(number) | ({column: "I do not know that."} if number % every == 0 else {})

    def look(folder: Path) -> Looked:
        wanted = recipe(folder, changed, method={"no_duplicates": False, **method})
        return planned(wanted, machine=machine())

    return look


def as_answer_and_wrong_answer(folder: Path) -> Looked:
    """Wrong answers are taken from the next rows' right ones."""

    def row(number: int) -> Row:
        return pair(number) | {"negative": pair((number + 1) % 100 * 3)["positive"]}

    method = {"no_duplicates": False, "loss": "cached_multiple_negatives"}
    wide = {"batch_size": 32}
    return planned(recipe(folder, row, method=method, training=wide), machine=machine())


def named(name: str, prompts: dict[str, str] | None = None, **method: Any) -> Callable[[Path], Looked]:
    """A model of a known kind, whose folder configures these prompts."""

    def look(folder: Path) -> Looked:
        wanted = recipe(folder, name=name, method=method)
        settings = Path(wanted.model.name) / "config_sentence_transformers.json"
        saved = json.loads(settings.read_text(encoding="utf-8"))
        settings.write_text(json.dumps(saved | {"prompts": prompts or {}}), encoding="utf-8")
        return planned(wanted, machine=machine())

    return look


# --- L10


def embedded(wanted: Recipe) -> Looked:
    """What a run finds before its first step."""
    from whet.engine.methods.embedding.job import EmbeddingTraining

    run = create_run(wanted)
    with suppress(WhetError):  # an error ends the run
        EmbeddingTraining(next_attempt(run)).look(None)

    def mend(finding: Finding) -> Looked:
        assert finding.fix is not None
        return embedded(patched(wanted, finding.fix.patch))

    return Looked(findings_of(run), mend)


def pooled(mode: str) -> Callable[[Path], Looked]:
    """The folder says mean."""
    return lambda folder: embedded(recipe(folder, method={"pooling": mode}))


def outliers_in_four_bits(folder: Path) -> Looked:
    """One weight of each block of 64 so large that the others round to nothing."""
    wanted = recipe(folder, model={"precision": "nf4"})

    def stretch(tensors: dict[str, Any]) -> None:
        for name, tensor in tensors.items():
            if name.endswith("dense.weight") and "pooler" not in name:
                tensor[:, ::64] += 1.5

    change_weights(Path(wanted.model.name), stretch)
    return embedded(wanted)


FAULTS = (
    Fault("D14", "one answer to many questions", shared(pair, "positive", 20),
          {"method.no_duplicates": True}),
    Fault("D14", "one question of many triplets", shared(triplet, "anchor", 15),
          {"method.no_duplicates": True}),
    Fault("D14", "right answers as wrong ones", as_answer_and_wrong_answer, {"method.no_duplicates": True}),
    Fault("D14", "E5 without prompts", named("e5-small-v2"),
          {"method.query_prompt": "query: ", "method.document_prompt": "passage: "}),
    Fault("D14", "BGE without its instruction", named("bge-small-en-v1.5", {"query": "", "document": ""}),
          {"method.query_prompt": SEARCH}),
    Fault("D14", "a prompt that is not the model's", named("model", {"query": "find: "}, query_prompt=""),
          {"method.query_prompt": None}, "note"),
    Fault("L10", "first token pooled, not the mean", pooled("cls"), {"method.pooling": "auto"}, "error"),
    Fault("L10", "last token pooled, not the mean", pooled("last"), {"method.pooling": "auto"}, "error"),
    Fault("L10", "outliers in four bits", outliers_in_four_bits, {"model.precision": "auto"}),
)  # fmt: skip
HEALTHY = (
    Healthy("embeddings: few repeated texts", shared(pair, "positive", 100, no_duplicates=False)),
    Healthy("embeddings: repeated texts kept apart", shared(pair, "positive", 3, no_duplicates=True)),
    Healthy("embeddings: repeated anchors, triplet loss", shared(triplet, "anchor", 3, loss="triplet")),
    Healthy("embeddings: E5 with its folder's prompts",
            named("multilingual-e5-small", {"query": "query: ", "passage": "passage: "})),
    Healthy("embeddings: E5, none meant", named("e5-base", query_prompt="", document_prompt="")),
    Healthy("embeddings: BGE-M3, which knows no prompts", named("bge-m3")),
    Healthy("embeddings: loaded, LoRA", lambda folder: embedded(recipe(folder))),
    Healthy("embeddings: loaded in four bits",
            lambda folder: embedded(recipe(folder, model={"precision": "nf4"}))),
)  # fmt: skip
