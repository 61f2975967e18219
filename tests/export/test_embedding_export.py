"""An embedding model from folder or adapter to proven files, with a card that says what it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tiny_embedders import build_embedder

from whet.engine.export.embedding_notes import embedding_notes
from whet.engine.export.embedding_texts import short_texts
from whet.engine.export.gguf.types import check_types
from whet.engine.export.merging import merge
from whet.engine.export.pipeline import export_model
from whet.engine.export.verdict import load_verdict
from whet.engine.models.sentence_folder import read_sentence_folder
from whet.engine.recipe import ExportSection
from whet.engine.runs.events import Event, FindingEvent


def write_adapter(base: Path, out: Path) -> Path:
    """LoRA on the encoder of a sentence-transformers folder, moved off its zeros."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    torch.manual_seed(3)
    targets = ["query", "value", "q_proj", "v_proj"]
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False)
    get_peft_model(AutoModel.from_pretrained(base), config).save_pretrained(str(out))
    return out


def trained_vectors(base: Path, adapter: Path) -> np.ndarray:
    """What sentence-transformers and PEFT compute together."""
    from peft import PeftModel
    from sentence_transformers import SentenceTransformer

    model: Any = SentenceTransformer(str(base), device="cpu")
    model[0].auto_model = PeftModel.from_pretrained(model[0].auto_model, str(adapter)).merge_and_unload()
    result: np.ndarray = model.encode(list(short_texts()), show_progress_bar=False)
    return result


@pytest.mark.parametrize("name", ["bge", "qwen3"])
def test_a_merged_adapter_embeds_as_it_was_trained(name: str, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    base = build_embedder(tmp_path / "base", name)
    adapter = write_adapter(base, tmp_path / "adapter")
    merge(base, adapter, tmp_path / "merged")
    assert read_sentence_folder(tmp_path / "merged").pooling == read_sentence_folder(base).pooling
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "float32"
    given = SentenceTransformer(str(tmp_path / "merged"), device="cpu").encode(list(short_texts()))
    np.testing.assert_allclose(given, trained_vectors(base, adapter), atol=2e-5)


def test_an_adapter_of_a_checkpoint_with_a_head(tmp_path: Path) -> None:
    """Published with a prefix, loaded without: the same tensors."""
    from safetensors.torch import load_file, save_file

    base = build_embedder(tmp_path / "base", "bge")
    adapter = write_adapter(base, tmp_path / "adapter")
    headed = Path(shutil.copytree(base, tmp_path / "headed"))
    weights = load_file(base / "model.safetensors")
    named = {f"bert.{name}": value for name, value in weights.items()}
    save_file(named, headed / "model.safetensors", metadata={"format": "pt"})
    for folder in (base, headed):
        merge(folder, adapter, folder.with_name(f"{folder.name}-merged"))
    left = load_file(tmp_path / "base-merged" / "model.safetensors")
    right = load_file(tmp_path / "headed-merged" / "model.safetensors")
    assert all((right[f"bert.{name}"] == value).all() for name, value in left.items())


def test_from_adapter_to_proven_files(tmp_path: Path) -> None:
    base = build_embedder(tmp_path / "base", "bge")
    adapter = write_adapter(base, tmp_path / "adapter")
    events: list[Event] = []
    section = ExportSection(gguf=["f16", "q8_0"])
    result = export_model(adapter, base, tmp_path / "out", section, events.append, name="mine")
    assert result.status == "pass"
    assert [verdict.file_type for verdict in result.verdicts] == ["merged", "f16", "q8_0"]
    merged = result.verdicts[0].proofs[0]
    assert merged.name == "merge" and merged.evidence["moved"] > 1e-4 and merged.evidence["mean"] < 1e-6
    verdict = load_verdict(tmp_path / "out" / "mine-q8_0.gguf")
    assert verdict is not None and verdict.proofs[-2].name in ("vectors", "neighbours")
    assert (tmp_path / "out" / "Modelfile").read_text() == "FROM ./mine-q8_0.gguf\n"


def test_a_whole_folder_and_its_card(tmp_path: Path) -> None:
    folder = build_embedder(tmp_path / "model", "embeddinggemma")
    events: list[Event] = []
    result = export_model(folder, None, tmp_path / "out", ExportSection(gguf=["q8_0"]), events.append)
    assert result.status in ("pass", "warn")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "pipeline_tag: sentence-similarity" in card and "An embedding model" in card
    assert "task: search result" in card and "divided by its length" in card
    titles = [event.finding.title for event in events if isinstance(event, FindingEvent)]
    assert any("holds no prompts" in title for title in titles)


def test_what_is_said_of_types_and_lengths(tmp_path: Path) -> None:
    unnormalised = build_embedder(tmp_path / "m", "xlm-r")
    said = " ".join(embedding_notes(unnormalised, check_types(["f16", "q8_0"])))
    assert "of its own length" in said and "lose most" not in said and "prompts" not in said
    said = " ".join(embedding_notes(unnormalised, check_types(["q8_0", "q4_k_m"])))
    assert "q4_k_m less so" in said
    (unnormalised / "modules.json").unlink()
    assert any("assumed" in note for note in embedding_notes(unnormalised, check_types(["f16"])))
