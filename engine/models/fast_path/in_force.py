"""Which adapters the fused products read, the same in a backward pass as in the forward pass before it.

Between the two a model may run with its adapter off (a reference model), with another, or without dropout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from whet.kernels.lora_refresh import Refresh, Refresher

from .projections import Projection


@dataclass(frozen=True)
class _State:
    blocks: list[Any]
    copies: list[Refresh]


class InForce:
    """The factors in force in all projections of a program.

    Args:
        projections: of the fused halves.
        refresher: runs the copies.
    """

    def __init__(self, projections: Sequence[Projection], refresher: Refresher) -> None:
        self.projections, self.refresher = list(projections), refresher
        self.state = _State([], [])
        self.held = False

    @contextmanager
    def switched_to(self, adapter: str | None) -> Iterator[None]:
        """Another adapter is in force while the context lasts; None is the base alone, for which nothing has
        to be copied."""
        stacks = [projection.stack for projection in self.projections]
        before, self.held = [stack.blocks for stack in stacks], True
        if adapter is None:
            for stack in stacks:
                stack.blocks = []
        else:
            self.refresher.run([c for one in self.projections for c in one.refreshes_of(adapter)])
        try:
            yield
        finally:
            self.held = False
            for stack, blocks in zip(stacks, before, strict=True):
                stack.blocks = blocks
            if adapter is not None:
                self.refresher.run(self.state.copies)

    def refresh(self) -> None:
        """Put the adapters in force as they are now."""
        if self.held:
            return
        copies = [copy for projection in self.projections for copy in projection.refreshes()]
        self.refresher.run(copies)
        blocks = [projection.stack.blocks for projection in self.projections]
        if blocks != self.state.blocks:
            self.state = _State(blocks, copies)

    def hold(self, hidden_TD: torch.Tensor) -> torch.Tensor:
        """The same tensor, whose backward pass runs on what is in force now."""
        if self.held:
            return hidden_TD
        held: torch.Tensor = _Hold.apply(hidden_TD, self, self.state)
        return held

    def restore(self, state: _State) -> None:
        """Put an earlier state in force again."""
        if state is self.state:
            return
        for projection, blocks in zip(self.projections, state.blocks, strict=True):
            projection.stack.blocks = blocks
            projection.stack.a_RK.zero_()
            projection.stack.sb_NR.zero_()
        self.refresher.run(state.copies)
        self.state = state


class _Hold(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_TD: torch.Tensor, in_force: InForce, state: _State) -> torch.Tensor:
        ctx.in_force, ctx.state = in_force, state
        return hidden_TD.view_as(hidden_TD)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        with torch.no_grad():
            ctx.in_force.restore(ctx.state)
        return gradients[0], None, None
