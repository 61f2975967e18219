"""What a model is, from its JSON files alone: sizes, parameters, tokenizer, quantization. No weights are
read.

Families whet knows are counted from config.json. Others, and models with parts a family's layout leaves out
(a vision tower), are counted from the safetensors headers where the files are there, and otherwise by a guess
that says it is one (``parameters.exact`` is False).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import WhetError
from . import decoder_layout, encoder_layout, layout, whisper_layout
from .families import Family, family_of
from .layout import LinearModule, Parameters
from .locate import missing_weights, resolve_model
from .stated import Stated

__all__ = ["LinearModule", "ModelFacts", "Parameters", "match_targets", "read_model_facts", "resolve_model"]


class ModelFacts(BaseModel):
    """Everything the planner, the checks and the front ends know about a model. JSON-serialisable."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path
    name: str = Field(description="As the recipe names it.")
    model_type: str
    architecture: str = Field(description="Class name in config.json, e.g. LlamaForCausalLM; may be empty.")
    family: str
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    experts: int = Field(default=0, description="Experts of a sparse layer; 0 without.")
    experts_per_token: int = Field(default=0, description="Of them, those that one token passes.")
    sparse_mlp_width: int = Field(
        default=0, description="Widest MLP a token passes where there are experts: its own side by side."
    )
    vocab_size: int = Field(description="config.json's.")
    embedding_rows: int = Field(description="Rows of the input embedding; from the weights where present.")
    tied: bool = Field(description="The output head is the input embedding.")
    max_positions: int | None
    sliding_window: int | None = None
    rope: dict[str, Any] = Field(default_factory=dict)
    dtype: str = Field(description="Of the stored weights: bfloat16, float16 or float32.")
    quantization: str | None = Field(
        description="nf4, fp4, int8 or another method's name; None when 16/32-bit."
    )
    quantization_config: dict[str, Any] | None = None
    parameters: Parameters
    weight_files: list[str]
    missing_weight_files: list[str]
    weight_bytes: int
    codebooks: tuple[int, int] | None = Field(
        default=None, description="Codes of a spoken frame, and of how many each is one; None for others."
    )
    has_tokenizer_json: bool
    has_chat_template: bool
    bos_id: int | None
    eos_ids: list[int]
    pad_id: int | None

    @property
    def mlp_width(self) -> int:
        """Widest MLP that a token passes in a layer."""
        return self.sparse_mlp_width or self.intermediate_size

    def digest(self) -> str:
        """Hash of what decides speed and memory; the same for a fine-tuned copy of the same model."""
        shape = self.model_dump(
            mode="json",
            include={
                "model_type", "hidden_size", "layers", "heads", "kv_heads", "head_dim", "intermediate_size",
                "experts", "experts_per_token", "sparse_mlp_width", "embedding_rows", "tied",
                "sliding_window", "quantization",
            },
        )  # fmt: skip
        return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:16]


MOST = {"layers": 10_000, "heads": 100_000, "kv_heads": 100_000}
MOST_WIDE = 2**31 - 1
"""Beyond any model, and before loops over them take long."""
DEEPEST = 60
"""Levels of a file's values. Facts are written into plans, whose library writes 255 levels and no more."""
INNER = {
    name: {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "intermediate_size": inner,
    }
    for name, inner in (("llama", 11008), ("mistral", 14336))
}
"""The classes' sizes, which the files of LLaVA and Pixtral leave out of their text_config."""


def read_model_facts(path: Path, name: str | None = None) -> ModelFacts:
    """Read ``path``'s config.json, tokenizer files and weight headers.

    Raises:
        WhetError: ``model.config`` when config.json is not JSON, lacks what every decoder states, or says
            what cannot be; ``model.index``, ``model.broken_weights`` for weights that cannot be read.
    """
    try:
        return _read(path, name)
    except ValidationError as error:  # of ids and positions, which pass through as they are
        raise WhetError(
            "model.config",
            f"The JSON files of {path} say what no model's do: {error}",
            "Compare its config.json with that of a model of the same kind, or download it again.",
        ) from error


