"""An embedding model ready to train: encoder, pooling and what follows it, with an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

from ...errors import WhetError
from ...models.adapters import add_adapter, hold_trained_in_fp32
from ...models.families import family_of
from ...models.loading import DTYPES
from ...models.own_code import refused_code
from ...models.quantization import quantization_config
from ...models.sentence_folder import MODULES
from ...plan import Plan
from .section import EmbeddingSection

MODES = {"mean": "mean", "cls": "cls", "last": "lasttoken"}


def load_embedder(plan: Plan, path: Path, trust_remote_code: bool = False) -> SentenceTransformer:
    """The plan's model from a local folder, with a fresh adapter that changes no vector yet.

    A folder without sentence-transformers' modules.json gets pooling (the last token for decoders, else the
    mean, unless the recipe names one) and vectors of length one.

    Raises:
        WhetError: ``model.load``, ``model.remote_code``, ``adapter.*``.
    """
    resolved = plan.resolved
    dtype = DTYPES[resolved.compute_dtype]
    options: dict[str, Any] = {
        "dtype": DTYPES.get(resolved.base_precision, dtype),
        "use_safetensors": True,
        "local_files_only": True,
        "trust_remote_code": trust_remote_code,
    }
    quantization = quantization_config(resolved.base_precision, dtype)
    if quantization is not None:
        options |= {"quantization_config": quantization, "device_map": {"": resolved.device}}
    try:
        model = _load(path, plan, options, trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise refused_code(path, error) or WhetError(
            "model.load",
            f"{path} could not be loaded as an embedding model: {str(error).strip().splitlines()[0]}",
            "Check that the folder holds config.json and the complete safetensors weights.",
        ) from error
    model.max_seq_length = resolved.max_length
    _set_prompts(model, plan.recipe.method)
    _freeze_or_adapt(model, plan, path)
    return model


def _load(path: Path, plan: Plan, options: dict[str, Any], trusted: bool) -> SentenceTransformer:
    device, section = plan.resolved.device, plan.recipe.method
    assert isinstance(section, EmbeddingSection)
    pooling: str = section.pooling
    if (path / MODULES).is_file():
        own = {name: value for name, value in options.items() if name != "trust_remote_code"}
        model = SentenceTransformer(
            str(path), device=device, model_kwargs=own, local_files_only=True, trust_remote_code=trusted
        )
        if pooling != "auto":
            for part in model:
                if isinstance(part, Pooling):
                    part.pooling_mode = MODES[pooling]
        return model
    encoder = Transformer(str(path), model_kwargs=options, config_kwargs={"trust_remote_code": trusted})
    if pooling == "auto":
        decoder = family_of(plan.model.model_type).encoder is None
        pooling = "last" if decoder else "mean"
    pool = Pooling(encoder.get_embedding_dimension(), MODES[pooling])
    return SentenceTransformer(modules=[encoder, pool, Normalize()], device=device)


def _set_prompts(model: SentenceTransformer, section: Any) -> None:
    """The recipe's prompts, by the names under which sentence-transformers looks for them."""
    given = {"query": section.query_prompt, "document": section.document_prompt}
    model.prompts = {**model.prompts, **{name: text for name, text in given.items() if text is not None}}


def _freeze_or_adapt(model: SentenceTransformer, plan: Plan, path: Path) -> None:
    recipe = plan.recipe
    encoder: Any = model[0]
    if recipe.adapter.kind == "none":
        hold_trained_in_fp32(model)
    else:
        model.requires_grad_(False)
        name = recipe.model.name
        base = str(path) if Path(name).exists() or name == "demo" else name
        encoder.model = add_adapter(
            encoder.model,
            recipe.adapter,
            recipe.training.seed,
            name=base,
            revision=recipe.model.revision,
            task="FEATURE_EXTRACTION",
        )
    for path_, param in encoder.model.named_parameters():
        if ".pooler." in f".{path_}":  # BERT's, which no pooling of ours reads
            param.requires_grad = False


def device_of(model: SentenceTransformer) -> torch.device:
    """What it computes on."""
    return torch.device(model.device)
