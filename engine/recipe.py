"""The recipe: what the user wants, and nothing about how it will be done (that is the plan).

One pydantic model is the validation, the help text, the JSON Schema, the TUI's form and the MCP tools' input.
Files, overrides and readable errors are in :mod:`whet.engine.recipe_files`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from .errors import WhetError
from .export.gguf.types import check_types
from .export.targets.memory import DEFAULT_SHARE, MAX_SHARE
from .methods.classification.section import ClassificationSection
from .methods.embedding.section import EmbeddingSection
from .methods.grpo.section import GRPOSection
from .methods.preference.section import PreferenceSection
from .methods.reranker.section import RerankerSection
from .methods.reward.section import RewardSection
from .methods.sft.section import SFTSection
from .methods.speech.section import SpeechSection
from .methods.token_classification.section import TokenClassificationSection
from .methods.tts.section import TTSSection
from .methods.vision.section import VisionSection
from .parallel.section import HardwareSection
from .recipe_rules import check, is_new, refuse_unwritable

Precision = Literal["auto", "bf16", "fp16", "fp32"]
BasePrecision = Literal["auto", "bf16", "fp16", "fp32", "nf4", "int8", "fp8"]
EndPrecision = Literal["auto", "16bit", "int8", "nf4"]
DataFormat = Literal["auto", "text", "alpaca", "sharegpt", "messages", "prompt_completion"]
Droppable = Literal["duplicates", "empty", "odd", "leaked", "cut", "markers"]
Scheduler = Literal["linear", "cosine", "constant", "constant_with_warmup", "cosine_with_min_lr"]
Optimizer = Literal["adamw_8bit", "adamw"]
OnError = Literal["continue", "checkpoint", "pause", "stop"]
ENDS = ("embed_tokens", "lm_head")
"""A decoder's input embedding and output head."""

# A union discriminated on `kind`: a setting of another method cannot be expressed.
MethodSection = (
    SFTSection
    | EmbeddingSection
    | ClassificationSection
    | TokenClassificationSection
    | RerankerSection
    | PreferenceSection
    | RewardSection
    | GRPOSection
    | SpeechSection
    | TTSSection
    | VisionSection
)
METHODS: dict[str, type[BaseModel]] = {
    "sft": SFTSection,
    "embedding": EmbeddingSection,
    "classification": ClassificationSection,
    "token_classification": TokenClassificationSection,
    "reranker": RerankerSection,
    "preference": PreferenceSection,
    "reward": RewardSection,
    "grpo": GRPOSection,
    "speech": SpeechSection,
    "tts": TTSSection,
    "vision": VisionSection,
}
OTHER_METHODS = {
    "ppo": "use kind: grpo, as it is or with variant: rloo, which need no value model",
    "rloo": "use kind: grpo with variant: rloo",
    "dapo": "use kind: grpo with variant: dapo",
    "gspo": "use kind: grpo with variant: gspo",
    "dr_grpo": "use kind: grpo with variant: dr_grpo",
}
"""Methods that whet has not, and what does their work."""


def kind_of_method(value: Any) -> str:
    """Which section a method's settings belong to; supervised fine-tuning where they do not say."""
    return str(value.get("kind", "sft") if isinstance(value, Mapping) else getattr(value, "kind", ""))