def _read(path: Path, name: str | None) -> ModelFacts:
    file = path / "config.json"
    read = _json(file)
    whole, inner = Stated(read, file), text_config(read)
    family = family_of(whole.get("model_type", ""))
    if not family.model_types:
        family = family_of(Stated(inner, file).get("model_type", ""))
    sees = bool(whole.get("vision_config"))
    values = {**family.defaults, **(INNER.get(family.name, {}) if sees else {}), **inner}
    books = None
    if family.name == "csm":  # vocab_size there is a codebook's, and what is tied are the codebooks
        config = Stated(values, file)
        books = config["num_codebooks"], config["vocab_size"]
        values |= {"vocab_size": config["text_vocab_size"], "tie_word_embeddings": False}
    config = Stated(values, file)
    generation = _optional_json(path / "generation_config.json")
    tokenizer = _optional_json(path / "tokenizer_config.json")
    sizes = _sizes(config, path)
    files = sorted(path.glob("*.safetensors"))
    tensors = layout.read_headers(files)
    missing = missing_weights(path)
    # Composite configurations say it twice, and not always the same.
    tied = _tied(
        Stated({}, file) if sees and tensors and not missing else config, tensors, complete=not missing
    )
    embedding = layout.embedding_rows(tensors) or sizes["vocab_size"]
    quantization = config.get("quantization_config")
    if (sees or not family.exact) and tensors and not missing and quantization is None:
        parameters = layout.from_headers(tensors, tied)
    else:
        parameters = _count(family, config, sizes, embedding, tied)
        parameters = parameters.guessed() if sees else parameters  # without the image encoder
    eos = generation.get("eos_token_id", config.get("eos_token_id"))
    named = family.model_types[0] if not family.exact and family.model_types else config.get("model_type", "")
    if sees and not family_of(whole.get("model_type", "")).model_types:
        named = whole.get("model_type", "")  # a known decoder inside is not the whole model
        family = family_of(named)
    return ModelFacts(
        path=path,
        name=name or str(path),
        model_type=named,
        architecture=(config.get("architectures") or [""])[0],
        family=family.name,
        **sizes,
        experts=decoder_layout.expert_count(config) if family.experts else 0,
        experts_per_token=int(config.get("num_experts_per_tok") or 0) if family.experts else 0,
        sparse_mlp_width=decoder_layout.sparse_mlp_width(family, config, sizes["intermediate_size"]),
        embedding_rows=embedding,
        tied=tied,
        max_positions=config.get("max_position_embeddings", config.get("max_target_positions")),
        sliding_window=config.get("sliding_window") if config.get("use_sliding_window", True) else None,
        rope=_rope(config),
        codebooks=books,
        dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch."),
        quantization=_quantization_name(quantization),
        quantization_config=quantization,
        parameters=parameters,
        weight_files=[file.name for file in files],
        missing_weight_files=missing,
        weight_bytes=sum(file.stat().st_size for file in files),
        has_tokenizer_json=(path / "tokenizer.json").is_file(),
        has_chat_template=(path / "chat_template.jinja").is_file()
        or (path / "chat_template.json").is_file()
        or bool(tokenizer.get("chat_template")),
        bos_id=config.get("bos_token_id"),
        eos_ids=[] if eos is None else (list(eos) if isinstance(eos, list) else [eos]),
        pad_id=generation.get("pad_token_id", config.get("pad_token_id")),
    )


def _count(family: Family, config: Stated, sizes: dict[str, int], rows: int, tied: bool) -> Parameters:
    """By the family's layout; a family that leaves parts out is counted without them, and that is a guess."""
    if family.name == "whisper":
        return whisper_layout.from_config(config, rows)
    if family.encoder is not None:
        wanted = ("hidden_size", "layers", "heads", "intermediate_size")
        return encoder_layout.from_config(family, config, **{name: sizes[name] for name in wanted}, rows=rows)
    counted = decoder_layout.from_config(family, config, **sizes, rows=rows, tied=tied)
    return counted if family.exact else counted.guessed()


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The language model's part of a config: composite models nest it, keeping shared keys outside."""
    inner = config.get("text_config")
    if not isinstance(inner, dict):
        return config
    shared = {key: config[key] for key in ("architectures", "quantization_config") if key in config}
    return {**shared, **inner}


