"""whet's Python API, loaded lazily: importing it costs nothing and import order never matters."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_EXPORTS = {
    "CPOConfig": "python_api.preference_classes",
    "CPOTrainer": "python_api.preference_classes",
    "DPOConfig": "python_api.preference_classes",
    "DPOTrainer": "python_api.preference_classes",
    "FastLanguageModel": "python_api.fast_language_model",
    "FastModel": "python_api.fast_model",
    "FastSentenceTransformer": "python_api.fast_sentence_transformer",
    "FastVisionModel": "python_api.fast_vision_model",
    "GRPOConfig": "python_api.rl_classes",
    "GRPOTrainer": "python_api.rl_classes",
    "KTOConfig": "python_api.preference_classes",
    "KTOTrainer": "python_api.preference_classes",
    "ORPOConfig": "python_api.preference_classes",
    "ORPOTrainer": "python_api.preference_classes",
    "PatchDPOTrainer": "python_api.preference_classes",
    "PatchFastRL": "python_api.rl_classes",
    "RLOOConfig": "python_api.rl_classes",
    "RLOOTrainer": "python_api.rl_classes",
    "RewardConfig": "python_api.preference_classes",
    "RewardTrainer": "python_api.preference_classes",
    "SFTConfig": "python_api.trl_classes",
    "SFTTrainer": "python_api.trl_classes",
    "SentenceTransformerTrainer": "python_api.sentence_trainer",
    "UnslothTrainer": "python_api.trl_classes",
    "UnslothTrainingArguments": "python_api.trl_classes",
    "UnslothVisionDataCollator": "python_api.vision_collator",
    "VisionDataCollator": "python_api.vision_collator",
    "WhetTrainer": "python_api.trl_classes",
    "WhetTrainingArguments": "python_api.trl_classes",
    "get_chat_template": "python_api.chat_templates",
    "is_bf16_supported": "python_api.precision",
    "is_bfloat16_supported": "python_api.precision",
    "standardize_sharegpt": "python_api.chat_templates",
    "train_on_responses_only": "python_api.chat_templates",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'whet.engine' has no attribute {name!r}")
    return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