class Section(BaseModel):
    """Frozen, and strict about its keys: a typing error in a recipe must never be ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSection(Section):
    """Which model, and how its base weights are held."""

    name: str = Field(description="`demo`, a local directory, or a hub id such as `meta-llama/Llama-3.2-1B`.")
    revision: str | None = Field(None, description="Hub branch, tag or commit.")
    max_length: int = Field(2048, ge=8, description="Longest training row in tokens; longer rows are cut.")
    precision: BasePrecision = Field(
        "auto",
        description="How the base weights are held: 16-bit (auto picks bf16 where the hardware has it), "
        "fp32, or quantised to nf4 (QLoRA), int8, or fp8 (half of 16-bit's memory, and multiplied in FP8 on "
        "GPUs of capability 8.9 or more).",
    )
    products: Literal["auto", "16bit", "fp8"] = Field(
        "auto",
        description="What a quantised base is multiplied in: auto is FP8 for precision=fp8 where the GPU "
        "can, else 16 bits; fp8 does it for nf4 too.",
    )
    embedding_precision: EndPrecision = Field(
        "auto",
        description="How a frozen input embedding is held: 16bit (auto), int8, or nf4 at a quarter of the "
        "memory. Tied to the head, both are one table.",
    )
    head_precision: EndPrecision = Field(
        "auto", description="How a frozen output head is held; the choices of embedding_precision."
    )
    end_tokens: list[str] = Field(
        default_factory=list,
        description="Tokens that end an answer beside those of generation_config.json, written into what is "
        "saved. The end of turn of a template named in data.template is always among them.",
    )


class DataSection(Section):
    """Where the rows are and how they are read."""

    train: str | list[str] = Field(
        description="`demo`, a file (JSONL, JSON, CSV, Parquet, text), a folder, a hub id, or a list of them."
    )
    eval: str | None = Field(None, description="Held-out rows, same choices as `train`.")
    eval_fraction: float = Field(
        0.0, ge=0, lt=1, description="Without `eval`: hold out this share of the training rows."
    )
    split: str = Field("train", description="Split of a hub data set.")
    subset: str | None = Field(None, description="Configuration name of a hub data set.")
    revision: str | None = Field(None, description="Revision of a hub data set.")
    streaming: bool = Field(
        False, description="Read a hub data set row by row instead of downloading it whole."
    )
    format: DataFormat = Field("auto", description="How a row is laid out; auto looks at the rows.")
    columns: dict[str, str] = Field(
        default_factory=dict, description="Rename columns: the format's field name to this data's column."
    )
    template: str | None = Field(
        None, description="Chat template by name (`whet template --list`); by default the model's own."
    )
    system: str | None = Field(None, description="System message for conversations that have none.")
    reasoning: Literal["auto", "each", "drop"] = Field(
        "auto",
        description="Thinking before answers: auto learns it with its answer, and takes answers whose "
        "thinking the template drops (those before the last question) as context; each makes a row of every "
        "answer, so that all are learnt with their thinking; drop learns answers alone.",
    )
    bad_rows: Literal["stop", "skip"] = Field(
        "stop", description="A row that cannot be read stops the plan, or is skipped and reported."
    )
    drop: list[Droppable] = Field(
        default_factory=list,
        description="Leave training rows out: duplicates (all but the first), empty (no reply, or none with "
        "text), odd (roles out of order), leaked (also in data.eval), cut (longer than max_length), markers "
        "(special tokens or markers of another model in the text).",
    )
    max_rows: int | None = Field(None, ge=1, description="Use only the first N rows.")


class AdapterSection(Section):
    """Which small part is trained. `kind: none` trains all weights (full fine-tuning)."""

    kind: Literal["lora", "rslora", "dora", "none"] = "lora"
    rank: int = Field(16, ge=1, description="Rank r of the update.")
    alpha: float = Field(
        16, gt=0, description="Scale: the update is multiplied by alpha/r (rsLoRA: alpha/sqrt(r))."
    )
    dropout: float = Field(0.0, ge=0, lt=1)
    bias: Literal["none", "all", "lora_only"] = "none"
    target_modules: list[str] | Literal["all-linear"] = Field(
        default=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        description="Names of the linear layers to adapt.",
    )
    modules_to_save: list[str] = Field(
        default_factory=list,
        description="Modules trained whole beside the adapter, e.g. embed_tokens, lm_head.",
    )
    train_embeddings: bool = Field(
        False,
        description="Train embed_tokens and lm_head whole beside the adapter, for a language or a field that "
        "the model hardly knows; the same as naming both in modules_to_save.",
    )

    def whole_ends(self) -> list[str]:
        """Embedding and head where they train whole beside the adapter, whichever setting says so."""
        if self.kind == "none":
            return []
        targets = [] if isinstance(self.target_modules, str) else self.target_modules
        named = (*self.modules_to_save, *targets, *(ENDS if self.train_embeddings else ()))
        return [name for name in ENDS if name in named]


class TrainingSection(Section):
    """The optimizer's loop. Defaults are the common LoRA fine-tuning values."""

    epochs: float = Field(1.0, gt=0, description="Passes over the data; ignored when max_steps is given.")
    max_steps: int | None = Field(None, ge=1, description="Optimizer steps.")
    batch_size: int = Field(2, ge=1, description="Rows per micro-batch and device.")
    gradient_accumulation: int = Field(4, ge=1, description="Micro-batches per optimizer step.")
    learning_rate: float = Field(2e-4, gt=0)
    embedding_learning_rate: float | None = Field(
        None,
        gt=0,
        description="Of embed_tokens and lm_head where they train whole; by default a tenth of learning_rate "
        "beside an adapter, and learning_rate where all weights train.",
    )
    scheduler: Scheduler = "linear"
    warmup: float = Field(5, ge=0, description="Steps, or a share of all steps when below 1.")
    optimizer: Optimizer = "adamw_8bit"
    weight_decay: float = Field(0.001, ge=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    epsilon: float = Field(1e-8, gt=0)
    max_grad_norm: float = Field(
        1.0, ge=0, description="Clip the gradient's norm to this; 0 turns clipping off."
    )
    precision: Precision = Field("auto", description="Compute type; auto is bf16 where the hardware has it.")
    gradient_checkpointing: Literal["auto", "on", "off"] = "auto"
    max_memory_gib: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="Plan for at most so much GPU memory (RAM where there is no GPU); by default for all.",
    )
    seed: int = Field(3407, ge=0)
    save_every: int | None = Field(None, ge=1, description="Checkpoint each N steps; by default ten a run.")
    keep_checkpoints: int = Field(2, ge=1, description="Newest finished checkpoints kept, beside the best.")
    threads: int | None = Field(
        None, ge=1, description="CPU threads; recorded, since they change the last digits."
    )

    @field_validator("gradient_checkpointing", mode="before")
    @classmethod
    def _yaml_switch(cls, value: object) -> object:
        """YAML reads a bare `on` or `off` as a truth value."""
        return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


