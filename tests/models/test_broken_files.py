"""Files of a model that say what no model's do are refused by name: what fuzzing got a traceback out of."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from whet.engine.data.sources import source_files
from whet.engine.data.tokenizer_files import TokenizerFiles
from whet.engine.demo import MODEL_DIR
from whet.engine.errors import WhetError
from whet.engine.export.gguf.architectures import supported_architecture
from whet.engine.export.gguf.vocabulary import unsupported_tokenizer
from whet.engine.models.facts import read_model_facts
from whet.engine.models.locate import resolve_model
from whet.engine.models.own_files import read_header

SIZES = {
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 9,
}
TENSOR = {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": [8]},
        {"hidden_size": float("inf")},
        {"num_hidden_layers": 2**31},
        {"vocab_size": -1},
        {"num_attention_heads": 0},
        {"architectures": [["LlamaForCausalLM"]]},
        {"quantization_config": "nf4"},
        {"model_type": "whisper"},
        {
            "model_type": "mixtral",
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "intermediate_size": None,
        },
        {"model_type": ["llama"]},
        {"rope_parameters": json.loads("[" * 300 + "]" * 300)},
    ],
    ids=lambda changes: str(changes)[:60],
)
def test_configuration(changes: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**SIZES, "vocab_size": 9, **changes}))
    with pytest.raises(WhetError) as caught:
        read_model_facts(tmp_path)
    assert caught.value.code == "model.config"


def test_an_error_of_ours_is_not_called_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("ours")

    (tmp_path / "config.json").write_text(json.dumps(SIZES))
    read_model_facts(tmp_path)
    monkeypatch.setattr("whet.engine.models.decoder_layout.from_config", broken)
    with pytest.raises(KeyError, match="ours"):
        read_model_facts(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_key_value_heads": "4"}, "num_key_value_heads=4, which is not a whole number"),
        ({"head_dim": True}, "head_dim=True"),
        ({"model_type": "mixtral", "num_local_experts": 4}, "no intermediate_size"),
        ({"model_type": "mixtral", "num_local_experts": 4, "mlp_only_layers": "0"}, "mlp_only_layers=0"),
        ({"bos_token_id": "<s>"}, "bos_id"),
    ],
)
def test_what_is_wrong_of_a_configuration_is_named(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SIZES | changes))
    with pytest.raises(WhetError, match=said) as caught:
        read_model_facts(tmp_path)
    assert caught.value.code == "model.config"


def test_what_nobody_reads_may_be_anything(tmp_path: Path) -> None:
    """A model whose layers' experts differ in width is no family of ours, and is counted by its weights."""
    odd = {"model_type": "nosuch", "moe_intermediate_size": [8, 9], "num_experts": "many"}
    (tmp_path / "config.json").write_text(json.dumps(SIZES | odd))
    assert read_model_facts(tmp_path).family == "unknown"


@pytest.mark.parametrize("text", ["[" * 5000, '{"hidden_size": ' + "9" * 5000 + "}", "\xff\xfe"])
def test_configuration_that_is_no_json(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(WhetError) as caught:
        read_model_facts(tmp_path)
    assert caught.value.code == "model.config"


@pytest.mark.parametrize(
    "entry",
    [
        {**TENSOR, "shape": [2, -3]},
        {**TENSOR, "shape": [2, 2**62]},
        {**TENSOR, "shape": None},
        {**TENSOR, "data_offsets": [0, 24]},
        {**TENSOR, "data_offsets": [6, 12]},
        {**TENSOR, "data_offsets": [12, 0]},
        {**TENSOR, "data_offsets": ["0", "12"]},
        {**TENSOR, "dtype": "F64"},
        {"dtype": "BF16"},
        "BF16",
    ],
    ids=str,
)
def test_header_of_weights(entry: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for header in ({"a": TENSOR}, {"a": TENSOR, "b": entry}):
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(12))
        if header.keys() == {"a"}:
            assert read_header(path) == (header, 8 + len(text))
    with pytest.raises(WhetError, match="says of 'b'"):
        read_header(path)


def test_weights_that_were_not_fetched(tmp_path: Path) -> None:
    """What a clone without Git LFS has in their place, and a cache of which a part was removed."""
    pointer, link = tmp_path / "pointer", tmp_path / "link"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    link.symlink_to(tmp_path / "nowhere")
    for path, said in ((pointer, "git lfs pull"), (link, "leads nowhere")):
        with pytest.raises(WhetError, match=said) as caught:
            read_header(path)
        assert caught.value.code == "model.broken_weights"


@pytest.mark.parametrize(
    "changes",
    [
        {"added_tokens_decoder": {"0": {"content": 1.5}}},
        {"added_tokens_decoder": {"x": {"content": "<a>"}}},
        {"added_tokens_decoder": ["<a>"]},
        {"bos_token": "\ud800"},
        {"model_max_length": "long"},
        {"chat_template": [["default"]]},
        {"chat_template": 5},
    ],
    ids=str,
)
def test_tokenizer_configuration(changes: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(changes))
    with pytest.raises(WhetError) as caught:
        TokenizerFiles.read(tmp_path)
    assert caught.value.code == "tokenizer.config"


ROPES = ({"rope_theta": [1]}, {"max_position_embeddings": "a=b"}, {"rope_scaling": 5})


@pytest.mark.parametrize("rope", ROPES, ids=str)
def test_rope_that_is_none_is_a_reason_not_to_write_a_gguf(rope: dict[str, Any]) -> None:
    assert "says what no llama does" in (supported_architecture("llama", {**SIZES, **rope}) or "")


NO_TOKENIZERS = (b"\xff", b"[]", b"[" * 5000, b'{"model": 1}', b'{"model": {"type": []}}')


@pytest.mark.parametrize("content", NO_TOKENIZERS)
def test_tokenizer_that_is_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(WhetError):
        TokenizerFiles.read(tmp_path).load()
    assert unsupported_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(WhetError, match="no tokenizer's do"):
        TokenizerFiles.read(tmp_path)


def test_a_whole_folder_is_read() -> None:
    assert read_model_facts(Path(MODEL_DIR)).layers > 0
    assert TokenizerFiles.read(Path(MODEL_DIR)).spec()["model"]


@pytest.mark.parametrize("name", ["a" * 300, "a" * 5000, "~nobodyhere/x", "a\0b", "\ud800", "b/" + "a" * 200])
def test_names_that_lead_nowhere(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_OFFLINE", "1")
    for look in (resolve_model, source_files):
        with pytest.raises(WhetError) as caught:
            look(name)
        assert caught.value.code.endswith("not_found")
