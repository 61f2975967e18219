"""A cross-encoder ready to train: encoder or decoder with a head of one score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.cross_encoder.modules.logit_score import LogitScore
from transformers import AutoConfig, set_seed

from ...errors import WhetError
from ...models.own_code import refused_code
from ...models.sentence_folder import answers
from ...plan import Plan
from ...recipe import RerankerSection
from ..classification.loading import POOLER, head_modules, load_options, trainable
from ..classification.suiting import refuse_fp8
from .asking import answer_ids, asks, template


def load_reranker(plan: Plan, path: Path, trust_remote_code: bool = False) -> CrossEncoder:
    """The plan's model from a local folder. A folder's own head of one score is kept, else one starts at
    random, by the seed; a language model that answers yes or no keeps what it answers with.

    Raises:
        WhetError: ``model.load``, ``model.remote_code``, ``classification.precision``, ``adapter.*``,
            ``reranker.head``.
    """
    section = plan.recipe.method
    assert isinstance(section, RerankerSection)
    keeps = asks(section, path, plan.recipe.model.name)
    refuse_fp8(plan.recipe.method.kind, plan.resolved.base_precision)
    set_seed(plan.recipe.training.seed)
    own = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(path, **own)
        options = load_options(plan, config, trust_remote_code)
        del options["output_loading_info"]
        module: Any = Transformer(
            str(path),
            transformer_task="text-generation" if keeps else "sequence-classification",
            model_kwargs=options,
            config_kwargs=own if keeps else {"num_labels": 1, **own},
            processor_kwargs=own,
        )
    except (OSError, ValueError, KeyError) as error:
        raise refused_code(path, error) or WhetError(
            "model.load",
            f"{path} could not be loaded as a cross-encoder: {str(error).strip().splitlines()[0]}",
            "Choose a model that transformers has sequence classification for, whole, as safetensors.",
        ) from error
    if module.tokenizer.pad_token is None:
        module.tokenizer.pad_token = module.tokenizer.eos_token
    # Decoders read the score off the last token that is not this one.
    module.model.config.pad_token_id = module.tokenizer.pad_token_id
    module.model.config.use_cache = False
    if keeps:
        return _answering(plan, path, module, section.instruction)
    # A chat template would wrap query and document in turns, which servers of rerankers do not.
    module.modality_config = {"text": module.modality_config["text"]}
    heads = head_modules(path, module.model, (), ())
    if any(f".{POOLER}." in name for name, _ in module.model.named_parameters()):
        heads.append(POOLER)  # many checkpoints have none, and it is random then
    module.model = trainable(plan, path, module.model, heads, "SEQ_CLS")
    model = CrossEncoder(modules=[module], device=plan.resolved.device)
    model.max_seq_length = plan.resolved.max_length
    return model


def _answering(plan: Plan, path: Path, module: Any, instruction: str) -> CrossEncoder:
    """The language model with its adapter, and what reads yes and no. The template of a folder that is such a
    reranker already stays in force."""
    yes, no = answer_ids(path)
    if not answers(path):
        module.tokenizer.chat_template = template(instruction)
        told = {"method": "forward", "method_output_name": "logits", "format": "flat"}
        module.modality_config = {**module.modality_config, "message": told}
    module.model = trainable(plan, path, module.model, [], "CAUSAL_LM")
    model = CrossEncoder(modules=[module, LogitScore(yes, no)], device=plan.resolved.device)
    model.max_seq_length = plan.resolved.max_length
    return model


def sets_apart(model: CrossEncoder) -> bool:
    """Whether the tokenizer sets anything between query and document; a decoder's does not."""
    tokenizer: Any = model.tokenizer
    return len(tokenizer("a", "b")["input_ids"]) > len(tokenizer("a")["input_ids"]) + 1


def device_of(model: CrossEncoder) -> torch.device:
    """What it computes on."""
    return torch.device(model.device)
