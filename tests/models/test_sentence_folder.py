"""What sentence-transformers saves, read: pooling, layers behind it, prompts; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.tiny_embedders import real_minilm

from whet.engine.errors import WhetError
from whet.engine.models.sentence_folder import is_embedding_model, read_sentence_folder


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def folder_of(
    tmp_path: Path,
    *modules: tuple[str, str],
    pooling: dict[str, Any] | None = None,
    dense: dict[str, Any] | None = None,
    **files: Any,
) -> Path:
    """A folder with these modules, (type, path) each; no weights."""
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": kind} for i, (kind, path) in enumerate(modules)
    ]
    write(tmp_path / "modules.json", listed)
    write(tmp_path / "config.json", {"model_type": "bert"})
    for kind, path in modules:
        if kind == POOLING:
            write(tmp_path / path / "config.json", pooling or {"pooling_mode": "mean"})
        if kind == DENSE:
            write(tmp_path / path / "config.json", dense or DENSE_CONFIG)
    for name, value in files.items():
        write(tmp_path / f"{name}.json", value)
    return tmp_path


TRANSFORMER = "sentence_transformers.base.modules.transformer.Transformer"
POOLING = "sentence_transformers.models.Pooling"
DENSE = "sentence_transformers.models.Dense"
NORMALIZE = "sentence_transformers.models.Normalize"
WHOLE = ((TRANSFORMER, ""), (POOLING, "1_Pooling"), (NORMALIZE, "2_Normalize"))
DENSE_CONFIG = {"in_features": 8, "out_features": 16, "bias": False,
                "activation_function": "torch.nn.modules.linear.Identity"}  # fmt: skip


def test_the_real_minilm() -> None:
    assert is_embedding_model(real_minilm())
    found = read_sentence_folder(real_minilm())
    assert (found.pooling, found.normalize, found.max_tokens) == ("mean", True, 256)
    assert not found.notes and not found.prompts and not found.dense


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": ["lasttoken"]}, "last"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"word_embedding_dimension": 8}, "mean"),
    ],
)
def test_poolings_old_and_new(tmp_path: Path, config: dict[str, Any], pooling: str) -> None:
    assert read_sentence_folder(folder_of(tmp_path, *WHOLE, pooling=config)).pooling == pooling


def test_all_that_is_said(tmp_path: Path) -> None:
    dense = ((DENSE, "2_Dense"), (DENSE, "3_Dense"))
    folder = folder_of(
        tmp_path,
        *WHOLE[:2],
        *dense,
        (NORMALIZE, "4_Normalize"),
        config_sentence_transformers={
            "prompts": {"query": "Q: ", "document": ""},
            "default_prompt_name": "query",
        },
        sentence_bert_config={"do_lower_case": True},
        tokenizer_config={"model_max_length": 77},
    )
    found = read_sentence_folder(folder)
    assert found.prompts == {"query": "Q: "} and found.default_prompt == "query"
    assert (found.max_tokens, found.lowercase, found.normalize) == (77, True, True)
    assert [(one.inputs, one.outputs, one.bias, one.activation) for one in found.dense] == [
        (8, 16, False, "Identity")
    ] * 2
    assert not read_sentence_folder(folder_of(tmp_path / "b", *WHOLE[:2])).normalize


def test_a_plain_encoder_is_assumed_to_pool_by_mean(tmp_path: Path) -> None:
    write(tmp_path / "config.json", {"model_type": "xlm-roberta"})
    assert is_embedding_model(tmp_path)
    found = read_sentence_folder(tmp_path)
    assert found.pooling == "mean" and len(found.notes) == 1 and "assumed" in found.notes[0]


@pytest.mark.parametrize(
    ("config", "embeds"),
    [
        ({"model_type": "qwen3"}, False),
        ({"model_type": "gemma3_text"}, False),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, True),
        ({"model_type": "modernbert"}, True),
        ({"model_type": "of tomorrow"}, False),
    ],
)
def test_what_is_an_embedding_model(tmp_path: Path, config: dict[str, Any], embeds: bool) -> None:
    write(tmp_path / "config.json", config)
    assert is_embedding_model(tmp_path) is embeds
    folder_of(tmp_path, *WHOLE)
    assert is_embedding_model(tmp_path)


REFUSED: dict[str, tuple[tuple[tuple[str, str], ...], dict[str, Any], str]] = {
    "max": (WHOLE, {"pooling": {"pooling_mode": "max"}}, "pools by max"),
    "two at once": (WHOLE, {"pooling": {"pooling_mode": ["cls", "mean"]}}, "cls and mean"),
    "weighted": (WHOLE, {"pooling": {"pooling_mode_weightedmean_tokens": True}}, "weightedmean"),
    "another module": ((*WHOLE, ("x.LSTM", "3_LSTM")), {}, "LSTM"),
    "normalised before dense": ((*WHOLE, (DENSE, "3_Dense")), {}, "whet computes"),
    "residual": (
        (*WHOLE[:2], (DENSE, "2_Dense")), {"dense": DENSE_CONFIG | {"use_residual": True}}, "adds its input"
    ),
    "prompt left out": (
        WHOLE,
        {
            "pooling": {"pooling_mode": "mean", "include_prompt": False},
            "config_sentence_transformers": {"prompts": {"q": "Q"}},
        },
        "leaves the prompt",
    ),
    "folders of old": (((TRANSFORMER, "0_Transformer"), *WHOLE[1:]), {}, "0_Transformer"),
    "chat template": (
        WHOLE, {"sentence_bert_config": {"modality_config": {"message": {}}}}, "chat template"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_reason(tmp_path: Path, case: str) -> None:
    modules, settings, words = REFUSED[case]
    with pytest.raises(WhetError, match=words) as error:
        read_sentence_folder(folder_of(tmp_path, *modules, **settings))
    assert error.value.code == "embedding.unsupported" and error.value.hint


def test_a_folder_that_lacks_or_leaves_its_parts(tmp_path: Path) -> None:
    folder, outside = folder_of(tmp_path / "a", *WHOLE), tmp_path / "b"
    folder_of(outside, (TRANSFORMER, ""), (POOLING, "../c/1_Pooling"))
    (folder / "1_Pooling" / "config.json").unlink()
    for one in (folder, outside):
        with pytest.raises(WhetError) as error:
            read_sentence_folder(one)
        assert error.value.code == "embedding.broken"
