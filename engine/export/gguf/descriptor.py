"""What one family's descriptor says: its tensors, their transforms, its keys, and what is refused. Light.

Everything that tells one family from another stands here or in a function that a descriptor names; the
converter reads descriptors and knows no family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from .keys import sizes, window_ends_context, write_rope
from .model_config import ModelConfig
from .transforms import Weights

if TYPE_CHECKING:
    from gguf import GGUFWriter

    from .vocabulary import Vocabulary

Transform = Callable[[Weights, ModelConfig], Weights]
"""The GGUF's tensor out of the checkpoint's; tensor methods only, as it is tried on shapes first."""

WriteKeys = Callable[["GGUFWriter", ModelConfig], None]
Refusal = Callable[[ModelConfig], str | None]
"""Why llama.cpp would compute something else for this config, as one sentence, or None."""


@dataclass(frozen=True)
class Spelling:
    """One way in which checkpoints hold a tensor.

    Args:
        source: its name there. ``{layer}`` is each layer's number; with ``{expert}`` there is one tensor an
            expert, and the GGUF's is the stack of them.
        transform: applied to the tensor, or to each expert's.
    """

    source: str
    transform: Transform | None = None


@dataclass(frozen=True)
class Tensor:
    """One tensor of the GGUF.

    Args:
        name: with ``{layer}`` where every layer has one.
        spellings: the first that a checkpoint has is taken.
        required: a checkpoint without it is incomplete.
        exact: float32 whatever the file's type, though it is a matrix.
    """

    name: str
    spellings: tuple[Spelling, ...]
    required: bool = True
    exact: bool = False


def module(
    source: str, target: str, *, bias: bool = False, transform: Transform | None = None, exact: bool = False
) -> tuple[Tensor, ...]:
    """The weight of a module and, where llama.cpp reads one, its bias (a model may lack it).

    llama.cpp drops a bias it does not know, so a checkpoint's bias that no descriptor names is refused.
    """
    weight = Tensor(
        f"{target}.weight", (Spelling(f"{source}.weight", transform),), required=True, exact=exact
    )
    if not bias:
        return (weight,)
    spelling = Spelling(f"{source}.bias", transform)
    return weight, Tensor(f"{target}.bias", (spelling,), required=False)


Head = Literal["own", "shared", "none"]


@dataclass(frozen=True)
class Architecture:
    """How one family's checkpoint becomes a GGUF.

    Args:
        model_types: values of ``model_type`` in config.json.
        name: llama.cpp's name of what it computes, e.g. ``llama``.
        tensors: all but the head and those computed from the config.
        applies: which of these models are meant, where ``model_type`` alone does not tell.
        head: ``own`` is written unless the model shares its embedding; with ``shared`` llama.cpp knows no
            other head than the embedding; ``none`` for encoders.
        defaults: the model class's values where config.json is silent.
        activations: values of ``hidden_act`` that mean what llama.cpp computes.
        ropes: kinds of rope that llama.cpp computes for it, and ``partial``; empty without rope.
        refusals: further reasons not to convert.
        keys: functions that write ``{name}.*``.
        aliases: prefixes of tensor names and what they are called in this descriptor.
        ignored: patterns (fnmatch) of checkpoint names that the model computes nothing with.
        vocabulary: a last word on the vocabulary that was read from the tokenizer's files.
    """

    model_types: tuple[str, ...]
    name: str
    tensors: tuple[Tensor, ...]
    applies: Callable[[ModelConfig], bool] = lambda config: True
    head: Head = "own"
    defaults: Mapping[str, Any] = field(default_factory=dict)
    activations: tuple[str, ...] = ("silu", "swish")
    ropes: tuple[str, ...] = ("default", "linear", "yarn")
    refusals: tuple[Refusal, ...] = ()
    keys: tuple[WriteKeys, ...] = (sizes, window_ends_context, write_rope)
    aliases: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ("*.inv_freq",)
    vocabulary: Callable[[Vocabulary, ModelConfig], Vocabulary] | None = None

    def canonical(self, name: str) -> str:
        """A checkpoint's tensor name as this descriptor spells it."""
        for prefix, meant in self.aliases:
            if name.startswith(prefix):
                return meant + name.removeprefix(prefix)
        return name
