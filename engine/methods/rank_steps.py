"""Optimizer steps that several processes share, with the losses and gradients of one.

Every process holds the whole model and takes its share of a step's micro-batches (:mod:`.shares`); each
micro-batch's loss is divided by what the whole step counts, and the gradients are summed once, before they
are clipped. Nothing wraps the model: gradients that accumulate inside of autograd nodes, as the fast path's
do, never fire the hooks of DistributedDataParallel. A model held in shares (FSDP, DeepSpeed) averages its
gradients itself; then only rows and divisors are shared here.

For one process this adds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import DistributedType, recursively_apply
from transformers import Trainer, set_seed

from ..parallel.collectives import broadcast_tensors, sum_buffers, sum_counts, sum_numbers
from ..parallel.process_group import rank, world_size
from .flat_optimizer import FlatAdamW
from .rank_seeds import rank_seed
from .shares import StepShares, each_nth, shared_loader, whole_loader


class OwnNumbers:
    """An accelerator whose processes keep to themselves what they would gather."""

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)

    def gather_for_metrics(self, data: Any, **_how: Any) -> Any:
        return data


WHOLE_COPIES = (DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
UNSUPERVISED = -100


class RankSteps(Trainer):
    """Goes behind the classes that count and check a step, before those that compute it."""

    _shares: StepShares | None = None
    """Of the epoch that is trained on."""
    _mine: int | None = None
    """Micro-batches of the step that count; None outside of training."""
    _all = 0
    """Those of all processes."""
    _seen = 0
    """Micro-batches of the step that were passed."""
    _measures = False
    """Held-out rows are under way."""
    shares_held_out = False
    """Each process measures its share of the held-out rows, and the class sums up what they found."""

    @property
    def ranks(self) -> int:
        """Processes that share a step."""
        return world_size()

    @property
    def sums_gradients(self) -> bool:
        """Whether gradients are summed here: processes that each hold all weights."""
        return self.ranks > 1 and self.accelerator.distributed_type in WHOLE_COPIES

    @property
    def _copies(self) -> int:
        """What a loss is multiplied by: processes whose gradients are averaged, not summed."""
        return 1 if self.sums_gradients else self.ranks

    @property
    def filler(self) -> bool:
        """The micro-batch under way counts for nothing."""
        return self._mine is not None and self._seen >= self._mine

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As the base class; copies begin equal, and each process draws its own random numbers."""
        if self.ranks == 1:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        if self.sums_gradients:
            # Counted over the processes here, and summed: see training_step.
            self.args.average_tokens_across_devices = False
            self.accelerator.prepare_model(self.model, device_placement=False, evaluation_mode=True)
            broadcast_tensors([p.data for p in self._trained()])
        if rank() and not resume_from_checkpoint:
            set_seed(rank_seed(self.args.seed, rank(), 0))
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self._mine = self._shares = None

    def _trained(self) -> Iterator[torch.nn.Parameter]:
        model: Any = self.model
        return (parameter for parameter in model.parameters() if parameter.requires_grad)

    def get_train_dataloader(self) -> Any:
        """The base class's for one process, of which several take turns."""
        if self.ranks == 1:
            return super().get_train_dataloader()
        # sentence-transformers turns it on where processes would wait for each other's last batch.
        self.args.dataloader_drop_last = False
        loader = super().get_train_dataloader()
        shared = shared_loader(loader, self.args.gradient_accumulation_steps, rank(), self.ranks)
        shares = shared.batch_sampler
        assert isinstance(shares, StepShares)
        self._shares = shares
        return shared

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """The base class's; a step begins."""
        self._begin_step()
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def counting(self, batch_samples: list[Any]) -> list[Any]:
        """Those micro-batches of a step that count."""
        return batch_samples if self._mine is None else batch_samples[: self._mine]

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """The base class's, over all processes and without fillers."""
        if self.ranks == 1 or self._measures:
            return super()._get_num_items_in_batch(batch_samples, device)
        mine = self.counting(batch_samples)
        fillers = [_unsupervised(batch) for batch in batch_samples[len(mine) :]]
        items = super()._get_num_items_in_batch([*mine, *fillers], device)
        return self.in_all(items) if self.sums_gradients else items

    def in_all(self, count: Any) -> Any:
        """A number of tokens or rows, over all processes; None stays so."""
        if self.ranks == 1 or count is None:
            return count
        (total,) = sum_counts(int(count))
        return torch.tensor(total, device=self.args.device)

    def _begin_step(self) -> None:
        if self._shares is not None:
            self._mine, self._all = self._shares.counting(self.state.global_step)
            self._seen = 0

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """The base class's for one process, in each of several; or its share."""
        if self.ranks == 1:
            return super().get_eval_dataloader(eval_dataset)
        self.args.dataloader_drop_last = False
        loader = whole_loader(super().get_eval_dataloader(eval_dataset))
        return each_nth(loader, rank(), self.ranks) if self.shares_held_out else loader

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As the base class. Nothing is gathered: where a class does not sum up by itself, each process
        measures all held-out rows. What accelerate repeats to fill a last round up would count in a mean."""
        if self.ranks == 1:
            return super().evaluate(*args, **kwargs)
        gathers, self.gather_function = self.gather_function, self._own
        averages = self.args.average_tokens_across_devices
        self.args.average_tokens_across_devices, self._measures = False, True
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self.gather_function, self._measures = gathers, False
            self.args.average_tokens_across_devices = averages

    @contextmanager
    def own_numbers(self) -> Iterator[None]:
        """While it lasts nothing is gathered: a loss that looks at its micro-batch sees that one alone."""
        if self.ranks == 1:
            yield
            return
        whole: Any = self.accelerator
        own: Any = OwnNumbers(whole)
        self.accelerator = own
        try:
            yield
        finally:
            self.accelerator = whole

    def _own(self, tensors: Any) -> Any:
        """As accelerate's ``gather_for_metrics`` in one process: what repeats behind the last rows is cut."""
        state = self.accelerator.gradient_state
        if not state.end_of_dataloader or state.remainder <= 0:
            return tensors
        return recursively_apply(lambda tensor: tensor[: state.remainder], tensors)

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """As the base class; a filler's loss is divided by infinity, and the step's last micro-batch is
        followed by the sum of the gradients."""
        if self.ranks == 1:
            return super().training_step(model, inputs, num_items_in_batch)
        if self._mine is not None:
            divisor = math.inf if self.filler else self._all / self._copies
            self.current_gradient_accumulation_steps = divisor  # type: ignore[assignment]
            if self.filler and num_items_in_batch is not None:
                num_items_in_batch = torch.tensor(math.inf, device=self.args.device)
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        self._passed()
        return loss

    def _passed(self) -> None:
        """A micro-batch is done; after the step's last one the gradients are summed."""
        self._seen += 1
        if self.sums_gradients and self.accelerator.sync_gradients:
            self._sum_gradients()

    def over_ranks(self, loss: Any, *counts: Any) -> tuple[float, tuple[int, ...]]:
        """A step's loss, of which each process has a share, and its counts, over all processes."""
        (total,) = sum_numbers(float(loss))
        return total / self._copies, sum_counts(*(int(count) for count in counts))

    def _sum_gradients(self) -> None:
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        if isinstance(optimizer, FlatAdamW):
            sum_buffers(optimizer.collected_gradients())
            sum_gradients(optimizer.others)
        else:
            sum_gradients(list(self._trained()))


def sum_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Sum the gradients over the processes in place, all of a type and device at once. A parameter that no
    process reached keeps none, as in one process."""
    if not parameters:
        return
    reached = sum_counts(*(int(parameter.grad is not None) for parameter in parameters))
    kinds: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
    for parameter, times in zip(parameters, reached, strict=True):
        if times and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if parameter.grad is not None:
            kinds.setdefault((parameter.grad.dtype, parameter.grad.device), []).append(parameter.grad)
    for alike in kinds.values():
        flat = torch.cat([gradient.flatten() for gradient in alike])
        sum_buffers([flat])
        pieces = flat.split([gradient.numel() for gradient in alike])
        for gradient, piece in zip(alike, pieces, strict=True):
            gradient.copy_(piece.view_as(gradient))


def _unsupervised(batch: Any) -> Any:
    """A batch whose labels count for nothing."""
    names = [name for name in ("labels", "shift_labels") if name in batch]
    return {**batch, **{name: torch.full_like(batch[name], UNSUPERVISED) for name in names}}