def _sizes(config: Stated, path: Path) -> dict[str, int]:
    """The sizes every decoder states, under GPT-2's and Whisper's names too."""

    def need(*keys: str) -> int:
        for key in keys:
            if config.get(key) is not None:
                return int(config[key])
        raise WhetError(
            "model.config",
            f"{path / 'config.json'} states no {keys[0]} (model_type={config.get('model_type')!r}).",
            "whet fine-tunes decoder language models; check that this is one.",
        )

    hidden = need("hidden_size", "n_embd", "d_model")
    heads = need("num_attention_heads", "n_head", "encoder_attention_heads")
    family = family_of(config.get("model_type", ""))
    sizes = {
        "hidden_size": hidden,
        "layers": need("num_hidden_layers", "n_layer", "encoder_layers"),
        "heads": heads,
        "kv_heads": int(config.get("num_key_value_heads") or heads),
        "head_dim": _head_dim(config, family, hidden, heads),
        "intermediate_size": int(config.get("intermediate_size") or config.get("n_inner") or 4 * hidden),
        "vocab_size": need("vocab_size"),
    }
    odd = {size: number for size, number in sizes.items() if not 0 < number <= MOST.get(size, MOST_WIDE)}
    if odd:
        raise WhetError(
            "model.config",
            f"{path / 'config.json'} states {', '.join(f'{size}={number}' for size, number in odd.items())}.",
            "No model has such sizes; download the file again.",
        )
    return sizes


def _head_dim(config: Stated, family: Family, hidden: int, heads: int) -> int:
    """Width of a query head; where attention is latent, ``head_dim`` in the file is the rotated part only."""
    if family.attention == "latent":
        return int(config["qk_nope_head_dim"] + config["qk_rope_head_dim"])
    return int(config.get("head_dim") or hidden // max(heads, 1))


def _tied(config: Stated, tensors: dict[str, tuple[int, ...]], *, complete: bool) -> bool:
    if "tie_word_embeddings" in config or not (tensors and complete):
        return bool(config.get("tie_word_embeddings", False))
    return not any(name.endswith("lm_head.weight") for name in tensors)


def _rope(config: Stated) -> dict[str, Any]:
    """Rotary settings; transformers 5 writes `rope_parameters`, earlier files two separate keys."""
    if isinstance(config.get("rope_parameters"), dict):
        return dict(config["rope_parameters"])
    found = {key: config[key] for key in ("rope_theta", "rope_scaling") if config.get(key) is not None}
    return found


def _quantization_name(config: dict[str, Any] | None) -> str | None:
    if config is None:
        return None
    if config.get("load_in_4bit"):
        return str(config.get("bnb_4bit_quant_type", "fp4"))
    if config.get("load_in_8bit"):
        return "int8"
    return str(config.get("quant_method", "unknown"))


def match_targets(facts: ModelFacts, targets: Sequence[str] | str) -> dict[str, list[LinearModule]]:
    """Which linear layers each target name takes, by PEFT's rule: the whole module path or its end.

    ``all-linear`` takes every linear layer but the head. A target with a layer number takes that layer only.
    In a mixture of experts the experts' old names (``gate_proj``, ``w1``) and ``gate`` mean the stacked
    parameters of all sparse layers, and PEFT then leaves dense layers of the same name out.
    """
    linear = facts.parameters.linear
    bare = {alias for module in linear for alias in module.aliases}
    if isinstance(targets, str):
        inside = [module for module in linear if module.pattern != "lm_head"]
        return {targets: [module for module in inside if module.bare or _leaf(module.pattern) not in bare]}
    return {
        target: [module for module in linear if _leaf(target) in module.aliases]
        if _leaf(target) in bare
        else [m for module in linear if not module.bare and (m := _match(module, target))]
        for target in targets
    }


def _leaf(path: str) -> str:
    return path.rsplit(".", 1)[-1]


def _match(module: LinearModule, target: str) -> LinearModule | None:
    generic = re.sub(r"(?<![^.])\d+(?![^.])", "*", target)
    if module.pattern != generic and not module.pattern.endswith("." + generic):
        return None
    one_layer = generic != target
    return module.model_copy(update={"count": 1}) if one_layer else module


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise WhetError("model.config", f"{path} is not JSON: {error}", "Download the file again.") from error
    if not isinstance(value, dict):
        raise WhetError("model.config", f"{path} holds a {type(value).__name__}.", "Download the file again.")
    if _levels(value) > DEEPEST:
        raise WhetError(
            "model.config",
            f"{path} nests values more than {DEEPEST} levels deep; a model's own have about five.",
            "Download the file again.",
        )
    return value


def _levels(value: Any) -> int:
    """Levels of lists and mappings, counted no further than one too many."""
    level, levels = [value], 0
    while level and levels <= DEEPEST:
        inner = [
            list(one.values()) if isinstance(one, dict) else one
            for one in level
            if isinstance(one, (dict, list))
        ]
        level, levels = [one for values in inner for one in values], levels + 1
    return levels


def _optional_json(path: Path) -> dict[str, Any]:
    return _json(path) if path.is_file() else {}
