"""The language and task of a Whisper model, in its tokenizer and in its generation settings."""

from __future__ import annotations

from typing import Any

from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

from ..errors import WhetError

TASKS = ("transcribe", "translate")


def set_language(loaded: Any, language: str | None, task: str | None) -> None:
    """What the tokenizer writes before a text, and what `generate` does unless told otherwise.

    Args:
        loaded: the model and its processor.
        language: a name or a code; None changes nothing.
        task: `transcribe` or `translate`.

    Raises:
        WhetError: ``python_api.whisper`` for another model, or an unknown name.
    """
    if language is None and task is None:
        return
    kind = loaded.model.config.model_type
    if kind != "whisper":
        raise WhetError(
            "python_api.whisper",
            f"whisper_language and whisper_task mean nothing to a model of type {kind}.",
            "Leave them out.",
        )
    spoken = None if language is None else language.lower()
    code = spoken if spoken in LANGUAGES or spoken is None else TO_LANGUAGE_CODE.get(spoken)
    if (spoken is not None and code is None) or task not in (None, *TASKS):
        raise WhetError(
            "python_api.whisper",
            f"whisper_language={language!r}, whisper_task={task!r}: one of them is unknown.",
            f"A language is a name or code such as 'English' or 'en'; a task one of {', '.join(TASKS)}.",
        )
    settings = loaded.model.generation_config
    if settings.to_dict().get("is_multilingual") is False:
        if code not in (None, "en") or task == "translate":
            raise WhetError(
                "python_api.whisper",
                f"whisper_language={language!r}, whisper_task={task!r}: this model writes English alone.",
                "Leave them out, or load a multilingual Whisper.",
            )
        return  # its texts begin with neither
    loaded.tokenizer.set_prefix_tokens(language=code, task=task)
    settings.language, settings.task = code, task
    settings.forced_decoder_ids = None  # the older way to say it, which wins over the newer