class EvalSection(Section):
    """When held-out loss is measured, and whether it ends the run."""

    every: int | None = Field(None, ge=1, description="Steps between evaluations; by default five a run.")
    batch_size: int = Field(2, ge=1)
    early_stopping: int | None = Field(
        None,
        ge=1,
        description="Stop after this many evaluations without improvement; the best weights are kept.",
    )
    min_improvement: float = Field(0.0, ge=0, description="What counts as improvement, in nats.")


class SamplingSection(Section):
    """Prompts answered by the model before training and at each evaluation."""

    prompts: list[str] = Field(default_factory=list)
    max_new_tokens: int = Field(64, ge=1)
    temperature: float = Field(0.0, ge=0, description="0 is greedy, which makes answers comparable.")


class ExportSection(Section):
    """What is written after training, beside the adapter, and proven."""

    merged: bool = Field(False, description="Write the merged 16-bit weights.")
    merged_4bit: bool = Field(False, description="Write merged weights in bitsandbytes' nf4.")
    fp8: bool = Field(False, description="Write merged weights in FP8 (compressed-tensors) for vLLM.")
    adapter_gguf: bool = Field(
        False, description="Write the adapter as a GGUF, which llama.cpp lays over the base's."
    )
    gguf: list[str] = Field(
        default_factory=list, description="GGUF types, e.g. [f16, q8_0, q4_k_m]; f16 is always the reference."
    )
    imatrix: str | None = Field(
        None,
        description="Importance matrix for quantised GGUFs: rows (those trained on), a text or data file, "
        "or a matrix by llama-imatrix (.gguf). By default the rows trained on, for types that need one.",
    )
    smoke_test: bool = Field(True, description="Prove each GGUF against the trained model with llama.cpp.")
    maximum_memory_usage: float = Field(
        DEFAULT_SHARE,
        gt=0,
        le=MAX_SHARE,
        description="Share of the free memory, the machine's and the GPU's, that merging and its proofs may "
        "take. Lower it when an export runs out of memory.",
    )

    @field_validator("gguf")
    @classmethod
    def _known_types(cls, names: list[str]) -> list[str]:
        """In our spelling, each once; an unknown one is refused with the nearest name."""
        try:
            return [kind.name for kind in check_types(names)]
        except WhetError as error:
            raise ValueError(f"{error.message} {error.hint}") from error


