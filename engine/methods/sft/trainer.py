"""Supervised fine-tuning on TRL's trainer, held to exact numbers.

What differs from :class:`trl.SFTTrainer`:

- The loss of an optimizer step is the summed token loss over the number of supervised tokens of the whole
  step, whatever the micro-batches; a held-out loss is the mean over all supervised tokens of the set.
- A loss or a gradient that is not finite ends the run before it reaches the weights.
- Evaluation leaves the random numbers alone: how often one looks does not change what one sees.
- Adapters stay in fp32 on a quantised base, and nothing is reported to anybody.
- A model on the fast path (:mod:`whet.engine.models.fast_path`) trains and evaluates on packed rows: the same
  rows in the same steps, however many go through at once.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import trl
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput

from ...checks.evaluation import predictions_fit
from ...errors import WhetError
from ...findings import Finding
from ...models.fast_path import apply_fast_path, causal_model, program_of, slower
from ...parallel.collectives import sum_counts, sum_numbers
from ..embedding_rate import split_embedding_groups
from ..flat_optimizer import FlatAdamW
from ..random_numbers import preserved_rng
from ..rank_steps import RankSteps
from ..shares import counted
from .adapter_precision import adapter_weights, restore_precision
from .ahead import BatchesAhead
from .collation import IGNORED, count_supervised, count_tokens
from .culprit import not_finite
from .embedding_noise import EmbeddingNoise
from .fast_choice import plain_reason
from .fast_step import FastStep
from .optimizer import FLAT_OPTIMIZERS, flat_optimizer
from .packed_steps import PaddingFreeCollator, TokenRow
from .predictions import prediction_facts
from .unpadding import UnpaddingCollator

UNBOUNDED = 1 << 30


@dataclass
class StepStats:
    """What the last finished optimizer step saw."""

    loss: float = math.nan
    """Mean over the step's supervised tokens, nats."""
    tokens: int = 0
    supervised_tokens: int = 0
    grad_norm: float = math.nan
    """L2 norm over all trained parameters, before clipping."""
    metrics: dict[str, float] = field(default_factory=dict)
    """What the method measures beside."""


