"""Which linear layers of a vision-language model train: by part of the model and by kind of layer. Light.

Names are module paths, as the model has them or as its weight files do: both tell part and kind.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from ...errors import WhetError
from ...models.image_tokens import VISION
from .section import VisionSection

if TYPE_CHECKING:
    from ...models.facts import ModelFacts
    from ...recipe import AdapterSection, Recipe

Part = Literal["vision", "language"]
Kind = Literal["attention", "mlp"]

ATTENTION = re.compile(r"(^|\.)(self_attn|cross_attn|attn|self_attention|attention)(\.|$)")
ENDS = re.compile(r"(^|\.)(lm_head|embed_tokens)$")
ALL = "all-linear"


class Switches(Protocol):
    """What trains."""

    @property
    def finetune_vision_layers(self) -> bool: ...
    @property
    def finetune_language_layers(self) -> bool: ...
    @property
    def finetune_attention_modules(self) -> bool: ...
    @property
    def finetune_mlp_modules(self) -> bool: ...


def part_of(path: str) -> Part:
    """The image encoder with the projector behind it, or the language model."""
    return "vision" if VISION.search(path) else "language"


def kind_of(path: str) -> Kind:
    """Attention, or everything else: MLPs, and the layers that bring image features to the text's width."""
    return "attention" if ATTENTION.search(path) else "mlp"


def is_chosen(path: str, switches: Switches) -> bool:
    """Whether a linear layer of this path gets an adapter; embedding and head never do."""
    parts = {"vision": switches.finetune_vision_layers, "language": switches.finetune_language_layers}
    kinds = {"attention": switches.finetune_attention_modules, "mlp": switches.finetune_mlp_modules}
    return not ENDS.search(path) and parts[part_of(path)] and kinds[kind_of(path)]


def named_layers(section: AdapterSection) -> list[str] | str:
    """The names that a recipe gives; its default, which names a decoder's layers, means all of them."""
    default = type(section).model_fields["target_modules"].default
    return ALL if section.target_modules == default else section.target_modules


def chosen_layers(paths: Iterable[str], switches: Switches, names: Sequence[str] | str = ALL) -> list[str]:
    """The paths of the linear layers that get an adapter.

    Args:
        paths: of all linear layers.
        switches: parts and kinds.
        names: only layers that end in one of these, by PEFT's rule; all-linear: every one.

    Raises:
        WhetError: ``adapter.no_target`` where none is left.
    """
    paths = list(paths)
    chosen = [path for path in paths if is_chosen(path, switches)]
    if names != ALL:
        wanted = [names] if isinstance(names, str) else names
        chosen = [path for path in chosen if any(path == one or path.endswith(f".{one}") for one in wanted)]
    if not chosen:
        leaves = sorted({path.rsplit(".", 1)[-1] for path in paths})
        raise WhetError(
            "adapter.no_target",
            "No linear layer is left for the adapter: adapter.target_modules and the finetune_* switches "
            "have none in common.",
            f"The model's layers are called {', '.join(leaves)}.",
        )
    return chosen


def seeing_parameters(facts: ModelFacts, recipe: Recipe) -> int:
    """Parameters that get a gradient: of the adapter, or of the parts that train whole.

    As :func:`whet.engine.adapted.trainable_parameters` counts them; of a part that is frozen while the other
    trains whole, the linear layers are counted.
    """
    method, adapter = recipe.method, recipe.adapter
    assert isinstance(method, VisionSection)
    linear = facts.parameters.linear
    if adapter.kind == "none":
        trains = {"vision": method.finetune_vision_layers, "language": method.finetune_language_layers}
        frozen = sum(module.parameters for module in linear if not trains[part_of(module.pattern)])
        rest = 0 if method.finetune_language_layers else facts.parameters.embedding
        return facts.parameters.total - frozen - rest
    patterns = [module.pattern for module in linear]
    try:
        chosen = set(chosen_layers(patterns, method, named_layers(adapter)))
    except WhetError:
        if facts.parameters.exact:
            raise
        chosen = set()  # the weights are not here, and the image encoder is not counted
    matched = [module for module in linear if module.pattern in chosen]
    total = sum(one.count * adapter.rank * (one.inputs + one.outputs) for one in matched)
    return total + (sum(one.count * one.outputs for one in matched) if adapter.kind == "dora" else 0)