class ChecksSection(Section):
    """What the checks may do while the run is going on. What they see is said whatever this is."""

    on_error: OnError = Field(
        "continue",
        description="When a check finds an error during training: continue says it and goes on; checkpoint "
        "also writes a checkpoint; pause writes one and stops, to be resumed, with the finding as the "
        "reason; stop ends the run at once. A loss that is not finite always ends the run.",
    )


class Recipe(Section):
    """A whole fine-tuning job. Everything has a default but the model's name and the data."""

    name: str | None = Field(
        None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Prefix of the run's id."
    )
    model: ModelSection
    data: DataSection
    method: Annotated[
        Annotated[SFTSection, Tag("sft")]
        | Annotated[EmbeddingSection, Tag("embedding")]
        | Annotated[ClassificationSection, Tag("classification")]
        | Annotated[TokenClassificationSection, Tag("token_classification")]
        | Annotated[RerankerSection, Tag("reranker")]
        | Annotated[PreferenceSection, Tag("preference")]
        | Annotated[RewardSection, Tag("reward")]
        | Annotated[SpeechSection, Tag("speech")]
        | Annotated[TTSSection, Tag("tts")]
        | Annotated[VisionSection, Tag("vision")]
        | Annotated[GRPOSection, Tag("grpo")],
        Discriminator(kind_of_method),
    ] = Field(default_factory=SFTSection)
    adapter: AdapterSection = Field(default_factory=AdapterSection)
    training: TrainingSection = Field(default_factory=TrainingSection)
    eval: EvalSection = Field(default_factory=EvalSection)
    sampling: SamplingSection = Field(default_factory=SamplingSection)
    export: ExportSection = Field(default_factory=ExportSection)
    checks: ChecksSection = Field(default_factory=ChecksSection)
    hardware: HardwareSection = Field(default_factory=HardwareSection)
    accept: list[str] = Field(
        default_factory=list, description="Ids of error findings the user accepts, e.g. [D16]."
    )

    @model_validator(mode="before")
    @classmethod
    def _writable(cls, values: Any, info: ValidationInfo) -> Any:
        """Refuse values that no run can hold (:func:`.recipe_rules.refuse_unwritable`)."""
        if is_new(info):
            refuse_unwritable(values)
        return values

    @field_validator("method", mode="before")
    @classmethod
    def _known_method(cls, value: Any) -> Any:
        """Refuse an unknown method by its name, with what comes nearest."""
        kind = kind_of_method(value)
        if kind not in METHODS and isinstance(value, Mapping):
            near = difflib.get_close_matches(kind, METHODS, n=1)
            hint = OTHER_METHODS.get(kind) or (f"did you mean {near[0]}?" if near else "")
            known = ", ".join(METHODS)
            raise ValueError(f"method.kind={kind} is none of {known}{f'; {hint}' if hint else ''}.")
        return value

    @model_validator(mode="after")
    def _consistent(self, info: ValidationInfo) -> Recipe:
        """Refuse settings that contradict each other (:mod:`.recipe_rules`)."""
        if is_new(info):
            check(self)
        return self

    @model_validator(mode="after")
    def _seen_whole(self, info: ValidationInfo) -> Recipe:
        """Refuse what is not made of models that see images, before hours of training."""
        if self.method.kind == "vision" and is_new(info):
            self.method.check_recipe(self.model, self.adapter, self.export, self.data)
        return self

    @model_validator(mode="after")
    def _groups_fit(self, info: ValidationInfo) -> Recipe:
        """Refuse steps that do not hold whole groups of answers."""
        if self.method.kind == "grpo" and is_new(info):
            training = self.training
            self.method.check_sizes(
                training.batch_size, training.gradient_accumulation, self.model.max_length
            )
        return self

    def beyond_lora(self) -> str | None:
        """What trains beyond products on linear layers; llama.cpp takes no more as an adapter."""
        adapter = self.adapter
        if adapter.kind in ("none", "dora"):
            return f"adapter.kind={adapter.kind}"
        if adapter.bias != "none":
            return f"adapter.bias={adapter.bias}"
        whole = [*adapter.modules_to_save, *adapter.whole_ends()]
        return f"{whole[0]} trained whole" if whole else None
