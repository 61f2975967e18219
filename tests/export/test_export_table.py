"""docs/export.md and docs/proof.md tell of every family, format and fault there is, and nothing failed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from export.gguf_faults_planted import FAULTS, HEALTHY_TYPES, everywhere

from whet.engine.export.gguf.families import ARCHITECTURES
from whet.engine.export.gguf.types import GGUF_TYPES

DOCS = Path(__file__).parents[2] / "docs"
FORMATS = {"merged 16-bit", "merged 4-bit", "FP8", "GGUF LoRA", *(f"GGUF {kind}" for kind in HEALTHY_TYPES)}
Rows = list[dict[str, Any]]


def load_writer() -> Any:
    spec = importlib.util.spec_from_file_location("export_table", DOCS / "export_table.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(load_writer().RESULTS.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("name", ["export.md", "proof.md"])
def test_the_pages_hold_what_was_measured(name: str) -> None:
    assert load_writer().page(DOCS / name) == (DOCS / name).read_text(encoding="utf-8")


def test_every_family_of_the_converter_is_in_the_tables(results: dict[str, Any]) -> None:
    decoders = {row["family"] for row in results["formats"]["rows"]}
    encoders = {row["model_type"] for row in results["embeddings"]["rows"]}
    for architecture in ARCHITECTURES:
        # A decoder that embeds is the decoder, pooled; gemma3 is gemma3_text with eyes.
        measured = encoders | decoders if architecture.head == "none" else decoders
        assert measured & set(architecture.model_types), architecture.model_types


def test_every_family_in_every_format(results: dict[str, Any]) -> None:
    rows: Rows = results["formats"]["rows"]
    for family in {row["family"] for row in rows}:
        assert {row["format"] for row in rows if row["family"] == family} == FORMATS, family
    embedding: Rows = results["embeddings"]["rows"]
    for family in {row["family"] for row in embedding}:
        assert {row["format"] for row in embedding if row["family"] == family} == {
            f"GGUF {kind}" for kind in HEALTHY_TYPES
        }


def test_no_healthy_file_failed(results: dict[str, Any]) -> None:
    rows: Rows = [*results["formats"]["rows"], *results["embeddings"]["rows"]]
    assert [(row["family"], row["format"]) for row in rows if row["verdict"] == "fail"] == []
    ids = [row["ids"] for row in rows if row["ids"] is not None]
    assert len(ids) > 30 and all(same <= texts for same, texts in ids)


def test_every_type_was_measured_on_the_demo(results: dict[str, Any]) -> None:
    assert {row["type"] for row in results["types"]["rows"] if row["model"] == "demo"} == set(GGUF_TYPES)


def test_every_planted_fault_was_caught(results: dict[str, Any]) -> None:
    rows: Rows = results["faults"]["rows"]
    planted = {(fault.name, fault.model) for fault in [*FAULTS, *everywhere()]}
    assert {(row["name"], row["model"]) for row in rows} == planted and len(planted) > 100
    assert [row["name"] for row in rows if row["caught_by"] not in row["failed"]] == []


def test_the_demo_answers_word_for_word(results: dict[str, Any]) -> None:
    (f16,) = (row for row in results["greedy"]["rows"] if row["file"] == "GGUF f16")
    assert f16["same"] == f16["prompts"] > 30
