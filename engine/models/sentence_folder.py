"""An embedding model's folder: the encoder, and what turns its hidden states into one vector. Light.

Read from what sentence-transformers saves (modules.json and a folder a module), or assumed, with a note, for
an encoder that plain transformers saved.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..errors import WhetError
from .families import family_of

Pooling = Literal["mean", "cls", "last"]
MODES: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
LEGACY_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Keys of a pooling module's config.json before sentence-transformers 6 -> today's names."""
MODULES = "modules.json"
PROMPTS = {"query": ("query",), "document": ("document", "passage", "corpus")}
"""What a text is -> names of its prompt, in the order in which sentence-transformers looks."""
NEXT_TOKEN = "LogitScore"
"""A module of rerankers, which are language models otherwise."""


@dataclass(frozen=True)
class Dense:
    """A linear map of the pooled vector.

    ``activation`` is the last part of its class's name, ``Identity`` where there is none.
    """

    folder: Path
    inputs: int
    outputs: int
    bias: bool
    activation: str


@dataclass(frozen=True)
class SentenceFolder:
    """How an embedding model makes one vector of a text.

    Args:
        folder: the whole model; config.json, weights and tokenizer of the encoder lie in it.
        pooling: of the last hidden states, special tokens included.
        dense: applied to the pooled vector, in this order.
        normalize: the vector is divided by its length at the end.
        prompts: name -> text that was put before the input while training, e.g. ``query``.
        default_prompt: name of the one that is always put there.
        max_tokens: longer texts are cut, special tokens included.
        lowercase: the text is lowercased before it reaches the tokenizer.
        notes: what was assumed.
    """

    folder: Path
    pooling: Pooling
    dense: tuple[Dense, ...] = ()
    normalize: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    max_tokens: int | None = None
    lowercase: bool = False
    notes: tuple[str, ...] = ()


def answers(folder: Path) -> bool:
    """Whether sentence-transformers saved it as a reranker that reads its score off the next token."""
    modules = folder / MODULES
    return modules.is_file() and NEXT_TOKEN in modules.read_text(encoding="utf-8")


def is_embedding_model(folder: Path) -> bool:
    """Whether a model folder gives vectors, not next tokens."""
    if (folder / MODULES).is_file():
        return not answers(folder)
    config = _json(folder / "config.json")
    return family_of(str(config.get("model_type", ""))).encoder is not None or bool(
        config.get("use_bidirectional_attention")
    )


def configured_prompts(folder: Path) -> dict[str, str]:
    """The prompts that a folder was saved with, by what they stand before: ``query``, ``document``."""
    return by_role(_json(folder / "config_sentence_transformers.json").get("prompts") or {})


def by_role(prompts: Mapping[str, str | None]) -> dict[str, str]:
    """Of named prompts, the first of each role; empty ones say nothing."""
    found = {
        role: next((text for name in names if (text := prompts.get(name))), None)
        for role, names in PROMPTS.items()
    }
    return {role: text for role, text in found.items() if text}


def read_sentence_folder(folder: Path) -> SentenceFolder:
    """Read modules.json and what it names; without one, mean pooling is assumed.

    Raises:
        WhetError: ``embedding.unsupported`` for modules and poolings that whet does not compute,
            ``embedding.broken`` for a folder that lacks what it names.
    """
    listed = folder / MODULES
    if not listed.is_file():
        note = (
            "The folder does not say how hidden states become one vector (no modules.json, which "
            "sentence-transformers writes): mean pooling and vectors of length 1 are assumed."
        )
        return SentenceFolder(folder, "mean", normalize=True, notes=(note,))
    modules = [_module(folder, one) for one in json.loads(listed.read_text(encoding="utf-8"))]
    kinds = [kind for kind, _ in modules]
    order = [kind for kind in kinds if kind != "Dense"]
    if order not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]) or (
        kinds[-1] == "Dense" and "Normalize" in kinds
    ):
        raise _unsupported(
            f"{listed} lists {', '.join(kinds)}; whet computes Transformer, Pooling, any Dense, Normalize."
        )
    paths = {kind: path for kind, path in modules if kind != "Dense"}
    if paths["Transformer"] != folder.resolve():
        raise _unsupported(
            f"The encoder lies in {paths['Transformer'].name}, where older versions of sentence-transformers "
            "put it: load the model and save it once with today's."
        )
    settings = _json(folder / "config_sentence_transformers.json")
    prompts = {name: text for name, text in (settings.get("prompts") or {}).items() if text}
    transformer = _json(folder / "sentence_bert_config.json")
    tokenizer = _json(folder / "tokenizer_config.json")
    if "message" in (transformer.get("modality_config") or {}):
        raise _unsupported(
            "sentence-transformers puts each text through the chat template before it embeds it (message in "
            "modality_config of sentence_bert_config.json); servers of embedding models take the text alone."
        )
    return SentenceFolder(
        folder,
        _pooling(paths["Pooling"], bool(prompts)),
        dense=tuple(_dense(path) for kind, path in modules if kind == "Dense"),
        normalize="Normalize" in kinds,
        prompts=prompts,
        default_prompt=settings.get("default_prompt_name"),
        max_tokens=_limit(transformer.get("max_seq_length") or tokenizer.get("model_max_length")),
        lowercase=bool(transformer.get("do_lower_case")),
    )


def _module(folder: Path, entry: Mapping[str, Any]) -> tuple[str, Path]:
    """A module's class, without its package, and its folder."""
    path = (folder / str(entry.get("path", ""))).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise _broken(f"{folder / MODULES} points outside the model's folder: {entry.get('path')!r}.")
    return str(entry["type"]).rpartition(".")[2], path


def _pooling(path: Path, prompted: bool) -> Pooling:
    config = _required(path)
    named = config.get("pooling_mode")
    if named is None:
        named = [name for key, name in LEGACY_MODES.items() if config.get(key)] or ["mean"]
    modes = [named] if isinstance(named, str) else list(named)
    if len(modes) != 1 or modes[0] not in MODES:
        raise _unsupported(
            f"{path} pools by {' and '.join(modes)}; llama.cpp pools by mean, first (cls) or last token."
        )
    if prompted and config.get("include_prompt") is False:
        raise _unsupported(f"{path} leaves the prompt's tokens out of the pooling, which llama.cpp cannot.")
    return MODES[modes[0]]


def _dense(path: Path) -> Dense:
    config = _required(path)
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    if config.get("use_residual"):
        raise _unsupported(f"{path} adds its input to its output, which llama.cpp does not compute.")
    return Dense(
        path,
        int(config["in_features"]),
        int(config["out_features"]),
        bool(config.get("bias", True)),
        activation.rpartition(".")[2],
    )


def _required(path: Path) -> dict[str, Any]:
    if not (path / "config.json").is_file():
        raise _broken(f"{path} has no config.json, and modules.json names it.")
    return _json(path / "config.json")


def _limit(tokens: Any) -> int | None:
    """A limit in tokens; absurdly large ones are transformers' way to say that there is none."""
    return int(tokens) if tokens and tokens < 10**9 else None


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def _broken(message: str) -> WhetError:
    return WhetError(
        "embedding.broken", message, "Save the model again with sentence-transformers, or download it again."
    )


def _unsupported(message: str) -> WhetError:
    hint = "Use the model with sentence-transformers, which computes all of it."
    return WhetError("embedding.unsupported", message, hint)
