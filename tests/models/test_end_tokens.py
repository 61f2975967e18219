"""What was trained to end a turn is written where generation looks for its end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.tiny_models import BOS, EOS, TURN_END, build_tiny_model
from support.tiny_runs import create_run, next_attempt, tiny_recipe, write_chat_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from whet.engine.errors import WhetError
from whet.engine.methods.sft.job import train
from whet.engine.models.end_tokens import add_end_tokens


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model whose generation config knows the end of a text alone."""
    path = build_tiny_model(tmp_path_factory.mktemp("ends") / "model", "llama")
    file = path / "generation_config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, "eos_token_id": values["eos_token_id"][1]}))
    return path


def test_ids_are_added_once_and_in_order(base: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    eos, end = (tokenizer.convert_tokens_to_ids(token) for token in (EOS, TURN_END))
    assert not add_end_tokens(model, tokenizer, [EOS]) and model.generation_config.eos_token_id == eos
    assert add_end_tokens(model, tokenizer, [TURN_END, EOS])
    assert model.generation_config.eos_token_id == [eos, end]
    assert not add_end_tokens(model, tokenizer, [TURN_END])
    with pytest.raises(WhetError) as error:
        add_end_tokens(model, tokenizer, ["<|nothing|>"])
    assert error.value.code == "model.end_tokens"


@pytest.mark.parametrize(
    ("sections", "ends"),
    [
        ({}, None),
        ({"model": {"end_tokens": [TURN_END]}}, [EOS, TURN_END]),
        # The end of turn of a template that the recipe chose is among them by itself.
        ({"data": {"template": "{{ bos_token }}{% for m in messages %}{{ m.role + ' ' + m.content + "
                               "'<|begin|>' }}{% endfor %}"}}, [EOS, BOS]),
    ],
    ids=["nothing asked", "named in the recipe", "of a chosen template"],
)  # fmt: skip
def test_a_run_writes_them_with_its_weights(
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sections: dict[str, dict[str, object]],
    ends: list[str] | None,
) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    rows = write_chat_rows(tmp_path / "rows.jsonl", 120)
    sections = {**sections, "training": {"max_steps": 1, "save_every": 1}}
    folder = train(next_attempt(create_run(tiny_recipe(base, rows, **sections))))
    file = folder / "generation_config.json"
    if ends is None:
        assert not file.exists()
        return
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert json.loads(file.read_text())["eos_token_id"] == tokenizer.convert_tokens_to_ids(ends)
