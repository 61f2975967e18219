"""A hub cache with models of real shapes: sizes, a small tokenizer, a weight file without weights."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from support.tiny_models import EOS, TURN_END, write_tokenizer

from whet.engine.models.known import known_model

COMMIT = "a" * 40
NO_TENSORS = (2).to_bytes(8, "little") + b"{}"
NOWHERE = "http://127.0.0.1:9"
"""An address where nobody answers: online by every setting, and the hub cannot be reached."""


def cache_models(cache: Path, names: Iterable[str], **config: Any) -> None:
    """Lay known models out as the hub's client does after a download, ``config`` over their own."""
    for name in names:
        known = known_model(name)
        assert known is not None, name
        repo = cache / f"models--{name.replace('/', '--')}"
        snapshot = repo / "snapshots" / COMMIT
        snapshot.mkdir(parents=True)
        (repo / "refs").mkdir()
        (repo / "refs" / "main").write_text(COMMIT)
        ids = write_tokenizer(snapshot, "qwen3" if "qwen" in known.family.name else "llama", chat=known.chat)
        (snapshot / "config.json").write_text(json.dumps({**known.config, **config}))
        generation = {"eos_token_id": [ids[TURN_END], ids[EOS]]}
        (snapshot / "generation_config.json").write_text(json.dumps(generation))
        (snapshot / "model.safetensors").write_bytes(NO_TENSORS)
