"""Which of transformers' classes loads a model, and whose path it takes: language, vision, or any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import transformers
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, PretrainedConfig

from ..errors import WhetError

Way = Literal["language", "vision", "other"]
LANGUAGE = ("AutoModelForCausalLM",)
VISION = ("AutoModelForImageTextToText", "AutoModelForVision2Seq", "AutoModelForMultimodalLM")
TASKS = {"ForSequenceClassification": "SEQ_CLS", "ForTokenClassification": "TOKEN_CLS"}
"""How the classes of models with a head end -> PEFT's name of the task."""


def class_for(auto_model: Any, config: PretrainedConfig, folder: Path) -> Any:
    """The class that loads a folder: the one that was named, else the one its config.json names.

    Raises:
        WhetError: ``python_api.auto_model`` where neither is a class with ``from_pretrained``.
    """
    if auto_model is not None:
        if not callable(getattr(auto_model, "from_pretrained", None)):
            raise WhetError(
                "python_api.auto_model",
                f"auto_model={auto_model!r} is no class of transformers.",
                "Pass the class itself, e.g. auto_model=AutoModelForSequenceClassification.",
            )
        return auto_model
    name = str((config.architectures or [""])[0])
    if name.endswith("ForCausalLM"):
        return transformers.AutoModelForCausalLM
    found = getattr(transformers, name, None)
    if found is None or not _does_something(name):
        raise WhetError(
            "python_api.auto_model",
            f"{folder} is a {name or config.model_type}, which says no task to train it for.",
            "Name one: auto_model=AutoModelForSequenceClassification, AutoModelForSeq2SeqLM, "
            "WhisperForConditionalGeneration, ...; embedding models go to FastSentenceTransformer.",
        )
    return found


def path_of(kind: Any, config: PretrainedConfig) -> Way:
    """Of a class that loads a model of this configuration."""
    if kind.__name__ in LANGUAGE or _is_one_of(kind, MODEL_FOR_CAUSAL_LM_MAPPING):
        return "language"
    if kind.__name__ in VISION:
        return "vision"
    sees = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return "vision" if sees and kind is MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)] else "other"


def path_of_model(base: Any) -> Way:
    """Of a loaded model without its PEFT wrapper."""
    name = next(kind.__name__ for kind in type(base).__mro__ if kind.__module__.startswith("transformers"))
    return "language" if name.endswith("ForCausalLM") else path_of(type(base), base.config)


def head_of(base: Any) -> str | None:
    """PEFT's name of the task of a model with a head of classes; None for any other."""
    name = type(base).__name__
    return next((task for end, task in TASKS.items() if name.endswith(end)), None)


def _does_something(name: str) -> bool:
    return "For" in name


def _is_one_of(kind: Any, mapping: Any) -> bool:
    return kind.__name__.endswith("ForCausalLM") and kind in set(mapping.values())
