"""CSM as a run: text in, frames of several codes out; transformers loads the result."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import CsmForConditionalGeneration, TrainingArguments, set_seed

from ...checks.live import Watch, Watched
from ...errors import WhetError
from ...models.adapters import hold_trained_in_fp32, save_weights
from ...models.loading import load_tokenizer, stored_dtype
from ...plan import Plan
from ...runs.context import RunContext
from ...runs.events import FindingEvent, PhaseEvent
from .. import training
from ..arguments import shared_arguments
from ..complete_loading import adapted, load_complete
from ..earlier import earlier_events
from ..optimizers import usable_optimizer
from ..resuming import cursor_of, look_at_checkpoint
from ..sft.arguments import checkpointing
from ..sft.loading import locate_base, planned_tokens
from ..watching import Watching
from .frames_trainer import FrameCollator, FramesTrainer

CODEC = "codec_model"
"""The part that turns sound into codes and back: it neither trains nor is adapted."""
UNROUNDED = [CODEC, "lm_head", "codebooks_head"]
BESIDE = (
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.jinja",
    "generation_config.json",
)


class FramesTraining(training.Training):
    """The objects of one attempt."""

    def __init__(self, context: RunContext) -> None:
        super().__init__(context)
        context.emit(PhaseEvent(phase="load", detail=self.recipe.model.name))
        self.path, _ = locate_base(context)
        self.model = load_speaking(self.plan, self.path)
        self.tokenizer = load_tokenizer(self.path)
        context.leave_if_asked()
        self.data = planned_tokens(context, self.path)
        context.leave_if_asked()
        self.trainer = self._trainer()
        self.report(evaluates=self.data.eval is not None)

    def _trainer(self) -> FramesTrainer:
        context, recipe, resolved = self.context, self.recipe, self.resolved
        optimizer, finding = usable_optimizer(resolved.optimizer, torch.device(self.model.device))
        if finding is not None:
            context.emit(FindingEvent(finding=finding))
        return FramesTrainer(
            self.model,
            TrainingArguments(
                **shared_arguments(recipe, resolved, context.dir.checkpoints, optimizer),
                **checkpointing(False),  # done while loading
                remove_unused_columns=False,
                label_names=["labels"],
                prediction_loss_only=True,
            ),
            emit=context.emit,
            keep=recipe.training.keep_checkpoints,
            cursor=cursor_of(self.plan),
            train_dataset=Dataset.from_file(str(self.data.train)),
            eval_dataset=Dataset.from_file(str(self.data.eval)) if self.data.eval is not None else None,
            data_collator=FrameCollator(int(_base(self.model).config.num_codebooks)),
            processing_class=self.tokenizer,
        )

    def look(self, checkpoint: Path | None) -> None:
        """Whether a checkpoint is one of this run; then the live checks take over."""
        if checkpoint is not None and isinstance(self.model, PeftModel):
            self.say(look_at_checkpoint(checkpoint, self.model, self.plan))
        watched = Watched(self.recipe, self.resolved, vocabulary=self.plan.model.vocab_size, chats=False)
        watch = Watch(watched, earlier_events(self.context, checkpoint))
        self.watching = Watching(self.context.emit, watch, self.recipe, self.reporter, self.trainer)
        self.trainer.add_callback(self.watching)

    def write(self, folder: Path) -> None:
        """Adapter, or whole model, with tokenizer, processor and configuration."""
        if self.recipe.adapter.kind == "none":
            self.model = self.model.to(stored_dtype(self.plan.model.dtype))
        save_weights(self.model, folder)
        self.tokenizer.save_pretrained(folder)
        for name in BESIDE:
            if (self.path / name).is_file():
                shutil.copyfile(self.path / name, folder / name)
        if isinstance(self.model, PeftModel):
            base = _base(self.model)
            base.config.architectures = [type(base).__name__]
            base.config.save_pretrained(folder)


def load_speaking(plan: Plan, path: Path) -> Any:
    """The plan's model, adapted beside its codec. Raises WhetError ``model.load``, ``adapter.*``."""
    if ends := plan.recipe.adapter.whole_ends():
        raise WhetError(
            "adapter.whole_ends",
            f"{', '.join(ends)} cannot train whole beside an adapter in CSM: two decoders share embeddings.",
            "Leave adapter.train_embeddings and these adapter.modules_to_save out, or train all weights with "
            "adapter.kind=none.",
        )
    set_seed(plan.recipe.training.seed)
    model = load_complete(CsmForConditionalGeneration, plan, path, "CSM", UNROUNDED)
    recipe = plan.recipe
    if recipe.adapter.kind == "none":
        model.get_submodule(CODEC).requires_grad_(False)
        hold_trained_in_fp32(model)
        if plan.resolved.gradient_checkpointing:
            recompute(model)
        return model
    layers = beside_codec(model, recipe.adapter.target_modules)
    under = adapted(model, plan, path, recipe.adapter.model_copy(update={"target_modules": layers}))
    if plan.resolved.gradient_checkpointing:
        recompute(model)  # not before: PEFT asks for gradients of embeddings where it sees recomputing
    return under


def recompute(model: Any) -> None:
    """Layers recompute their activations. The depth decoder writes into its embedding's output, which
    therefore must not become a leaf with a gradient, as transformers makes it."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    model.disable_input_require_grads()


def beside_codec(model: Any, targets: list[str] | str) -> list[str]:
    """Paths of the linear layers that a recipe's names mean, without those of the codec: its attention's
    have the same names."""
    linear = [
        name
        for name, part in model.named_modules()
        if isinstance(part, torch.nn.Linear) and not name.startswith(f"{CODEC}.") and name != "lm_head"
    ]
    if isinstance(targets, str):
        return linear
    found = [name for name in linear if name.rpartition(".")[2] in targets or name in targets]
    return found or list(targets)


def _base(model: Any) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model
