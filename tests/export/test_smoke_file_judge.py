"""Proofs of configuration and tensors on made-up measurements, and the gates' shape."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, quantize

from whet.engine.export.gguf.families import ARCHITECTURES
from whet.engine.export.smoke_file_judge import EXACT, MOST, ROUNDING, configuration, gates_for, weights
from whet.engine.export.smoke_judge import LOSS_SLACK, gate_for, logits
from whet.engine.export.smoke_values import FAMILIES, expected_values, wrong_values
from whet.engine.export.smoke_weights import compare_weights

LLAMA: dict[str, Any] = {
    "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}  # fmt: skip


def metadata(**changes: Any) -> dict[str, Any]:
    """Of a right file, written with as few keys as llama.cpp needs."""
    values = {
        "block_count": 2, "context_length": 512, "embedding_length": 64, "feed_forward_length": 128,
        "attention.head_count": 4, "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": float(np.float32(1e-6)),
    } | changes  # fmt: skip
    keys = {f"llama.{key}": value for key, value in values.items()}
    return {"general.architecture": "llama", "tensors": [], "rope_tensors": {}, **keys}


def test_every_decoder_of_the_converter_has_a_list_of_values() -> None:
    decoders = [one for one in ARCHITECTURES if one.head != "none"]
    assert {name for one in decoders for name in one.model_types} <= set(FAMILIES)
    assert all(FAMILIES[name][0] == one.name for one in decoders for name in one.model_types)


def test_what_llama_cpp_fills_in_need_not_stand_in_the_file() -> None:
    assert wrong_values(metadata(), expected_values(LLAMA)) == {}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"attention.layer_norm_rms_epsilon": 1e-5}, "attention.layer_norm_rms_epsilon"),
        ({"rope.freq_base": 20000.0}, "rope.freq_base"),
        ({"rope.scaling.type": "yarn"}, "rope.scaling.type"),
        ({"attention.key_length": 32}, "attention.key_length"),
        ({"block_count": 3}, "block_count"),
    ],
)
def test_another_value_is_named(changes: dict[str, Any], key: str) -> None:
    proof = configuration({"values": expected_values(LLAMA)}, {"metadata": metadata(**changes)})
    assert proof.status == "fail" and f"llama.{key}" in proof.evidence["wrong"] and proof.fix


def test_a_family_without_a_list_warns() -> None:
    assert expected_values({"model_type": "unheard-of"}) == {}
    assert configuration({"values": {}}, {"metadata": metadata()}).status == "warn"


def test_llama3_factors_are_those_of_the_loaded_model() -> None:
    inverse = [1.0, 0.01 / 8]
    wanted = expected_values(
        LLAMA | {"rope_parameters": {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0}},
        {"inverse_frequencies": inverse, "attention_scaling": 1.0},
    )
    right = metadata() | {"rope_tensors": {"rope_freqs.weight": [1.0, 8.0]}}
    assert wrong_values(right, wanted) == {}
    assert list(wrong_values(metadata(), wanted)) == ["rope_freqs.weight"]


def write(path: Path, kind: GGMLQuantizationType, **tensors: np.ndarray) -> Path:
    writer = GGUFWriter(path, "llama")
    for name, data in tensors.items():
        writer.add_tensor(name, quantize(data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def drawn(seed: int, rows: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, 512)).astype(np.float32)


def compared(tmp_path: Path, source: dict[str, np.ndarray], given: dict[str, np.ndarray]) -> dict[str, Any]:
    f16 = write(tmp_path / "f16.gguf", GGMLQuantizationType.F16, **source)
    return compare_weights(write(tmp_path / "q8.gguf", GGMLQuantizationType.Q8_0, **given), f16)


def test_rounding_passes_and_is_what_was_measured(tmp_path: Path) -> None:
    found = compared(tmp_path, {"a": drawn(1), "b": drawn(2)}, {"a": drawn(1), "b": drawn(2)})
    (entry,) = found["types"].values()
    assert entry["tensors"] == 2 and entry["worst"] == pytest.approx(ROUNDING["Q8_0"], rel=0.1)
    assert weights({"weights": found}).status == "pass"


def test_one_damaged_block_is_found_where_the_tensor_as_a_whole_is_not_far_off(tmp_path: Path) -> None:
    damaged = drawn(1, rows=2048)
    damaged[700, 256:288] *= 2
    found = compared(tmp_path, {"a": drawn(1, rows=2048)}, {"a": damaged})
    entry = found["types"]["Q8_0"]
    assert entry["worst"] < gates_for("Q8_0")[0] < gates_for("Q8_0")[1] < entry["block"]
    proof = weights({"weights": found})
    assert proof.status == "fail" and "a is" in proof.summary


def test_padding_of_next_to_nothing_is_no_damage(tmp_path: Path) -> None:
    padded = drawn(1)
    padded[5] = 1e-9  # below what a block's scale can say in half precision
    assert weights({"weights": compared(tmp_path, {"a": padded}, {"a": padded})}).status == "pass"


def test_tensors_that_one_file_lacks(tmp_path: Path) -> None:
    found = compared(tmp_path, {"a": drawn(1), "b": drawn(2)}, {"a": drawn(1)})
    proof = weights({"weights": found})
    assert proof.status == "fail" and "lacks b" in proof.summary


def test_a_dimension_of_one_may_be_dropped(tmp_path: Path) -> None:
    one = {"a": drawn(1, rows=1)}
    found = compared(tmp_path, one, {"a": drawn(1, rows=1)[0]})
    assert found["reshaped"] == [] and weights({"weights": found}).status == "pass"


def test_nan_fails(tmp_path: Path) -> None:
    types = {"Q8_0": {"tensors": 1, "worst": math.nan, "name": "a", "block": math.nan, "block_name": "a"}}
    found = {"types": types, "missing": [], "added": [], "reshaped": [], "share": 1.0}
    assert weights({"weights": found}).status == "fail"


def test_large_models_give_a_share_of_their_rows(tmp_path: Path) -> None:
    f16 = write(tmp_path / "f16.gguf", GGMLQuantizationType.F16, a=drawn(1, rows=64))
    found = compare_weights(f16, f16, budget=64 * 512 // 4)
    assert found["share"] == 0.25 and found["types"]["F16"]["worst"] == 0


def test_gates_of_tensors() -> None:
    assert gates_for("F32") == (EXACT, EXACT)
    for kind in [*ROUNDING, "IQ1_S"]:
        tensor, block = gates_for(kind)
        assert ROUNDING.get(kind, 0) < tensor <= block <= MOST or kind == "F32"


@pytest.mark.parametrize(
    ("mean", "only_rounded", "status"),
    [
        (0.01, False, "pass"),
        (0.04, False, "warn"),
        (0.06, False, "fail"),
        (0.06, True, "warn"),
        (0.31, True, "fail"),
    ],
)
def test_a_loss_beyond_the_gate_is_told_from_a_fault(mean: float, only_rounded: bool, status: str) -> None:
    assert gate_for("q4_k_m") == 0.05 and LOSS_SLACK == 6
    measured = {"logits": {"mean": mean, "typical": mean, "max": 1.0, "positions": 512, "finite": True}}
    reference = {"dtype": "float32", "values": {}}
    assert logits(reference, measured, "q4_k_m", "f16", only_rounded).status == status


def test_mixtures_are_judged_without_the_positions_where_experts_change() -> None:
    measured = {"logits": {"mean": 3e-4, "typical": 2e-6, "max": 0.05, "positions": 512, "finite": True}}
    reference: dict[str, Any] = {"dtype": "float32", "values": {"expert_count": 4}}
    assert logits(reference, measured, "f16", "transformers").status == "pass"
    reference["values"] = {"block_count": 2}
    assert logits(reference, measured, "f16", "transformers").status == "fail"
