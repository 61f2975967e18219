"""Settings of a recipe that contradict each other; each message names both. Light.

Rules are for new runs: one that an older version started is shown, resumed and exported as it is.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pydantic import ValidationInfo

from .methods.kinds import LANGUAGE_MODELS, NEXT_TOKEN

if TYPE_CHECKING:
    from .recipe import Recipe

STORED: dict[str, Any] = {"stored": True}
"""Context of a validation that reads what was checked when it was written."""
QUANTISED = ("nf4", "int8", "fp8")


def is_new(info: ValidationInfo) -> bool:
    """Whether rules hold for what is validated: not for what is read back from a run."""
    return not (isinstance(info.context, dict) and info.context.get("stored"))


LARGEST = 2**53
"""Beyond it a JSON number is another one to half of the programs that read it."""
MOST_VALUES = 100_000


def refuse_unwritable(values: Any) -> None:
    """Raise ValueError for finite numbers beyond 2^53, halves of surrogate pairs, and values without end (an
    anchor of YAML within itself)."""
    waiting, seen = [values], 0
    while waiting:
        one = waiting.pop()
        seen += 1
        if seen > MOST_VALUES:
            raise ValueError(f"more than {MOST_VALUES:,} values; does an anchor repeat them?")
        if isinstance(one, dict):
            waiting += [*one, *one.values()]
        elif isinstance(one, list):
            waiting += one
        elif isinstance(one, (int, float)) and LARGEST < abs(one) < math.inf:
            size = f"{one:g}" if isinstance(one, float) else f"{one.bit_length()} bits"
            raise ValueError(f"a number is beyond {LARGEST:,}: {size}.")
        elif isinstance(one, str) and any("\ud800" <= letter <= "\udfff" for letter in one):
            raise ValueError(f"{ascii(one)[:60]} holds half of a surrogate pair.")


def check(recipe: Recipe) -> None:
    """Raise ValueError with the first contradiction."""
    for rule in (_held, _trained_ends, _thinking, _asked, _possible, _adapter_file):
        rule(recipe)


def _held(recipe: Recipe) -> None:
    """Refuse ways of holding weights that what is trained, or multiplied, does not allow."""
    if recipe.model.products == "fp8" and recipe.model.precision not in ("fp8", "nf4"):
        raise ValueError(
            f"model.products=fp8 needs model.precision=fp8 or nf4, not {recipe.model.precision}: other "
            "weights are multiplied as they are held."
        )
    if recipe.adapter.kind == "dora" and recipe.model.precision == "fp8":
        raise ValueError(
            "adapter.kind=dora reads the base weights as plain numbers, which model.precision=fp8 does "
            "not hold. Use adapter.kind=lora, or model.precision=bf16 or nf4."
        )
    ends = {"embed_tokens": "embedding_precision", "lm_head": "head_precision"}
    for module, setting in ends.items():
        held = getattr(recipe.model, setting)
        trains = recipe.adapter.kind == "none" or module in recipe.adapter.whole_ends()
        if trains and held in ("int8", "nf4"):
            raise ValueError(
                f"model.{setting}={held} holds {module} quantised, but it trains. "
                f"Set model.{setting}=16bit, or leave {module} out of the adapter."
            )


def _trained_ends(recipe: Recipe) -> None:
    """Refuse embedding and head to be trained twice, or a rate for what does not train."""
    full, language = recipe.adapter.kind == "none", recipe.method.kind in NEXT_TOKEN
    if full and recipe.adapter.train_embeddings:
        raise ValueError("adapter.train_embeddings has no meaning with adapter.kind=none: all weights train.")
    if recipe.adapter.train_embeddings and not language:
        raise ValueError(
            f"adapter.train_embeddings trains a language model's embedding and head, not what "
            f"method.kind={recipe.method.kind} has. Use adapter.modules_to_save."
        )
    rate = recipe.training.embedding_learning_rate
    if rate is not None and not (language and (full or recipe.adapter.whole_ends())):
        raise ValueError(
            f"training.embedding_learning_rate={rate:g} is for a language model's embed_tokens and "
            "lm_head, which do not train. Set adapter.train_embeddings=true, or leave the rate out."
        )


def _thinking(recipe: Recipe) -> None:
    """Refuse what only conversations whose answers are learnt can have."""
    if recipe.data.reasoning != "auto" and recipe.method.kind != "sft":
        raise ValueError(
            f"data.reasoning={recipe.data.reasoning} is for conversations that are fine-tuned on, not for "
            f"method.kind={recipe.method.kind}. Leave it out."
        )
    if recipe.data.reasoning == "each" and recipe.method.supervise == "all":
        raise ValueError(
            "data.reasoning=each learns each answer behind the conversation before it, method.supervise=all "
            "learns all tokens. Use method.supervise=responses."
        )


def _asked(recipe: Recipe) -> None:
    """Refuse questions to a model that answers none in text: it scores, hears or speaks."""
    if recipe.sampling.prompts and recipe.method.kind not in (*LANGUAGE_MODELS, "vision"):
        raise ValueError(
            f"sampling.prompts asks for answers in text, which method.kind={recipe.method.kind} has none of. "
            "Leave it out."
        )


def _possible(recipe: Recipe) -> None:
    """Refuse combinations that no machine can run; each message names both settings."""
    full = recipe.adapter.kind == "none"
    if full and recipe.model.precision in QUANTISED:
        raise ValueError(
            f"adapter.kind=none trains all weights, but model.precision={recipe.model.precision} holds "
            "them quantised. Use adapter.kind=lora, or model.precision=bf16."
        )
    if full and recipe.adapter.modules_to_save:
        raise ValueError("adapter.modules_to_save has no meaning with adapter.kind=none: all weights train.")
    if recipe.data.eval is not None and recipe.data.eval_fraction > 0:
        raise ValueError(
            f"data.eval={recipe.data.eval!r} and data.eval_fraction={recipe.data.eval_fraction} both hold "
            "out rows. Keep one."
        )
    holds_out = recipe.data.eval is not None or recipe.data.eval_fraction > 0
    if recipe.eval.early_stopping is not None and not holds_out:
        raise ValueError(
            f"eval.early_stopping={recipe.eval.early_stopping} needs held-out rows. "
            "Set data.eval or data.eval_fraction."
        )


def _adapter_file(recipe: Recipe) -> None:
    """Refuse an adapter GGUF that llama.cpp could not lay over a base."""
    reason = recipe.beyond_lora()
    if recipe.export.adapter_gguf and reason is not None:
        raise ValueError(
            f"export.adapter_gguf writes LoRA on linear layers only, not {reason}. "
            "Use export.gguf, which merges first."
        )
