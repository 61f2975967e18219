"""An embedding model ready to train: encoder, pooling and what follows it, with an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

from ...errors import WhetError
from ...models.adapters import add_adapter, hold_trained_in_fp32
from ...models.capped_attention import attention_of
from ...models.families import family_of
from ...models.loading import DTYPES, LoadSettings
from ...models.own_code import refused_code
from ...models.quantization import quantization_config
from ...models.sentence_folder import MODULES, by_role
from ...parallel.process_group import own_device
from ...plan import Plan
from ...recipe import AdapterSection
from .section import EmbeddingSection

MODES = {"mean": "mean", "cls": "cls", "last": "lasttoken"}
TASK = "FEATURE_EXTRACTION"


def load_embedder(plan: Plan, path: Path, trust_remote_code: bool = False) -> SentenceTransformer:
    """The plan's model from a local folder, with a fresh adapter that changes no vector yet.

    Raises:
        WhetError: as :func:`load_folder`; ``adapter.*``.
    """
    recipe, section = plan.recipe, plan.recipe.method
    assert isinstance(section, EmbeddingSection)
    model = load_folder(path, plan.resolved, pooling=section.pooling, trust_remote_code=trust_remote_code)
    model.max_seq_length = plan.resolved.max_length
    given = {"query": section.query_prompt, "document": section.document_prompt}
    asked = {name: text for name, text in given.items() if text is not None}
    model.prompts = {**model.prompts, **by_role(model.prompts), **asked}
    if recipe.adapter.kind == "none":
        hold_trained_in_fp32(model)
        freeze_unread(model)
        return model
    name = recipe.model.name
    base = str(path) if Path(name).exists() or name == "demo" else name
    return adapt(model, recipe.adapter, recipe.training.seed, base, recipe.model.revision)


def load_folder(
    path: Path, settings: LoadSettings, *, pooling: str = "auto", trust_remote_code: bool = False
) -> SentenceTransformer:
    """An embedding model from a local folder, nothing adapted.

    A folder without sentence-transformers' modules.json gets pooling (the last token for decoders, else the
    mean, unless one is named) and vectors of length one.

    Args:
        path: what sentence-transformers or plain transformers saved.
        settings: device, compute type and how the base weights are held.
        pooling: auto, mean, cls or last.
        trust_remote_code: run Python code that came with the model; only by a person's explicit choice.

    Raises:
        WhetError: ``model.load``, ``model.remote_code``.
    """
    dtype = DTYPES[settings.compute_dtype]
    options: dict[str, Any] = {"dtype": DTYPES.get(settings.base_precision, dtype), "use_safetensors": True}
    quantization = quantization_config(settings.base_precision, dtype)
    if quantization is not None:
        options |= {"quantization_config": quantization, "device_map": {"": own_device(settings.device)}}
    try:
        options |= attention_of(path)
        if (path / MODULES).is_file():
            model = SentenceTransformer(
                str(path),
                device=settings.device,
                model_kwargs=options,
                local_files_only=True,
                trust_remote_code=trust_remote_code,
            )
            _set_pooling(model, pooling)
            return model
        return _plain(path, settings.device, options, pooling, trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise refused_code(path, error) or WhetError(
            "model.load",
            f"{path} could not be loaded as an embedding model: {str(error).strip().splitlines()[0]}",
            "Check that the folder holds config.json and the complete safetensors weights.",
        ) from error


def _set_pooling(model: SentenceTransformer, pooling: str) -> None:
    for part in model:
        if isinstance(part, Pooling) and pooling != "auto":
            part.pooling_mode = MODES[pooling]


def _plain(
    path: Path, device: str, options: dict[str, Any], pooling: str, trusted: bool
) -> SentenceTransformer:
    own = {"local_files_only": True, "trust_remote_code": trusted}
    encoder = Transformer(str(path), model_kwargs=options | own, config_kwargs=own)
    if pooling == "auto":
        decoder = family_of(encoder.config.model_type).encoder is None
        pooling = "last" if decoder else "mean"
    pool = Pooling(encoder.get_embedding_dimension(), MODES[pooling])
    return SentenceTransformer(modules=[encoder, pool, Normalize()], device=device)


def adapt(
    model: SentenceTransformer, section: AdapterSection, seed: int, base: str, revision: str | None = None
) -> SentenceTransformer:
    """Put a fresh adapter on the encoder; nothing else trains.

    ``base`` is what the saved adapter calls the model it belongs to. Raises WhetError ``adapter.*``.
    """
    encoder: Any = model[0]
    model.requires_grad_(False)
    encoder.model = add_adapter(encoder.model, section, seed, name=base, revision=revision, task=TASK)
    freeze_unread(model)
    return model


def freeze_unread(model: SentenceTransformer) -> None:
    """BERT's own pooler, which no pooling of ours reads, does not train."""
    encoder: Any = model[0]
    for path, param in encoder.model.named_parameters():
        if ".pooler." in f".{path}":
            param.requires_grad = False


def device_of(model: SentenceTransformer) -> torch.device:
    """What it computes on."""
    return torch.device(model.device)
