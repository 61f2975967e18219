"""Models whose head gives classes or scores, not next tokens: which folder is one, what it cannot become.
Light."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import WhetError

TASKS = {"SEQ_CLS": "ForSequenceClassification", "TOKEN_CLS": "ForTokenClassification"}
"""PEFT's names -> how transformers' classes end."""
KINDS = ("classification", "token_classification", "reranker", "reward")
"""Methods that train one."""


def head_task(folder: Path) -> str | None:
    """PEFT's name of the task of an adapter's or a whole model's folder; None for any other."""
    task = _json(folder / "adapter_config.json").get("task_type")
    if task in TASKS:
        return str(task)
    classes = _json(folder / "config.json").get("architectures") or [""]
    return next((task for task, end in TASKS.items() if str(classes[0]).endswith(end)), None)


def no_gguf() -> WhetError:
    """Why such a model has none."""
    return WhetError(
        "gguf.unsupported",
        "A head of classes or scores leaves as 16- or 32-bit weights only: llama.cpp answers with text or "
        "vectors, and what it makes of the few heads it reads is not proven.",
        "Export the merged weights instead (export.merged), for transformers or sentence-transformers.",
    )


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    value: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return value
