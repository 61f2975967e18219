"""Which methods give a model that answers in text. Imports nothing: the first screen asks it."""

from __future__ import annotations

LANGUAGE_MODELS = ("sft", "preference", "grpo")
"""Methods whose rows the chat template writes, and whose result answers in text."""

NEXT_TOKEN = (*LANGUAGE_MODELS, "tts")
"""Methods that train a language model, whatever its tokens mean."""
