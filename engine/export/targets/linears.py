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

from ...errors import WhetError

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
        WhetError: ``export.own_code`` for a model that transformers itself cannot build.
    """
    config = AutoConfig.from_pretrained(model_dir)
    named = (config.architectures or [""])[0]
    kind = getattr(transformers, named, None)
    if kind is None:
        raise WhetError(
            "export.own_code",
            f"transformers has no model class {named!r}, which {model_dir} names.",
            "Formats of few bits are written for transformers' own models; export 16-bit weights instead.",
        )
    with torch.device("meta"):
        model = kind(config)
    head = model.get_output_embeddings()
    linears = [(name, module) for name, module in model.named_modules() if type(module) is nn.Linear]
    return Linears(
        frozenset(f"{name}.weight" for name, module in linears if module is not head),
        [name for name, module in linears if module is head],
    )
