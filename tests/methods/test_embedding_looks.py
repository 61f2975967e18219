"""What D14 counts is what shuffled batches meet; what L10 compares, and when it does not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from methods.test_embedding_job import pairs, recipe
from sentence_transformers import SentenceTransformer
from support.live_runs import attempt
from support.tiny_embedders import build_embedder, save_transformer
from support.tiny_runs import create_run, events_of

from whet.engine.checks.embeddings import KeptVectors, expected_prompts, look_at_vectors
from whet.engine.errors import WhetError
from whet.engine.methods.embedding.batch_facts import meeting, twins
from whet.engine.methods.embedding.first_look import first_texts, kept_vectors, refusal
from whet.engine.methods.embedding.job import EmbeddingTraining
from whet.engine.methods.embedding.loading import load_embedder, load_folder
from whet.engine.models.loading import Precision
from whet.engine.models.sentence_folder import configured_prompts
from whet.engine.plan import make_plan
from whet.engine.runs.events import PhaseEvent


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_embedder(tmp_path_factory.mktemp("model") / "bert", "bert")


def stored(path: Path, rows: list[dict[str, object]]) -> Path:
    """As prepared rows lie on disk, in record batches of two."""
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as out, pa.ipc.new_stream(out, table.schema) as stream:
        stream.write_table(table, max_chunksize=2)
    return path


def test_twins_are_counted_in_all_columns_of_other_rows(tmp_path: Path) -> None:
    texts = [
        ("a", "1", "x"), ("a", "2", "x"), ("b", "3", "1"), ("c", "c", "x"), ("d", "4", "y"), ("e", "2", "y"),
    ]  # fmt: skip
    rows = [
        {"anchor": anchor, "positive": positive, "negative": negative, "row": number}
        for number, (anchor, positive, negative) in enumerate(texts)
    ]
    # Shared negatives do no harm, nor does a text twice in its own row.
    assert twins(stored(tmp_path / "rows.arrow", rows)).tolist() == [2, 2, 0, 0, 0, 1]


def test_the_expected_share_is_that_of_shuffled_batches() -> None:
    groups = np.repeat(np.arange(60), [1] * 40 + [2] * 10 + [14] * 10)
    others = np.bincount(groups)[groups] - 1
    draw, size = np.random.default_rng(0), 20
    met = [
        np.mean([(batch == group).sum() > 1 for batch in shuffled.reshape(-1, size) for group in batch])
        for shuffled in (draw.permutation(groups) for _ in range(200))
    ]
    assert meeting(others, size) == pytest.approx(np.mean(met), rel=0.02)
    assert meeting(others, 1) == meeting(np.zeros(1), size) == 0


@pytest.mark.parametrize(
    ("name", "query"),
    [
        ("intfloat/multilingual-e5-base", "query: "),
        ("intfloat/e5-mistral-7b-instruct", "Instruct: "),
        ("/models/Qwen3-Embedding-0.6B/", "Instruct: "),
        ("google/embeddinggemma-300m", "task: "),
        ("nomic-ai/nomic-embed-text-v1.5", "search_query: "),
        ("BAAI/bge-m3", None),
        ("sentence-transformers/all-MiniLM-L6-v2", None),
        ("me/make5-base", None),
    ],
)
def test_models_are_known_by_name(name: str, query: str | None) -> None:
    found = expected_prompts(name).get("query")
    assert found is None if query is None else str(found).startswith(query)


def test_a_folders_passage_prompt_stands_before_documents(tmp_path: Path) -> None:
    model = build_embedder(tmp_path / "model", "bert")
    embedder = SentenceTransformer(str(model), device="cpu")
    embedder.prompts = {"query": "q: ", "passage": "p: "}
    embedder.save_pretrained(str(model))
    assert configured_prompts(model) == {"query": "q: ", "document": "p: "}
    run = create_run(recipe(model, tmp_path, pairs(), training={"max_steps": 1}))
    plan = run.load_plan()
    assert load_embedder(plan, model).prompts["document"] == "p: "


def test_the_comparison_leaves_the_model_as_it_was(bert: Path, tmp_path: Path) -> None:
    plan = make_plan(recipe(bert, tmp_path, pairs()))
    model = load_embedder(plan, bert)
    model.train()
    seen = kept_vectors(model, plan, bert, False, ["red car", "blue boat " * 50])
    assert min(seen.cosines) > 0.99999 and look_at_vectors(seen) == []
    assert model.training and model.max_seq_length == plan.resolved.max_length


def test_vectors_that_are_not_finite_were_changed(bert: Path, tmp_path: Path) -> None:
    wanted = recipe(bert, tmp_path, pairs())
    plan = make_plan(wanted)
    model = load_embedder(plan, bert)
    encoder: Any = model[0].model
    encoder.get_input_embeddings().weight.data.fill_(float("nan"))
    seen = kept_vectors(model, plan, bert, False, ["red car"])
    (finding,) = look_at_vectors(seen)
    assert finding.severity == "error" and finding.evidence["least"] == 0
    narrow = KeptVectors(wanted, "bf16", "bf16", (0.9,))
    assert look_at_vectors(narrow)[0].fix.patch == {"training.precision": "fp32"}  # type: ignore[union-attr]


def test_without_modules_or_room_nothing_is_compared(bert: Path, tmp_path: Path) -> None:
    plain = save_transformer(tmp_path / "plain", "bert")
    run = create_run(recipe(plain, tmp_path, pairs(), training={"max_steps": 1}))
    assert attempt(run, method=EmbeddingTraining) == "finished"
    said = [event.detail for event in events_of(run) if isinstance(event, PhaseEvent)]
    assert "not compared with plain sentence-transformers: no modules.json" in said
    plan = make_plan(recipe(bert, tmp_path, pairs()))
    assert refusal(plan, bert) is None
    facts = plan.model.model_copy(update={"quantization": "nf4"})
    assert "quantised (nf4)" in str(refusal(plan.model_copy(update={"model": facts}), bert))
    full = plan.memory.model_copy(update={"available": plan.memory.components["runtime"]})
    assert "GB free" in str(refusal(plan.model_copy(update={"memory": full}), bert))


def test_texts_come_from_all_columns() -> None:
    from datasets import Dataset

    rows = Dataset.from_list([{"anchor": f"a{n}", "positive": f"p{n}", "row": n} for n in range(30)])
    assert first_texts(rows)[:3] == ["a0", "p0", "a1"] and len(first_texts(rows)) == 16
    assert first_texts(Dataset.from_list([{"text": "t", "label": 1}])) == ["t"]


def test_a_class_of_the_folders_own_is_not_loaded(bert: Path, tmp_path: Path) -> None:
    """modules.json names code as config.json does, and sentence-transformers would run it."""
    folder = Path(shutil.copytree(bert, tmp_path / "hostile"))
    (folder / "custom.py").write_text(f"open({str(tmp_path / 'code-was-run')!r}, 'w')\n")
    (folder / "modules.json").write_text(
        json.dumps([{"idx": 0, "name": "0", "path": "", "type": "custom.M"}])
    )
    with pytest.raises(WhetError) as caught:
        load_folder(folder, Precision())
    assert caught.value.code == "model.remote_code" and not (tmp_path / "code-was-run").exists()
