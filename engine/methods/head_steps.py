"""Steps of a head on an encoder: texts packed on the CPU, one pass, and on a GPU that pass as a CUDA graph.

What is packed is the batch that the method collates; held-out rows go the base trainer's way.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer

from ..models.fast_path import FastPathReport, slower
from ..models.fast_path.encoders import EncoderProgram, encoder_program_of, head_reads
from ..runs.events import FindingEvent
from .flat_steps import FlatSteps
from .graphed import GraphedStep
from .head_batches import HeadBatch, Packing, PackingCollator
from .packed_texts import multiple_on
from .rank_steps import WHOLE_COPIES
from .sft.ahead import BatchesAhead
from .sft.optimizer import FLAT_OPTIMIZERS


class PackedHeadSteps(Trainer):
    """Goes behind :class:`HeadSteps`, whose steps begin with zeroed gradients; computes a micro-batch."""

    packing: Packing | None = None
    """How training batches are packed; None where they go the base trainer's way."""
    graph_reason: str | None = None
    """Why packed batches are not replayed as CUDA graphs."""
    graphed: GraphedStep[HeadBatch]
    program: EncoderProgram
    data_seconds: float
    """Spent on fetching and collating rows so far."""
    emit: Callable[[Any], Any]
    _ahead: BatchesAhead
    _stop_said = False

    @abstractmethod
    def pack(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A collated batch with ``texts`` in place of what the encoder reads; itself where it cannot be."""

    @abstractmethod
    def head_loss(self, batch: HeadBatch, divisor: torch.Tensor) -> torch.Tensor:
        """Of a batch on the device, its share of the step's loss; launches alone."""

    @abstractmethod
    def divisor(self, items: Any) -> Any:
        """What a micro-batch's loss is divided by, ``items`` being what transformers counts in a step."""

    def get_train_dataloader(self) -> DataLoader:
        """The base class's, its batches packed."""
        if self.packing is None:
            return super().get_train_dataloader()
        collate: Any = self.data_collator
        labels = getattr(collate, "valid_label_columns", ())
        self.data_collator = PackingCollator(collate, self.pack, labels)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = collate

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """The base class's, from batches that were fetched while the step before was computed."""
        if self.packing is None:
            return super().get_batch_samples(epoch_iterator, num_batches, device)
        batches = self._ahead.take(epoch_iterator, num_batches)
        return batches, self._get_num_items_in_batch(batches, device)

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """One micro-batch, forward and backward; its share of the step's loss, 0-d and detached."""
        batch = inputs.get("texts")
        if not isinstance(batch, HeadBatch):
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        divisor, device = self.divisor(num_items_in_batch), self.args.device
        if self.graph_reason is None:
            loss = self.graphed(batch, divisor, device)
            if self.graphed.stopped is not None and not self._stop_said:
                self._stop_said = True
                self.say_slower("graphs", self.graphed.stopped)
        else:
            there = batch.pinned() if device.type == "cuda" else batch
            loss = self._forward_backward(there.on(device), torch.as_tensor(divisor, device=device))
        self.fetch_ahead()  # a GPU computes meanwhile
        return loss

    def fetch_ahead(self) -> None:
        """Pack the next step's batches, if that was not done."""
        self.data_seconds += self._ahead.fetch()

    def say_slower(self, kind: str, reason: str) -> None:
        """The note of a run whose steps turn out to be slower than its report said."""
        self.emit(FindingEvent(finding=slower(kind, reason)))

    def _forward_backward(self, batch: HeadBatch, divisor: torch.Tensor) -> torch.Tensor:
        loss = self.head_loss(batch, divisor)
        loss.backward()
        return loss.detach()

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted of packed batches; the base class looks for padded ids."""
        return 0 if "texts" in inputs else super().floating_point_ops(inputs)


class HeadSteps(FlatSteps, PackedHeadSteps):
    """Goes behind :class:`.run_loop.RunLoop` among a class's bases, before the trainer of the method."""

    plain_reason: str | None = None
    """Why batches are not packed; the encoder itself may be on the fast path all the same."""

    def choose_steps(self, tokenizer: Any, refusal: str | None = None) -> None:
        """Pack batches from now on, or say why not.

        Args:
            tokenizer: of the texts.
            refusal: why the method's loss does not take packed batches.
        """
        self.packing = None
        program, reads = encoder_program_of(self.transformer), head_reads(self.transformer)
        self.plain_reason = self._refusal(program, tokenizer) or refusal
        if program is None or self.plain_reason is not None:
            return
        if reads is None:
            self.plain_reason = "what the head reads of the encoder is not known"
            return
        device = self.args.device
        self._ahead = BatchesAhead()
        # The labels that transformers counts are fetched while the GPU is busy, and need not wait for it.
        self.accelerator.dataloader_config.non_blocking = self.args.dataloader_pin_memory
        self.program = program
        self.packing = Packing(reads, multiple_on(device), int(self.transformer.config.pad_token_id or 0))
        self.graphed = GraphedStep(self._forward_backward, program.buffers)
        self.graph_reason = self._graph_refusal()

    def _refusal(self, program: EncoderProgram | None, tokenizer: Any) -> str | None:
        if program is None:
            return "the encoder is not on the fast path"
        if self.args.fp16:
            return "fp16 scales its losses"
        if program.dtype == torch.float32 and self.args.bf16:
            return "weights in fp32 are to compute in bf16"
        if self.args.world_size > 1 and self.accelerator.distributed_type not in WHOLE_COPIES:
            return "each process holds a share of the model"
        if tokenizer.padding_side != "right":
            return "texts are padded in front"
        return None

    @property
    def runs_flat(self) -> bool:
        """Packed steps are."""
        return self.packing is not None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the base class; a model that was changed since it was read goes the base trainer's way, which
        is said."""
        if self.packing is not None and not self.program.is_current():
            self.packing, self.plain_reason = None, "the model was changed since it was read"
            warnings.warn(f"Batches are not packed, which is slower: {self.plain_reason}", stacklevel=2)
            self.say_slower("steps", self.plain_reason)
        return super().train(*args, **kwargs)

    def _graph_refusal(self) -> str | None:
        """Why a micro-batch is more than launches over memory that stays."""
        if self.args.device.type != "cuda":
            return "they are a GPU's"
        if not self.program.report.complete:
            return "some parts of the encoder are not fused"
        optimizer = str(getattr(self.args.optim, "value", self.args.optim))
        trained = [parameter for parameter in self.transformer.parameters() if parameter.requires_grad]
        if optimizer not in FLAT_OPTIMIZERS or any(p.dtype != torch.float32 for p in trained):
            return "gradients do not add up in buffers that stay"
        if any(projection.has_dropout for projection in self.program.in_force.projections):
            return "the adapter's dropout draws its seeds on the host"
        return None


def with_steps(report: FastPathReport, trainer: HeadSteps) -> FastPathReport:
    """A model's report with what of its steps is as slow as without the fast path, and why."""
    if report.complete and trainer.plain_reason is not None:
        report.count("steps", trainer.plain_reason)
    elif report.complete and trainer.graph_reason is not None and trainer.args.device.type == "cuda":
        report.count("graphs", trainer.graph_reason)
    return report
