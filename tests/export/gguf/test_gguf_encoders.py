"""Encoders as GGUF: what is written, and what is refused before anything is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from support.tiny_embedders import EMBEDDERS, build_embedder, real_minilm, save_transformer

from whet.engine.errors import WhetError
from whet.engine.export.gguf.architectures import supported_architecture
from whet.engine.export.gguf.convert import convert
from whet.engine.export.gguf.probe import conversion_refusal

KINDS = {
    "bert": ("bert", 1),
    "bge": ("bert", 2),
    "xlm-r": ("bert", 2),
    "roberta": ("bert", 1),
    "modernbert": ("modern-bert", 1),
    "embeddinggemma": ("gemma-embedding", 1),
    "qwen3": ("qwen3", 3),
    "qwen2": ("qwen2", 1),
    "mistral": ("llama", 3),
}
"""Family -> llama.cpp's architecture, its number of the pooling."""
DECODERS = ("qwen3", "qwen2", "mistral")


def values(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


@pytest.mark.parametrize("name", EMBEDDERS)
def test_architecture_and_pooling(name: str, tmp_path: Path) -> None:
    folder = build_embedder(tmp_path / "model", name)
    found = values(convert(folder, tmp_path / "model.gguf", "f16"))
    architecture, pooling = KINDS[name]
    assert found["general.architecture"] == architecture
    assert found[f"{architecture}.pooling_type"] == pooling
    assert found.get(f"{architecture}.attention.causal") is (None if name in DECODERS else False)
    assert "tokenizer.chat_template" not in found  # nobody talks to it


def test_dense_layers_travel(tmp_path: Path) -> None:
    path = convert(build_embedder(tmp_path / "m", "embeddinggemma"), tmp_path / "m.gguf", "f32")
    shapes = {one.name: list(one.shape) for one in GGUFReader(path).tensors if "dense" in one.name}
    assert shapes == {"dense_2.weight": [64, 96], "dense_3.weight": [96, 64]}
    found = values(path)
    sizes = [found[f"gemma-embedding.dense_{n}_feat_{end}"] for n in (2, 3) for end in ("in", "out")]
    assert sizes == [64, 96, 96, 64]


def test_positions_before_the_first_are_dropped(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    folder = build_embedder(tmp_path / "m", "xlm-r")
    path = convert(folder, tmp_path / "m.gguf", "f16")
    config = json.loads((folder / "config.json").read_text())
    table = load_file(folder / "model.safetensors")["embeddings.position_embeddings.weight"]
    written = next(one for one in GGUFReader(path).tensors if one.name == "position_embd.weight")
    skipped = config["pad_token_id"] + 1
    np.testing.assert_array_equal(written.data, table[skipped:])  # exact, in float32
    assert values(path)["bert.context_length"] == len(table) - skipped


def test_checkpoints_with_a_head_and_old_names(tmp_path: Path) -> None:
    """As BertForPreTraining saved them: a prefix, gamma and beta, a pooler, counters of positions."""
    from safetensors.numpy import load_file, save_file

    plain = save_transformer(tmp_path / "plain", "bert")
    old = save_transformer(tmp_path / "old", "bert")
    weights = load_file(old / "model.safetensors")
    renamed = {
        "bert."
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
        for name, v in weights.items()
    }
    renamed["cls.predictions.bias"] = np.zeros(4, np.float32)
    renamed["bert.embeddings.position_ids"] = np.arange(300)
    save_file(renamed, old / "model.safetensors")
    files = [convert(folder, folder.with_suffix(".gguf"), "f32", name="same") for folder in (plain, old)]
    left, right = ({one.name: one.data for one in GGUFReader(file).tensors} for file in files)
    assert left.keys() == right.keys()
    assert all(np.array_equal(left[name], right[name]) for name in left)


def test_a_decoder_without_modules_stays_a_decoder(tmp_path: Path) -> None:
    folder = build_embedder(tmp_path / "m", "qwen3")
    (folder / "modules.json").unlink()
    with pytest.raises(WhetError) as error:  # its tensors lack what a decoder has
        convert(folder, tmp_path / "m.gguf", "f16")
    assert error.value.code in ("gguf.missing_tensor", "gguf.unknown_tensor")


SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 8, "intermediate_size": 8}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "mpnet": ("mpnet", {"relative_attention_num_buckets": 32}, "relative_attention_bias"),
    "positions": ("bert", {"position_embedding_type": "relative_key"}, "relative_key"),
    "decoder": ("bert", {"is_decoder": True}, "is_decoder"),
    "activation": ("bert", {"hidden_act": "relu"}, "relu"),
    "biases": ("modernbert", {"mlp_bias": True}, "mlp_bias"),
    "scaled rope": ("modernbert", {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "yarn"),
    "attention scale": (
        "gemma3_text",
        {"use_bidirectional_attention": True, "query_pre_attn_scalar": 99, "head_dim": 4},
        "query_pre_attn_scalar",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_reason(case: str) -> None:
    model_type, changes, words = REFUSED[case]
    reason = supported_architecture(model_type, SIZES | changes)
    assert reason is not None and words in reason


def test_mpnet_is_refused_before_training(tmp_path: Path) -> None:
    folder = save_transformer(tmp_path / "m", "bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mpnet"}))
    refused = conversion_refusal(folder, rows=None)
    assert refused is not None and refused.code == "gguf.unsupported" and "MPNet" in refused.message


def test_decoders_that_were_made_encoders(tmp_path: Path) -> None:
    file = build_embedder(tmp_path / "m", "qwen2") / "config.json"
    config = json.loads(file.read_text())
    assert conversion_refusal(tmp_path / "m", rows=None) is None
    for change, words in ({"is_causal": False}, "both ways"), ({"auto_map": {"AutoModel": "x"}}, "auto_map"):
        file.write_text(json.dumps(config | change))
        refused = conversion_refusal(tmp_path / "m", rows=None)
        assert refused is not None and words in refused.message


DENSE: dict[str, tuple[str, dict[str, Any], str]] = {
    "bias": ("embeddinggemma", {"bias": True}, "bias or an activation"),
    "activation": (
        "embeddinggemma",
        {"activation_function": "torch.nn.modules.activation.Tanh"},
        "activation",
    ),
    "width": ("embeddinggemma", {"in_features": 32}, "from width 64"),
}


@pytest.mark.parametrize("case", DENSE)
def test_dense_layers_that_llama_cpp_lacks(case: str, tmp_path: Path) -> None:
    name, changes, words = DENSE[case]
    folder = build_embedder(tmp_path / "m", name)
    file = folder / "2_Dense" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    refused = conversion_refusal(folder, rows=None)
    assert refused is not None and words in refused.message


def test_a_bert_with_dense_layers(tmp_path: Path) -> None:
    folder = build_embedder(tmp_path / "m", "bert")
    modules = json.loads((folder / "modules.json").read_text())
    modules.insert(
        2, {"idx": 9, "name": "9", "path": "9_Dense", "type": "sentence_transformers.models.Dense"}
    )
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "9_Dense").mkdir()
    (folder / "9_Dense" / "config.json").write_text('{"in_features": 64, "out_features": 64}')
    refused = conversion_refusal(folder, rows=None)
    assert refused is not None and "no dense layer" in refused.message


def test_text_lowered_outside_of_the_tokenizer(tmp_path: Path) -> None:
    settings = '{"max_seq_length": 300, "do_lower_case": true}'
    cased, lowered = (build_embedder(tmp_path / name, name) for name in ("bge", "bert"))
    for folder in (cased, lowered):
        (folder / "sentence_bert_config.json").write_text(settings)
    refused = conversion_refusal(cased, rows=None)
    assert refused is not None and "do_lower_case" in refused.message
    assert conversion_refusal(lowered, rows=None) is None  # its tokenizer does it anyway


def test_the_real_minilm_can_be_converted() -> None:
    assert conversion_refusal(real_minilm(), rows=None) is None