class SupervisedTrainer(RankSteps, trl.SFTTrainer):
    """TRL's SFTTrainer with exact, checked losses. See the module's text for what differs.

    Raises:
        WhetError: ``train.not_finite`` from :meth:`train`, before the bad step changes a weight.
    """

    def __init__(self, model: Any, args: Any = None, **kwargs: Any) -> None:
        adapters = adapter_weights(model)
        super().__init__(model, args, **kwargs)
        restore_precision(self.model, adapters)
        self._prepare_model()
        self.plain_reason: str | None = None
        """Why steps do not run on the fast path that the model is on."""
        self.noise: EmbeddingNoise | None = None
        self.embedding_rate: float | None = getattr(self.args, "embedding_learning_rate", None)
        """Of embedding and head that train whole; None is the learning rate."""
        self.fast = self._fast_step()
        # A NaN must be seen; the base class would log the mean of the losses before it.
        self.args.logging_nan_inf_filter = False
        # TRL's compute_loss reads it, the base class first sets it in its loop; the self-tests come before.
        self.current_gradient_accumulation_steps = self.args.gradient_accumulation_steps
        self.stats = StepStats()
        self._running: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._waiting: list[TokenRow] = []
        self._step_batches: list[Any] = []
        self._trains = False
        self._ahead = BatchesAhead()

    def _prepare_model(self) -> None:
        """For subclasses: the model as TRL made it, before the choice between fast and plain path."""

    def _fast_step(self) -> FastStep | None:
        """The fast path of a model that is on it; its rows then come without padding."""
        if isinstance(self.data_collator, UnpaddingCollator):
            self.data_collator = self.data_collator.padded
        program = program_of(self.model)
        if program is None:
            return None
        self.plain_reason = plain_reason(self, program)
        if self.plain_reason is not None:
            return None
        if not isinstance(self.data_collator, PaddingFreeCollator):
            self.data_collator = UnpaddingCollator(self.data_collator)
        if self.args.neftune_noise_alpha is not None:
            # transformers' own hook would take the packed row for one long document.
            self.neftune_noise_alpha = None
            self.noise = EmbeddingNoise(self.args.neftune_noise_alpha)
        return FastStep(program, self.args.device, budget=UNBOUNDED, noise=self.noise)

    def _send_telemetry(self) -> None:
        """Nothing is sent."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As TRL's; a step that an earlier call left half done is forgotten."""
        self._running.clear()
        self._waiting.clear()
        self._trains = False
        self._follow_model()
        embedding = causal_model(self.model).get_input_embeddings()
        with self.noise.on(embedding) if self.noise else nullcontext(), self._cheap_zeroing():
            return super().train(*args, **kwargs)

    @contextmanager
    def _cheap_zeroing(self) -> Iterator[None]:
        """Spare the loop's ``model.zero_grad()``, which walks every module while the GPU waits, where each
        step of ours zeroes the flat buffer anyway."""
        model: Any = self.model

        def zero_grad(set_to_none: bool = True) -> None:
            if self.fast is None or self._flat is None:
                type(model).zero_grad(model, set_to_none)

        model.zero_grad = zero_grad
        try:
            yield
        finally:
            del model.zero_grad

    def _follow_model(self) -> None:
        """Read the model anew if an adapter was added, merged or taken away since it was read."""
        if self.fast is not None and not self.fast.program.is_current():
            budget = self.fast.budget
            apply_fast_path(self.model, self.fast.program.dtype)
            self.fast = self._fast_step()
            if self.fast is not None:
                self.fast.budget = budget
            else:
                reason = self.plain_reason or "the model was changed, and is not on the fast path"
                warnings.warn(f"Steps are slower from now on: {reason}", stacklevel=3)

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """One micro-batch, forward and backward; the detached share of the step's loss, 0-d.

        The numbers are fetched from the device once an optimizer step, not once a micro-batch. On the fast
        path micro-batches wait until all rows of the step are there.
        """
        if self.fast is not None and "rows" in inputs:
            return self._fast_training_step(self.fast, model, inputs["rows"])
        if self.noise is not None:
            self.noise.widths_T = None
        if not self._running:
            self._step_batches.clear()
            if self._flat is not None:
                self._flat.zero_grad()
        self._step_batches.append(dict(inputs))
        tokens, supervised = count_tokens(inputs), count_supervised(inputs["labels"])
        if self.filler:
            tokens, supervised = torch.zeros_like(tokens), torch.zeros_like(supervised)
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        self._running.append((loss, tokens, supervised))
        if self.accelerator.sync_gradients:
            self._close_step()
        return loss

    def _fast_training_step(
        self, fast: FastStep, model: torch.nn.Module, rows: list[TokenRow]
    ) -> torch.Tensor:
        if not self.filler:
            self._waiting += rows
        if not self.accelerator.sync_gradients:
            self._passed()
            return torch.zeros((), device=self.args.device)
        rows, self._waiting = self._waiting, []
        self._step_batches[:] = [{"rows": rows}]
        # Setting it walks thousands of modules, while the GPU waits; but a wrapper may say that it trains
        # around a model that was loaded for answering, so it is set once whatever it says.
        if not (self._trains and model.training):
            model.train()
            self._trains = True
        if self._flat is not None:
            self._flat.zero_grad()
        (normaliser,) = sum_counts(sum(int((row.labels != IGNORED).sum()) for row in rows))
        sums = fast.train(rows, normaliser, self.accelerator.scaler, self.between_micro_batches)
        self._passed()
        self._ahead.fetch()
        if (reason := fast.graphed.newly_stopped()) is not None:
            self.found(slower("graphs", reason))
        self._report(sums.loss, sums.tokens, sums.supervised)
        self._measured("train", float(sums.correct), sums.supervised)
        self._total_train_tokens += sums.tokens
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        return sums.loss

    def between_micro_batches(self) -> None:
        """For subclasses that may leave a step of the fast path in its middle."""

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The base class's, from batches that were fetched while the step before was computed."""
        self._begin_step()
        batches = self._ahead.take(epoch_iterator, num_batches)
        return batches, self._get_num_items_in_batch(batches, device)

    def _measured(self, mode: str, correct: float, supervised: int) -> None:
        """What TRL logs beside the loss."""
        self._metrics[mode]["mean_token_accuracy"].append(correct / max(supervised, 1))

    @property
    def _flat(self) -> FlatAdamW | None:
        inner = getattr(self.optimizer, "optimizer", self.optimizer)
        return inner if isinstance(inner, FlatAdamW) else None

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW over flat buffers for a model on the fast path, else the base trainer's choice; embedding
        and head in groups of their own where they have another rate."""
        if self.optimizer is not None:
            return self.optimizer
        bits = FLAT_OPTIMIZERS.get(str(getattr(self.args.optim, "value", self.args.optim)))
        if self.fast is None or bits is None:
            optimizer = super().create_optimizer(*([] if model is None else [model]))
        else:
            optimizer = self.optimizer = flat_optimizer(self, bits)
        if self.embedding_rate is not None:
            split_embedding_groups(optimizer, causal_model(self.model), self.embedding_rate)
        return optimizer

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted; the base class looks for padded ids."""
        return 0

    def _close_step(self) -> None:
        loss, tokens, supervised = (torch.stack(parts).sum() for parts in zip(*self._running, strict=True))
        self._running.clear()
        self._report(loss, tokens, supervised)

    def _report(self, loss: torch.Tensor, tokens: Any, supervised: Any) -> None:
        """Keep the step's numbers, over all processes.

        Raises:
            WhetError: ``train.not_finite``.
        """
        if self.ranks > 1:
            self.stats.loss, (self.stats.tokens, self.stats.supervised_tokens) = self.over_ranks(
                loss, tokens, supervised
            )
        elif self.args.world_size == 1:
            self.stats.loss, self.stats.tokens, self.stats.supervised_tokens = (
                float(loss),
                int(tokens),
                int(supervised),
            )
        else:
            self._reduce_stats(loss, tokens, supervised)
        if not math.isfinite(self.stats.loss):
            raise self._not_finite("loss", self.stats.loss)

    def _reduce_stats(self, loss: torch.Tensor, tokens: Any, supervised: Any) -> None:
        counts = torch.tensor([int(tokens), int(supervised)], device=self.args.device)
        self.stats.loss = float(self.accelerator.reduce(loss, reduction="mean"))
        self.stats.tokens, self.stats.supervised_tokens = self.accelerator.reduce(
            counts, reduction="sum"
        ).tolist()

    def _clip_grad_norm(self, model: torch.nn.Module) -> Any:
        """Clips, and keeps the norm before clipping. fp16's scaler skips its own overflows."""
        if self._flat is None:
            norm = super()._clip_grad_norm(model)
        else:
            if self.accelerator.scaler is not None:
                self.accelerator.unscale_gradients()
            norm = self._flat.clip_(self.args.max_grad_norm)
        self.stats.grad_norm = float(norm)
        if not math.isfinite(self.stats.grad_norm) and self.accelerator.scaler is None:
            raise self._not_finite("gradient norm", self.stats.grad_norm)
        return norm

    def _not_finite(self, what: str, value: float) -> WhetError:
        """T01, found in the module where the numbers first went wrong, and the error that ends the run."""
        finding = not_finite(self, what, value, self._step_batches)
        self.found(finding)
        assert finding.fix is not None
        return WhetError(
            "train.not_finite",
            f"{finding.title} The weights were not changed by this step.",
            f"{finding.fix.text} The data of this step may also hold a broken row.",
        )

    def found(self, finding: Finding) -> None:
        """For subclasses that have somebody to tell."""

    @property
    def data_seconds(self) -> float:
        """Spent on fetching and collating rows so far."""
        return self._ahead.seconds

    def _look_at_predictions(self, loader: DataLoader) -> None:
        """T08 where the logits of all rows are more than there is room for."""
        if self.preprocess_logits_for_metrics is None and self.compute_metrics is not None:
            finding = predictions_fit(prediction_facts(self, loader))
            if finding is not None:
                self.found(finding)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Held-out metrics; the random number generators are left as they were."""
        self._follow_model()
        with preserved_rng(self.args.device):
            metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        return metrics

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Padded where predictions are asked for."""
        if self.compute_metrics is None:
            return super().get_eval_dataloader(eval_dataset)
        with self._padding():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """Padded: predictions are what it is for."""
        with self._padding():
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def _padding(self) -> Iterator[None]:
        """Collate to padded tensors while the context lasts."""
        collator = self.data_collator
        if isinstance(collator, UnpaddingCollator):
            self.data_collator = collator.padded
        try:
            yield
        finally:
            self.data_collator = collator

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Mean loss over all supervised tokens of the set (``eval_loss``, and ``eval_supervised_tokens``).

        The base class averages the means of the batches, which weighs a token by how short its batch is. It
        still serves where predictions are asked for.
        """
        if not prediction_loss_only:
            self._look_at_predictions(dataloader)
            return super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        model: Any = self.model
        model.eval()
        nll = torch.zeros((), dtype=torch.float64)
        supervised = rows = 0
        correct: float | None = None
        for batch, counts in counted(dataloader):
            loss, count, right = self._held_out(model, batch)
            if counts:
                nll += loss
                supervised += count
                rows += len(batch["rows"] if "rows" in batch else batch["labels"])
                correct = correct if right is None else (correct or 0.0) + right
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        totals = torch.tensor(sum_numbers(float(nll), supervised, rows), dtype=torch.float64)
        if self.ranks == 1 and self.args.world_size > 1:
            totals = self.accelerator.reduce(totals.to(self.args.device), reduction="sum").cpu()
        if correct is not None:
            self._measured("eval", correct, supervised)
        metrics = {
            f"{metric_key_prefix}_loss": float(totals[0] / totals[1]) if totals[1] else math.nan,
            f"{metric_key_prefix}_supervised_tokens": int(totals[1]),
        }
        nothing: Any = None
        return EvalLoopOutput(
            predictions=nothing, label_ids=None, metrics=metrics, num_samples=int(totals[2])
        )

    def _held_out(self, model: Any, batch: dict[str, Any]) -> tuple[Any, int, float | None]:
        """A batch's summed loss in fp64, its supervised tokens; on the fast path those predicted right."""
        if self.fast is not None and "rows" in batch:
            sums = self.fast.evaluate(batch["rows"])
            return sums.loss.double().cpu(), sums.supervised, float(sums.correct)
        inputs = self._prepare_inputs(batch)
        count = int(count_supervised(inputs["labels"]))
        with torch.no_grad(), self.accelerator.autocast(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs)
        return count * loss.double().cpu() if count else 0.0, count, None
