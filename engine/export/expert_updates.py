"""What an adapter of stacked experts changes in the tensors that a checkpoint holds. Needs torch.

transformers stacks a layer's X experts in two parameters, ``gate_up_proj`` [X, 2F, D] and ``down_proj``
[X, D, F], and PEFT adapts each with one pair of factors: A [X r, in], where expert e has the rows e r to
(e + 1) r, and B [out, r X], where its columns are e, X + e, 2 X + e, ... Checkpoints mostly hold one matrix
an expert, with gate and up apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch

SINGLE = re.compile(
    r"(?P<layer>.+)\.(?:mlp|block_sparse_moe)\.experts\.(?P<expert>\d+)\.(?P<name>\w+)\.weight"
)
STACKED = re.compile(r"(?P<module>.+\.experts)\.(?P<name>gate_up_proj|down_proj)")
PARTS = {
    "gate_proj": ("gate_up_proj", 0), "w1": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1), "w3": ("gate_up_proj", 1),
    "down_proj": ("down_proj", None), "w2": ("down_proj", None),
}  # fmt: skip
"""Name of one expert's matrix -> the stacked parameter it is in, and which half of its rows."""


@dataclass(frozen=True)
class ExpertUpdate:
    """The update of one tensor of the checkpoint.

    Args:
        parameter: path of the stacked parameter, as PEFT's rank and alpha patterns see it.
        module: path of the module that holds it.
        expert: number of the one expert the tensor belongs to; None for all of them, stacked.
        half: of the rows of ``gate_up_proj``: 0 gate, 1 up; None for all rows.
    """

    parameter: str
    module: str
    expert: int | None
    half: int | None

    def fits(self, a_shape: tuple[int, ...], b_shape: tuple[int, ...], shape: tuple[int, ...]) -> bool:
        """Whether factors of these shapes are this parameter's: an adapter's file does not name it."""
        out = shape[-2] * (1 if self.half is None else 2)
        return (b_shape[0], a_shape[1]) == (out, shape[-1])

    def rows(
        self, a_PI: torch.Tensor, b_OP: torch.Tensor, experts: int, start: int, stop: int
    ) -> torch.Tensor:
        """B A of the tensor's rows (its experts, where they are stacked) ``start`` to ``stop``, unscaled.

        Args:
            a_PI, b_OP: the factors of the stacked parameter; P is r X.
            experts: X.
        """
        a_XRI = a_PI.reshape(experts, -1, a_PI.shape[1])
        b_ORX = b_OP.reshape(len(b_OP), -1, experts)
        if self.expert is None:
            return torch.einsum("orx,xri->xoi", b_ORX[..., start:stop], a_XRI[start:stop])
        b_OR = b_ORX[..., self.expert]
        if self.half is not None:
            b_OR = b_OR.chunk(2)[self.half]
        return b_OR[start:stop] @ a_XRI[self.expert]


def expert_updates(names: Iterable[str]) -> dict[str, ExpertUpdate]:
    """Tensor name of a checkpoint -> how an adapter of stacked experts would change it."""
    found = {}
    for name in names:
        if match := SINGLE.fullmatch(name):
            parameter, half = PARTS.get(match["name"], (None, None))
            if parameter is not None:
                module = f"{match['layer']}.mlp.experts"
                found[name] = ExpertUpdate(f"{module}.{parameter}", module, int(match["expert"]), half)
        elif match := STACKED.fullmatch(name):
            found[name] = ExpertUpdate(name, match["module"], None, None)
    return found
