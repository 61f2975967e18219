"""sentence-transformers' trainer over a model on the fast path.

The rows of a batch, their order and the loss are the base class's. Texts are tokenised once, before the first
step; a batch is one packed forward pass; what trains lies in flat buffers.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers.base.training_args import BatchSamplers
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from torch.utils.data import DataLoader

from ...models.fast_path.encoders import apply_fast_embedder, embedder_program_of
from ...parallel.process_group import world_size
from ..flat_optimizer import FlatAdamW
from ..sft.ahead import BatchesAhead
from .fast_step import FastEmbedding, plain_reason
from .token_texts import NotPlainTextError, TextBatch, TextCollator, TextNumbers, TokenTexts

FLAT_OPTIMIZERS = {"adamw_torch": 32, "adamw_torch_fused": 32, "adamw_bnb_8bit": 8, "adamw_8bit": 8}
"""transformers' names of the optimizers that the flat AdamW stands in for, and the bits of their moments."""


class FastSentenceTransformerTrainer(SentenceTransformerTrainer):
    """As its base class, on the fast path where the model is on it."""

    data_seconds: float = 0.0
    """Spent on packing ahead, and by a run's loop on all rows."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.fast: FastEmbedding | None = None
        super().__init__(*args, **kwargs)
        self._texts: dict[int, TokenTexts] = {}
        self._ahead = BatchesAhead()
        self._begins = True
        self.plain_reason: str | None = None
        """Why batches do not go through the fast path; the encoder itself may be on it all the same."""
        self._choose()

    def _choose(self) -> None:
        """The fast path, or the reason why not."""
        self.plain_reason = self._refusal()
        self.fast = None
        if self.plain_reason is None:
            self.fast = FastEmbedding(self.model, self.loss, torch.device(self.model.device))
            self.args.logging_nan_inf_filter = False  # it would wait for the device every step

    def _refusal(self) -> str | None:
        args: Any = self.args
        reason = plain_reason(self.model, self.loss)
        if reason is not None:
            return reason
        program = embedder_program_of(self.model[0].model)
        if program is not None and program.dtype == torch.float32 and (args.bf16 or args.fp16):
            return f"weights in fp32 are to compute in {'bf16' if args.bf16 else 'fp16'}"
        if args.world_size > 1 and world_size() == 1:
            return "several processes share a step"
        if args.router_mapping or type(self.data_collator) is not SentenceTransformerDataCollator:
            return "batches are collated in another way"
        for rows in (self.train_dataset, self.eval_dataset):
            if rows is not None and not isinstance(rows, Dataset):
                return f"rows come as {type(rows).__name__}"
        return self._tokenise()

    def _tokenise(self) -> str | None:
        """Read all texts; why they are not read as tokens, or None."""
        labels, prompts = self.data_collator.valid_label_columns, cast(Any, self.args.prompts or {})
        if isinstance(prompts, dict) and any(isinstance(prompt, dict) for prompt in prompts.values()):
            return "prompts are given by data set"
        try:
            for rows in (self.train_dataset, self.eval_dataset):
                if rows is not None and id(rows) not in self._texts:
                    self._texts[id(rows)] = TokenTexts(self.model, rows, labels, prompts)
        except NotPlainTextError as error:
            return str(error)
        return None

    # --- rows

    def get_train_dataloader(self) -> DataLoader:
        """Batches of row numbers in the base class's order, collated to packed texts."""
        if self.fast is None:
            return super().get_train_dataloader()
        self.accelerator.even_batches = False
        return self._loader(self.train_dataset, self.args.train_batch_size)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Likewise for the held-out rows; other rows than those go the base class's way."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        if self.fast is None or id(rows) not in self._texts:
            return super().get_eval_dataloader(eval_dataset)
        self.accelerator.even_batches = True
        return self._loader(rows, self.args.eval_batch_size)

    def _loader(self, rows: Any, batch_size: int) -> DataLoader:
        assert self.fast is not None
        generator = torch.Generator().manual_seed(self.args.seed)
        labels = self.data_collator.valid_label_columns
        unique = self.args.batch_sampler == BatchSamplers.NO_DUPLICATES
        seen: Any = TextNumbers(rows, labels) if unique else rows
        sampler = self.get_batch_sampler(
            seen,
            batch_size=batch_size,
            drop_last=self.args.dataloader_drop_last,
            valid_label_columns=labels,
            generator=generator,
            seed=self.args.seed,
        )
        encoder: Any = self.model[0].model
        filler = int(encoder.config.pad_token_id or 0)
        collate = TextCollator(self._texts[id(rows)], self.fast.multiple, filler)
        loader: DataLoader = DataLoader(range(len(rows)), batch_sampler=sampler, collate_fn=collate)  # type: ignore[arg-type]
        prepared: DataLoader = self.accelerator.prepare(loader)
        return prepared

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """The base class's, from batches that were fetched while the step before was computed."""
        if self.fast is None:
            return super().get_batch_samples(epoch_iterator, num_batches, device)
        return self._ahead.take(epoch_iterator, num_batches), None

    # --- steps

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the base class's; a model that was changed since it was read is read anew, and it is said where
        that leaves the fast path."""
        if self.fast is not None and not self.fast.program.is_current():
            apply_fast_embedder(self.model[0].model, self.fast.program.dtype)
            self._choose()
            if self.plain_reason is not None:
                warnings.warn(f"Batches are slower from now on: {self.plain_reason}", stacklevel=2)
        self._begins = True
        with self._cheap_zeroing():
            return super().train(*args, **kwargs)

    @contextmanager
    def _cheap_zeroing(self) -> Iterator[None]:
        """Spare the loop's ``model.zero_grad()``, which walks every module while the GPU waits, where each
        step zeroes the flat buffer anyway."""
        model: Any = self.model

        def zero_grad(set_to_none: bool = True) -> None:
            if self.fast is None or self._flat is None:
                type(model).zero_grad(model, set_to_none)

        model.zero_grad = zero_grad
        try:
            yield
        finally:
            del model.zero_grad

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """One micro-batch, forward and backward; its share of the step's loss, 0-d and detached."""
        batch = inputs.get("texts")
        if self.fast is None or not isinstance(batch, TextBatch):
            return super().training_step(model, inputs, num_items_in_batch)
        if not model.training:
            model.train()
        flat = self._flat
        if flat is not None and self._begins:
            flat.zero_grad()
        self._begins = self.accelerator.sync_gradients
        share = 1.0 / self.current_gradient_accumulation_steps
        loss = self.fast.train(
            batch, inputs.get("label"), share, scaler=self.accelerator.scaler, flat=flat is not None
        )
        self.data_seconds += self._ahead.fetch()
        return loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Of packed texts by the fast path, of anything else as the base class."""
        batch = inputs.get("texts")
        if self.fast is None or not isinstance(batch, TextBatch):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.get("label")
        labels = None if labels is None else labels.to(self.fast.device)
        loss = self.fast.compute(self.fast.on_device(batch), labels)
        return (loss, {}) if return_outputs else loss

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted; the base class looks for padded ids."""
        return 0 if self.fast is not None else super().floating_point_ops(inputs)

    # --- optimizer

    @property
    def _flat(self) -> FlatAdamW | None:
        inner = getattr(self.optimizer, "optimizer", self.optimizer)
        return inner if isinstance(inner, FlatAdamW) else None

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW over flat buffers on the fast path, else the base class's choice."""
        bits = FLAT_OPTIMIZERS.get(str(getattr(self.args.optim, "value", self.args.optim)))
        if self.fast is None or bits is None or self.optimizer is not None:
            return super().create_optimizer(*([] if model is None else [model]))
        args = self.args
        decayed = set(self.get_decay_parameter_names(self.model))
        groups: list[dict[str, Any]] = [
            {"params": [], "weight_decay": args.weight_decay},
            {"params": [], "weight_decay": 0.0},
        ]
        for name, param in self.model.named_parameters():
            if param.requires_grad:
                groups[name not in decayed]["params"].append(param)
        self.optimizer = FlatAdamW(
            [group for group in groups if group["params"]],
            lr=args.learning_rate,
            betas=(args.adam_beta1, args.adam_beta2),
            eps=args.adam_epsilon,
            bits=bits,
        )
        return self.optimizer

    def _clip_grad_norm(self, model: torch.nn.Module) -> Any:
        flat = self._flat
        if flat is None:
            return super()._clip_grad_norm(model)
        if self.accelerator.scaler is not None:
            self.accelerator.unscale_gradients()
        return flat.clip_(self.args.max_grad_norm)
