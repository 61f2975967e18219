"""A tiny model and a small chat file, built once for this folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.tiny_models import build_tiny_model


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("pyapi") / "llama", "llama")


@pytest.fixture(scope="session")
def sharegpt_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 ShareGPT rows with an answer that can be learnt."""
    path = tmp_path_factory.mktemp("pyapi") / "chats.jsonl"
    rows = [
        {
            "conversations": [
                {"from": "human", "value": f"What is number {n}?"},
                {"from": "gpt", "value": f"It is the number {n}."},
            ]
        }
        for n in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
