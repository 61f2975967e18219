"""A trainer whose model may be held in shares (:mod:`whet.engine.parallel.fsdp`): checkpoints as one process
would have written them, and the way back into one on any number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from ..models.fast_path import causal_model
from ..parallel.fsdp import (
    is_sharded,
    only_shares,
    share_optimizer,
    take_shares,
    whole_optimizer,
    whole_weights,
)
from .flat_optimizer import plain_state


class WeightShares(Trainer):
    """Goes before :class:`.run_checkpoints.RunCheckpoints` among a class's bases; for a model that is not
    held in shares it adds nothing."""

    whole: dict[str, torch.Tensor] | None
    _whole_optimizer: dict[str, Any] | None = None

    @property
    def sharded(self) -> bool:
        """Whether each process holds a share of every weight."""
        return is_sharded(causal_model(self.model))

    @property
    def sums_gradients(self) -> bool:
        """As the base class; shares have their gradients averaged on the way."""
        return bool(super().sums_gradients) and not self.sharded  # type: ignore[misc]

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the base class; accelerate is told that nothing is left to wrap."""
        if self.sharded:
            self.accelerator.prepare_model(self.model, device_placement=False, evaluation_mode=True)
            only_shares(causal_model(self.model))
        return super().train(*args, **kwargs)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """While it lasts the first process has what trains, whole, in ``whole``. All processes enter it."""
        if not self.sharded:
            yield
            return
        model: Any = self.model
        self.whole = whole_weights(model)
        try:
            yield
        finally:
            self.whole = None

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As the base class, of weights and moments that are gathered first."""
        if self.sharded:
            assert self.optimizer is not None
            self._whole_optimizer = whole_optimizer(self.optimizer.state_dict())
        try:
            with self.gathered():
                super()._save_checkpoint(model, trial)
        finally:
            self._whole_optimizer = None

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """As the base class, whose file names they are."""
        if self._whole_optimizer is None:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        assert self.lr_scheduler is not None
        torch.save(self._whole_optimizer, Path(output_dir) / OPTIMIZER_NAME)
        torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def own_states(self, state: dict[str, Any]) -> dict[str, Any]:
        """Its share of each state, as plain AdamW has them."""
        if not self.sharded:
            return state
        assert self.optimizer is not None
        plain = {key: plain_state(entry) for key, entry in state["state"].items()}
        return share_optimizer({**state, "state": plain}, self.optimizer.param_groups)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """As the base class; each process reads its share of the safetensors."""
        if not self.sharded:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        only_shares(causal_model(self.model))
        files = [safe_open(path, "pt") for path in sorted(Path(resume_from_checkpoint).glob("*.safetensors"))]
        where = {name: file for file in files for name in file.keys()}  # noqa: SIM118  (no mapping)
        take_shares(self._stored_names(), lambda name: where[name].get_tensor(name))

    def _stored_names(self) -> dict[str, torch.Tensor]:
        """What a checkpoint holds, by its name there."""
        model: Any = self.model
        if isinstance(model, PeftModel):
            return dict(get_peft_model_state_dict(model, save_embedding_layers=False))
        tied = set(model.all_tied_weights_keys)
        return {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
