"""AdamW over flat buffers for the trainers of models on the fast path."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import Trainer

from ..models.fast_path import program_of
from .flat_optimizer import FlatAdamW
from .sft.optimizer import FLAT_OPTIMIZERS, flat_optimizer


class FlatSteps(Trainer):
    """Goes behind :class:`.run_loop.RunLoop` among a class's bases, before the trainer of the method."""

    _begins = True
    """The next micro-batch is the first of its step."""
    _told = False
    """The model was told that it trains, and not otherwise since."""

    @property
    def transformer(self) -> Any:
        """transformers' model, or PEFT's wrapper around it, that the trainer's model is or holds."""
        return self.model

    @property
    def runs_flat(self) -> bool:
        """Whether the flat AdamW stands in for torch's and bitsandbytes'."""
        return program_of(self.transformer) is not None

    @property
    def flat(self) -> FlatAdamW | None:
        """The optimizer, where it is ours."""
        inner = getattr(self.optimizer, "optimizer", self.optimizer)
        return inner if isinstance(inner, FlatAdamW) else None

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The flat AdamW for a model on the fast path, else the base trainer's; a given one stays."""
        bits = FLAT_OPTIMIZERS.get(str(getattr(self.args.optim, "value", self.args.optim)))
        if self.optimizer is not None or bits is None or not self.runs_flat:
            return super().create_optimizer(*([] if model is None else [model]))
        self.optimizer = flat_optimizer(self, bits, self.transformer)
        return self.optimizer

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the base class, without its walks over all modules at every step."""
        self._begins = True
        with self._without_walks():
            return super().train(*args, **kwargs)

    @contextmanager
    def _without_walks(self) -> Iterator[None]:
        """Gradients are zeroed as one buffer, and what trains already is not told so again."""
        model: Any = self.model
        plain = type(model)

        def zero_grad(set_to_none: bool = True) -> None:
            if self.flat is None:
                plain.zero_grad(model, set_to_none)

        def train(mode: bool = True) -> Any:
            # A wrapper may say that it trains around a model that was loaded for answering.
            if self.flat is None or not (mode and model.training and self._told):
                self._told = mode
                plain.train(model, mode)
            return model

        self._told = False
        model.zero_grad, model.train = zero_grad, train
        try:
            yield
        finally:
            del model.zero_grad, model.train

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted on the fast path: the base class walks over all modules for it."""
        return 0 if self.flat is not None else super().floating_point_ops(inputs)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As the base class, from zeroed gradients."""
        if self._begins and self.flat is not None:
            self.flat.zero_grad()
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        self._begins = self.accelerator.sync_gradients
        return loss

    def _clip_grad_norm(self, model: torch.nn.Module) -> Any:
        """The step of the flat AdamW clips while it reads the gradients."""
        flat = self.flat
        if flat is None:
            return super()._clip_grad_norm(model)
        if self.accelerator.scaler is not None:
            self.accelerator.unscale_gradients()
        return flat.clip_(self.args.max_grad_norm)
