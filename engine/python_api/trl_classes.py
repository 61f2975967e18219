"""`SFTTrainer` and `SFTConfig`: TRL's, taking every generation's spellings, tokenising by the template."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import trl
from datasets import Dataset, IterableDataset
from peft import LoraConfig, PeftConfig, PeftModel
from transformers import AutoConfig, PreTrainedTokenizerBase, TrainingArguments

from ..adapted import WHOLE
from ..errors import WhetError
from ..findings import Finding
from ..methods.sft.trainer import SupervisedTrainer
from ..models.fast_path import program_of
from ..models.locate import resolve_model
from .checkpointing import CHECKPOINTING, is_checkpointing, recompute_by_program
from .collators import collator_findings
from .fast import to_fast_path
from .notes import say
from .precision import resolve_mixed_precision, resolve_optimizer
from .rows import tokenise_dataset
from .scheduling import schedule_steps
from .seeing import is_for_seeing
from .spellings import config_from_trainer, refuse_unknown, translate_config
from .state import base_model, state_of, update

TRL_FIELDS = [field.name for field in fields(trl.SFTConfig) if field.init]


@dataclass(init=False)
class SFTConfig(trl.SFTConfig):
    """TRL's `SFTConfig`, with older spellings translated and what the hardware decides left to the hardware.

    `bf16`/`fp16` follow the machine, 8-bit AdamW falls back where bitsandbytes cannot run it (both said
    aloud), non-finite losses are logged as they are.

    Args:
        output_dir: where checkpoints go.
        embedding_learning_rate: learning rate of `embed_tokens` and `lm_head` where these train whole.
        **given: any field of TRL's `SFTConfig`, in any spelling of :mod:`.spellings`.

    Raises:
        WhetError: `python_api.unknown_argument`, `python_api.conflict`, `python_api.token`,
            `python_api.warmup`.
    """

    embedding_learning_rate: float | None = None

    def __init__(
        self, output_dir: str | None = None, *, embedding_learning_rate: float | None = None, **given: Any
    ) -> None:
        self.embedding_learning_rate = embedding_learning_rate
        arguments = translate_config(given, TRL_FIELDS)
        self.explicit = dict(arguments)
        bf16, fp16 = resolve_mixed_precision(arguments.get("bf16"), arguments.get("fp16"))
        arguments |= {"bf16": bf16, "fp16": fp16}
        if "optim" in arguments:
            arguments["optim"] = resolve_optimizer(
                str(getattr(arguments["optim"], "value", arguments["optim"]))
            )
        # A NaN that is logged as 0.0 looks like perfect learning.
        arguments.setdefault("logging_nan_inf_filter", False)
        arguments.setdefault(CHECKPOINTING[-1], True)
        super().__init__(output_dir=output_dir, **arguments)


class SFTTrainer(SupervisedTrainer):
    """TRL's `SFTTrainer` on whet's supervised trainer, accepting arguments of older generations.

    Rows may be already tokenised, chats (`messages`, `conversations`), prompt and completion, or a text
    column; text that the chat template rendered gets neither a second BOS nor a second end token.

    Args:
        tokenizer: older name of `processing_class`.
        formatting_func: row (or batch of rows) to a text or a list of texts.
        **given: the trainer's arguments, and those that moved to `SFTConfig`.
    """

    def __new__(cls, *args: Any, **given: Any) -> Any:
        """For models that see, a trainer of its own: rows with images are not tokenised beforehand."""
        if cls is SFTTrainer and is_for_seeing(args, given):
            from .vision_trainer import VisionSFTTrainer

            return VisionSFTTrainer(*args, **given)
        return super().__new__(cls)

    def __init__(
        self,
        model: Any,
        args: TrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        formatting_func: Callable[[Any], str | list[str]] | None = None,
        **given: Any,
    ) -> None:
        if tokenizer is not None and processing_class is not None and tokenizer is not processing_class:
            raise WhetError(
                "python_api.conflict",
                "tokenizer= and processing_class= are two different tokenizers.",
                "Keep processing_class=.",
            )
        config = _own_config(args, model)
        moved = config_from_trainer(given, getattr(config, "explicit", {}))
        for name, value in moved.items():
            setattr(config, name, value)
        _follow_model(config, model, moved)
        recompute_by_program(config, model)
        # TRL would look for generation tags in the template; the spans are derived here without them.
        self._assistant_only, config.assistant_only_loss = config.assistant_only_loss, False
        if isinstance(model, str):
            model = str(resolve_model(model, weights=True))
        given["peft_config"] = _train_embeddings_whole(given.get("peft_config"), model)
        self._text_field_named = "dataset_text_field" in (*moved, *getattr(config, "explicit", {}))
        refuse_unknown("SFTTrainer", given, _TRAINER_ARGUMENTS)
        super().__init__(
            model=model,
            args=config,
            data_collator=data_collator,
            train_dataset=_as_dataset(train_dataset),
            eval_dataset=_as_dataset(eval_dataset),
            processing_class=tokenizer if processing_class is None else processing_class,
            formatting_func=formatting_func,
            **given,
        )
        for finding in collator_findings(data_collator, self.processing_class):
            say(f"{finding.id}: {finding.title} {finding.fix.text if finding.fix else ''}")
        self._may_recompute = is_checkpointing(self.model)
        if self.plain_reason is not None:
            say(f"Steps run through TRL's own loss, which is slower: {self.plain_reason}.")

    def _prepare_model(self) -> None:
        """An adapter made from `peft_config=` goes on the fast path as one from `get_peft_model` does."""
        if isinstance(self.model, PeftModel) and program_of(self.model) is None:
            to_fast_path(self.model, None)
            recompute_by_program(self.args, self.model)

    def _prepare_dataset(  # type: ignore[override]
        self,
        dataset: Dataset | IterableDataset,
        processing_class: Any,
        args: trl.SFTConfig,
        packing: bool,
        formatting_func: Callable[[Any], str | list[str]] | None,
        dataset_name: str,
    ) -> Dataset | IterableDataset:
        """Tokenise by the template, then leave cutting and packing to TRL."""
        dataset = tokenise_dataset(
            dataset,
            processing_class,
            args,
            formatting_func=formatting_func,
            prefer_text=self._text_field_named,
            completion_only=args.completion_only_loss,
            only_assistant=self._assistant_only,
            name=dataset_name,
        )
        return super()._prepare_dataset(dataset, processing_class, args, packing, None, dataset_name)

    def found(self, finding: Finding) -> None:
        """Said aloud: a script has no other place for it."""
        fix = "" if finding.fix is None else f" {finding.fix.text} {finding.fix.command or ''}".rstrip()
        say(f"{finding.id}: {finding.title}{fix}")

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As TRL's; on the fast path a step is grouped by the memory that is free."""
        schedule_steps(self, self._may_recompute)
        assert self.model is not None
        update(self.model, trained_on=self.train_dataset)
        return super().train(*args, **kwargs)


