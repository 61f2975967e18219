"""The importance matrix is what llama.cpp itself would measure, and files made with it are nearer."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from support.gguf_inputs import llama_input_squares
from support.gguf_logits import kl, llama_log_probs
from support.tiny_embedders import build_embedder
from support.tiny_models import FamilyName, build_tiny_model

from whet.engine import demo
from whet.engine.errors import WhetError
from whet.engine.export.gguf.convert import convert
from whet.engine.export.gguf.importance import FLOOR, Importance, measure
from whet.engine.export.gguf.native import run_native
from whet.engine.export.gguf.quantize import quantize
from whet.engine.export.gguf.types import ALIASES, GGUF_TYPES, USUAL, USUAL_FOR_EMBEDDINGS, find_type
from whet.engine.export.importance_rows import file_rows

RNG = np.random.default_rng(5)
ROWS = [RNG.integers(0, 390, length).tolist() for length in (5, 96, 32, 128)]
TOKENS = sum(map(len, ROWS))
IDS = RNG.integers(0, 390, 64).tolist()
LONG = {"iq1_s", "iq1_m"}
"""Ten seconds each: `make slow` tries them."""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("wide") / "model", "llama", wide=True)


@pytest.fixture(scope="module")
def f32(wide: Path) -> Path:
    return convert(wide, wide.parent / "f32.gguf", "f32")


@pytest.fixture(scope="module")
def matrix(wide: Path, f32: Path) -> Path:
    return measure(wide, f32, ROWS, wide.parent / "matrix.gguf", "rows of a test")


@pytest.mark.parametrize("family", ["gemma3_text", "phi3", "mixtral", "qwen3_moe"])
def test_it_is_what_llama_cpp_multiplies_with(tmp_path: Path, family: FamilyName) -> None:
    """Every family, experts one by one: sums of squares and counts by llama.cpp's own operations."""
    model = build_tiny_model(tmp_path / "model", family)
    source = convert(model, tmp_path / "f32.gguf", "f32")
    seen: list[tuple[float, float]] = []
    found = Importance.load(
        measure(model, source, ROWS, tmp_path / "m.gguf", "rows", lambda *at: seen.append(at))
    )
    sums, counts = llama_input_squares(source, ROWS)
    routers = {name for name in sums if name.endswith("ffn_gate_inp.weight")}
    assert set(found.sums) - routers == set(sums) - routers
    for name, ours in found.sums.items():
        np.testing.assert_array_equal(found.counts[name], counts[name], err_msg=name)
        np.testing.assert_allclose(ours, sums[name], rtol=5e-3, atol=1e-4 * sums[name].max(), err_msg=name)
    assert seen[-1] == (TOKENS, TOKENS) and found.positions == TOKENS
    experts = [len(count) for count in found.counts.values()]
    assert (max(experts) > 1) == (family in ("mixtral", "qwen3_moe"))


def test_an_encoder_has_one_too(tmp_path: Path) -> None:
    model = build_embedder(tmp_path / "model", "bert")
    source = convert(model, tmp_path / "f32.gguf", "f32")
    long = [RNG.integers(5, 90, 400).tolist()]  # beyond its 300 positions
    found = Importance.load(measure(model, source, long, tmp_path / "m.gguf", "rows"))
    assert len(found.sums) == 18 and 290 < found.positions < 300


def test_the_file_is_llama_imatrix_s_form(tmp_path: Path, matrix: Path) -> None:
    from gguf import GGUFReader

    reader = GGUFReader(matrix)
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.datasets"].contents() == ["rows of a test"]
    assert reader.fields["imatrix.chunk_count"].contents() == 1
    shapes = {tensor.name: tuple(map(int, tensor.shape)) for tensor in reader.tensors}
    assert shapes["blk.1.ffn_down.weight.in_sum2"] == (512, 1)
    assert shapes["blk.1.ffn_down.weight.counts"] == (1, 1)
    again = Importance.load(Importance.load(matrix).save(tmp_path / "again.gguf"))
    assert again.origin == "rows of a test"
    np.testing.assert_array_equal(
        again.sums["blk.0.attn_q.weight"], Importance.load(matrix).sums["blk.0.attn_q.weight"]
    )


def test_means_of_what_was_never_used() -> None:
    """An expert that no token reached counts each column alike; an unused column keeps a trace."""
    sums = np.array([[8.0, 0.0], [0.0, 0.0]], dtype=np.float32)
    means = Importance({"w": sums}, {"w": np.array([4.0, 0.0], dtype=np.float32)}, "").means()["w"]
    np.testing.assert_allclose(means, [2.0, FLOOR, 1.0, 1.0])


