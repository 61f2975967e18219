"""Which weights of a model folder belong to linear layers: formats of few bits hold those. Needs torch.

The model's class is asked, built without memory for its weights: names alone would not tell a norm or a
router from a projection.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ...errors import WhetError
from ...models.own_files import LOCAL
from ...models.sentence_folder import is_embedding_model

EXPERT = re.compile(r"\.experts\.\d+\.\w+\.weight$")
"""An expert's matrix in a checkpoint; transformers stacks them into one parameter that is no linear layer."""


@dataclass(frozen=True)
class Linears:
    """Linear layers of a model."""

    weights: frozenset[str]
    """Names of their tensors, those of output heads left out."""
    heads: list[str]
    """Names of the output heads, as modules."""


def find_linears(model_dir: Path) -> Linears:
    """The linear layers of the class that ``model_dir`` names; an output head counts apart.

    Raises:
        WhetError: ``export.few_bits`` for anything but a causal language model that transformers itself has.
    """
    config = AutoConfig.from_pretrained(model_dir, **LOCAL)
    named = (config.architectures or [""])[0]
    if named not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() or is_embedding_model(model_dir):
        raise WhetError(
            "export.few_bits",
            f"{model_dir} is no causal language model of transformers (its class is {named!r}), and 4 and 8 "
            "bits are written for those.",
            "Export 16-bit weights (`--merged`) or a GGUF instead.",
        )
    kind = getattr(transformers, named)
    with torch.device("meta"):
        model = kind(config)
    head = model.get_output_embeddings()
    linears = [(name, module) for name, module in model.named_modules() if type(module) is nn.Linear]
    return Linears(
        frozenset(f"{name}.weight" for name, module in linears if module is not head),
        [name for name, module in linears if module is head],
    )
