"""The methods that test_data_parallel.py leaves out: two processes have the losses of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.rank_recipes import (
    compared,
    method_recipe,
    ranked,
    rated,
    rewarded,
    sorted_words,
)
from support.ranks import assert_alike, drive
from support.tiny_csm import BOOKS, build_tiny_csm
from support.tiny_embedders import save_transformer
from support.tiny_models import build_tiny_model
from support.tiny_vision import build_seeing, colour_rows
from support.tiny_whisper import build_tiny_whisper, write_words

from whet.engine.methods.jobs import METHODS
from whet.engine.parallel.methods import SEVERAL, alone_because

SPOKEN = ("yes", "no", "hello", "please")


def from_file(recipe: Any, rows: Path) -> Any:
    """The recipe on rows that are there already, a fifth of them held out."""
    return recipe | {"data": {"train": str(rows), "eval_fraction": 0.2}}


def words_said(folder: Path, model: Path) -> Any:
    rows = write_words(folder / "words", 27)
    return from_file(method_recipe(folder, model, "speech", [], [], language="en"), rows)


def frames_spoken(folder: Path, model: Path) -> Any:
    rows: list[dict[str, Any]] = [
        {
            "text": word,
            "codes": np.random.default_rng(list(word.encode())).integers(0, 16, (BOOKS, 3)).tolist(),
            "speaker": 1,
        }
        for word in SPOKEN * 6
    ]
    return method_recipe(folder, model, "tts", rows, rows, layout="csm")


def colours_seen(folder: Path, model: Path) -> Any:
    rows = colour_rows(folder / "rows", 27)
    return from_file(method_recipe(folder, model, "vision", [], [], image_min=28, image_max=64), rows)


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(tmp_path: Path) -> None:
    llama, bert = build_tiny_model(tmp_path / "llama"), save_transformer(tmp_path / "bert", "bert")
    build_seeing(tmp_path / "qwen2_5_vl", "qwen2_5_vl")
    wanted = {
        "orpo": compared(tmp_path, llama, loss="orpo"),
        "kto": rated(tmp_path, llama),
        "reward": rewarded(tmp_path, llama),
        "tokens": sorted_words(tmp_path, bert),
        "reranker": ranked(tmp_path, bert),
        "speech": words_said(tmp_path, build_tiny_whisper(tmp_path / "whisper")),
        "frames": frames_spoken(tmp_path, build_tiny_csm(tmp_path / "csm" / "model")),
        "vision": colours_seen(tmp_path, tmp_path / "qwen2_5_vl"),
    }
    runs = {
        f"{name}, {ranks}": (recipe, [{"ranks": ranks}])
        for name, recipe in wanted.items()
        for ranks in (1, 2)
    }
    seen = drive(tmp_path, runs)
    for name in wanted:
        assert len(seen[f"{name}, 2"]["steps"]) == 7
        assert_alike(seen[f"{name}, 1"], seen[f"{name}, 2"])


def test_every_method_is_shared_or_says_why_not() -> None:
    assert set(METHODS) >= SEVERAL
    assert [method for method in METHODS if alone_because(method) is not None] == ["grpo"]
    assert "grpo" in str(alone_because("grpo"))