@pytest.mark.slow  # 20 to 30 seconds: `make slow`
def test_it_brings_a_trained_model_nearer(tmp_path: Path) -> None:
    """The demo's model, the matrix from its training rows, the divergence on held-out ones."""
    source = convert(demo.MODEL_DIR, tmp_path / "f16.gguf", "f16")
    rows = file_rows(str(demo.TRAIN_FILE), demo.MODEL_DIR, tokens=2048)
    matrix = measure(demo.MODEL_DIR, source, rows, tmp_path / "matrix.gguf", "demo")
    ids = list(chain.from_iterable(file_rows(str(demo.HELDOUT_FILE), demo.MODEL_DIR)))[:600]
    reference = llama_log_probs(source, ids)
    for kind, share in (("q2_k", 0.9), ("iq3_s", 0.75), ("q3_k_s", 0.95)):
        plain = quantize(source, tmp_path / "plain.gguf", kind)
        helped = quantize(source, tmp_path / "helped.gguf", kind, importance=matrix)
        lost = [kl(reference, llama_log_probs(one.path, ids)) for one in (plain, helped)]
        assert 0 < lost[1] < share * lost[0], kind
        assert helped.tensor_types == plain.tensor_types


def test_unused_columns_cost_nothing(tmp_path: Path, f32: Path, matrix: Path) -> None:
    """Rows that never use some columns must not ruin the weights there: other rows will."""
    reference = llama_log_probs(f32, IDS)
    found = Importance.load(matrix)
    for sums in found.sums.values():
        sums[:, :64] = 0
    helped = quantize(f32, tmp_path / "q.gguf", "q4_0", importance=found.save(tmp_path / "gaps.gguf"))
    plain = quantize(f32, tmp_path / "plain.gguf", "q4_0")
    worse = kl(reference, llama_log_probs(helped.path, IDS))
    assert worse < 1.2 * kl(reference, llama_log_probs(plain.path, IDS))


def test_the_file_says_what_it_was_made_from(tmp_path: Path, f32: Path, matrix: Path) -> None:
    from gguf import GGUFReader

    fields = GGUFReader(quantize(f32, tmp_path / "q.gguf", "iq2_xxs", importance=matrix).path).fields
    assert fields["quantize.imatrix.dataset"].contents() == "rows of a test"
    assert fields["quantize.imatrix.entries_count"].contents() == 14


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind.name, marks=pytest.mark.slow if kind.name in LONG else ())
        for kind in GGUF_TYPES.values()
        if kind.needs_importance
    ],
)
def test_types_that_need_one(tmp_path: Path, f32: Path, matrix: Path, kind: str) -> None:
    """Refused without, in words that say what to give; llama.cpp refuses them too, so the list is right."""
    with pytest.raises(WhetError, match="importance matrix") as caught:
        quantize(f32, tmp_path / "q.gguf", kind)
    assert caught.value.code == "gguf.needs_importance_matrix" and "--imatrix" in caught.value.hint
    request = {"source": str(f32), "out": str(tmp_path / "x.gguf"), "type": kind}
    with pytest.raises(WhetError, match="imatrix"):
        run_native("whet.engine.export.gguf.quantize_process", request)
    report = quantize(f32, tmp_path / "q.gguf", kind, importance=matrix)
    assert 0 < kl(llama_log_probs(f32, IDS), llama_log_probs(report.path, IDS)) < 1.5
    assert report.fallbacks == 0


def test_q2_k_l_keeps_its_ends(tmp_path: Path, f32: Path) -> None:
    report = quantize(f32, tmp_path / "q.gguf", "q2_k_l")
    assert report.tensor_types["q8_0"] == 2 and report.tensor_types["q2_k"] > 2


def test_a_file_that_is_no_matrix(tmp_path: Path, f32: Path) -> None:
    with pytest.raises(WhetError, match="type is not imatrix") as caught:
        quantize(f32, tmp_path / "q.gguf", "iq2_xs", importance=f32)
    assert caught.value.code == "gguf.not_importance"
    text = tmp_path / "matrix.gguf"
    text.write_text("no GGUF")
    with pytest.raises(WhetError, match="no importance matrix"):
        Importance.load(text)


def test_another_models_matrix_is_refused(tmp_path: Path, f32: Path, matrix: Path) -> None:
    found = Importance.load(matrix)
    cut = {name: sums[:, :32] for name, sums in found.sums.items()}
    other = Importance(cut, found.counts, "another").save(tmp_path / "other.gguf")
    with pytest.raises(WhetError, match="imatrix size 32 is different from tensor size 256"):
        quantize(f32, tmp_path / "q.gguf", "iq2_xs", importance=other)


def test_other_tools_names() -> None:
    assert {find_type(name).name for name in ALIASES} <= set(GGUF_TYPES)
    assert not set(ALIASES) & set(GGUF_TYPES)
    assert [find_type(n).name for n in ("quantized", "Q4_K", "q3_k_xs")] == ["q4_k_m", "q4_k_m", "iq3_xs"]
    assert set(USUAL) | set(USUAL_FOR_EMBEDDINGS) <= set(GGUF_TYPES)