WhetTrainer = SFTTrainer
WhetTrainingArguments = SFTConfig
UnslothTrainer = SFTTrainer
UnslothTrainingArguments = SFTConfig

_TRAINER_ARGUMENTS = (
    "compute_loss_func",
    "compute_metrics",
    "callbacks",
    "optimizers",
    "optimizer_cls_and_kwargs",
    "preprocess_logits_for_metrics",
    "quantization_config",
    "peft_config",
)


def _own_config(args: TrainingArguments | None, model: Any) -> trl.SFTConfig:
    """A configuration that may be changed without the caller seeing it."""
    if args is None:
        name = model if isinstance(model, str) else base_model(model).config.name_or_path
        return SFTConfig(f"{(name or 'model').rstrip('/').split('/')[-1]}-SFT")
    if isinstance(args, trl.SFTConfig):
        return copy.copy(args)
    # Plain TrainingArguments, as many scripts pass: rebuilt, so that precision and optimizer are resolved
    # too.
    values = {field.name: getattr(args, field.name) for field in fields(args) if field.init}
    values.pop("hub_token")
    config = SFTConfig(**values)
    config.hub_token = args.hub_token
    config.explicit = {}
    return config


def _follow_model(config: trl.SFTConfig, model: Any, moved: dict[str, Any]) -> None:
    """What the script said when it loaded the model holds unless the configuration says otherwise."""
    state = None if isinstance(model, str) else state_of(model)
    if state is None or not isinstance(config, SFTConfig):
        return
    if "max_length" not in config.explicit and "max_length" not in moved:
        config.max_length = state.max_seq_length
    explicit = any(name in config.explicit for name in CHECKPOINTING)
    if not explicit and state.gradient_checkpointing is not None:
        for name in CHECKPOINTING:
            setattr(config, name, state.gradient_checkpointing)


def _train_embeddings_whole(peft_config: PeftConfig | None, model: Any) -> PeftConfig | None:
    """Embedding and head among an adapter's targets move to `modules_to_save`, said aloud; tied stay tied."""
    if not isinstance(peft_config, LoraConfig) or isinstance(peft_config.target_modules, str | None):
        return peft_config
    moved = sorted(set(peft_config.target_modules) & set(WHOLE))
    if not moved:
        return peft_config
    say(f"{' and '.join(moved)} in target_modules: trained whole (modules_to_save), not by an adapter.")
    changed = copy.copy(peft_config)
    changed.target_modules = sorted(set(peft_config.target_modules) - set(moved))
    changed.modules_to_save = list(dict.fromkeys([*(peft_config.modules_to_save or []), *moved]))
    config = AutoConfig.from_pretrained(model) if isinstance(model, str) else base_model(model).config
    changed.ensure_weight_tying = bool(config.get_text_config().tie_word_embeddings)
    return changed


def _as_dataset(rows: Any) -> Any:
    """A Python list of rows becomes a Dataset; everything else is TRL's to judge."""
    return Dataset.from_list(rows) if isinstance(rows, list) else rows
