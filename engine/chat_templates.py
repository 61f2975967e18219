"""Module path for scripts: `from whet.engine.chat_templates import get_chat_template`. Heavy."""

from __future__ import annotations

from .python_api.chat_templates import get_chat_template, standardize_sharegpt, train_on_responses_only

__all__ = ["get_chat_template", "standardize_sharegpt", "train_on_responses_only"]
