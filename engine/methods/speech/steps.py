"""Steps of a Whisper model: the next batches are read while a GPU computes, and a GPU's passes are one CUDA
graph. Held-out rows go the base trainer's way."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer

from ...models.fast_path import FastPathReport, causal_model, slower
from ...runs.events import FindingEvent
from ..flat_steps import FlatSteps
from ..graphed import GraphedStep
from ..rank_steps import WHOLE_COPIES
from ..sft.ahead import BatchesAhead
from ..sft.optimizer import FLAT_OPTIMIZERS
from .batches import Filling, HeardBatch, Recordings
from .collation import SoundCollator

MULTIPLE = 8
"""Tokens are filled up to a multiple of this: attention wants rows of a mask aligned."""


class HeardSteps(Trainer):
    """Goes behind :class:`.flat_steps.FlatSteps`, whose steps begin with zeroed gradients; computes a
    micro-batch."""

    plain_reason: str | None = "nothing was chosen yet"
    """Why batches go the base trainer's way."""
    graph_reason: str | None = None
    """Why micro-batches are not replayed as a CUDA graph."""
    filling = Filling()
    collate: SoundCollator
    graphed: GraphedStep[HeardBatch]
    data_seconds: float
    """Spent on fetching and collating rows so far."""
    emit: Any
    _ahead: BatchesAhead
    _mask: torch.Tensor | None = None
    _stop_said = False
    """It was said that capturing failed."""

    def get_train_dataloader(self) -> DataLoader:
        """The base class's, of :class:`Recordings`."""
        if self.plain_reason is not None:
            return super().get_train_dataloader()
        plain = self.data_collator
        self.data_collator = lambda rows: {"heard": self.collate.recordings(rows, self.filling)}
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = plain

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """The base class's, from batches that were fetched while the step before was computed."""
        if self.plain_reason is not None:
            return super().get_batch_samples(epoch_iterator, num_batches, device)
        return self._ahead.take(epoch_iterator, num_batches), None

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """One micro-batch, forward and backward; its share of the step's loss, 0-d and detached."""
        recordings = inputs.get("heard")
        if not isinstance(recordings, Recordings):
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        batch, device = self._heard(recordings), self.args.device
        if self.graph_reason is None:
            loss = self.graphed(batch, num_items_in_batch, device)
            self._say_if_stopped()
        else:
            loss = self._forward_backward(batch.on(device), _scalar(num_items_in_batch, device))
        self.data_seconds += self._ahead.fetch()  # a GPU computes meanwhile
        return loss

    def evaluation_loop(self, *args: Any, **more: Any) -> Any:
        """As the base class; what held-out rows need may be what the graph held, as it is without one."""
        if self.plain_reason is None:
            self.graphed.release()
        return super().evaluation_loop(*args, **more)

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted of recordings; the base class looks for token ids."""
        return 0 if "heard" in inputs else super().floating_point_ops(inputs)

    def _heard(self, recordings: Recordings) -> HeardBatch:
        tokens = recordings.labels.shape[1]
        if attention_of(self.model) != "sdpa":
            mask = None
        else:
            if self._mask is None or self._mask.shape[-1] < tokens:
                whole = torch.ones(tokens, tokens, dtype=torch.bool, device=self.args.device)
                self._mask = whole.tril()[None, None]
            mask = self._mask[..., :tokens, :tokens].contiguous()
        features = self.collate.features_of(recordings.sounds)
        return HeardBatch(features, recordings.before, recordings.labels, mask)

    def _forward_backward(self, batch: HeardBatch, divisor: torch.Tensor) -> torch.Tensor:
        """Of a batch on the device, launches alone. transformers' own mask is made after a look at token
        positions on the host."""
        loss_of: Any = self.compute_loss_func
        model: Any = self.model
        outputs = model(
            input_features=batch.features,
            decoder_input_ids=batch.before,
            decoder_attention_mask=batch.mask,
            use_cache=False,
        )
        loss: torch.Tensor = loss_of(outputs, batch.labels, num_items_in_batch=divisor)
        loss.backward()
        return loss.detach()

    def _say_if_stopped(self) -> None:
        if self.graphed.stopped is not None and not self._stop_said:
            self._stop_said = True
            self.emit(FindingEvent(finding=slower("graphs", self.graphed.stopped)))


class HearingSteps(FlatSteps, HeardSteps):
    """Goes behind :class:`.run_loop.RunLoop` among a class's bases."""

    def choose_steps(self, collate: SoundCollator, longest: int, refusal: str | None) -> None:
        """How micro-batches are computed from now on.

        Args:
            collate: rows -> batches.
            longest: tokens of the longest text.
            refusal: why no graph can be captured, as far as it is known from the plan.
        """
        self.plain_reason = self._refusal(collate)
        if self.plain_reason is not None:
            return
        self.collate, self._ahead = collate, BatchesAhead()
        self.graph_reason = self._graph_refusal() or refusal
        self.graphed = GraphedStep(self._forward_backward, list)
        if self.graph_reason is None:
            most = causal_model(self.model).config.max_target_positions
            self.filling = Filling(self.args.train_batch_size, min(-(-longest // MULTIPLE) * MULTIPLE, most))

    @property
    def runs_flat(self) -> bool:
        """Steps on recordings do."""
        return self.plain_reason is None

    def _refusal(self, collate: SoundCollator) -> str | None:
        if self.args.fp16:
            return "fp16 scales its losses"
        if self.args.world_size > 1 and self.accelerator.distributed_type not in WHOLE_COPIES:
            return "each process holds a share of the model"
        return collate.other

    def _graph_refusal(self) -> str | None:
        """Why a micro-batch is more than launches over memory that stays."""
        if self.args.device.type != "cuda":
            return "they are a GPU's"
        config = causal_model(self.model).config
        if config.apply_spec_augment:
            return "SpecAugment draws its masks on the host"
        if config.encoder_layerdrop or config.decoder_layerdrop:
            return "which layers are dropped is drawn on the host"
        if attention_of(self.model) != "sdpa":
            return "attention is not torch's own"
        optimizer = str(getattr(self.args.optim, "value", self.args.optim))
        model: Any = self.model
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if optimizer not in FLAT_OPTIMIZERS or any(p.dtype != torch.float32 for p in trained):
            return "gradients do not add up in buffers that stay"
        return None


def attention_of(model: Any) -> str:
    """transformers' name of the attention that a model computes with."""
    found: str = causal_model(model).config._attn_implementation
    return found


def fused(plain: str | None, graph: str | None) -> FastPathReport:
    """What a GPU's steps are, and why they are not more.

    Args:
        plain: why batches go the base trainer's way.
        graph: why their passes are no CUDA graph.
    """
    report = FastPathReport()
    if plain is not None:
        report.count("steps", plain)
    else:
        report.count("graphs", graph)
    return report


def _scalar(value: Any, device: torch.device) -> torch.Tensor:
    """Without waiting for the device."""
    return value if isinstance(value, torch.Tensor) else torch.full((), float(value), device=device)
