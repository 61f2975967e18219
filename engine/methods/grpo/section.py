"""Recipe section of reinforcement learning from rewards. Light: no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from ...errors import WhetError
from ...recipe_rules import is_new
from ...rewards.spec import RewardList
from ..section import RowMethod

if TYPE_CHECKING:
    from ..stored_rows import StoredRows

Variant = Literal["grpo", "dapo", "dr_grpo", "gspo", "rloo"]
Loss = Literal["grpo", "bnpo", "dapo", "dr_grpo"]
OVERLONG_SHARE = 0.2
"""Of the longest answer, where DAPO's punishment of length begins before the end (arXiv:2503.14476)."""


@dataclass(frozen=True)
class Knobs:
    """What tells the variants apart. See :class:`GRPOSection` for each."""

    loss: Loss = "grpo"
    scale_rewards: Literal["group", "batch", "none"] = "group"
    importance: Literal["token", "sequence"] = "token"
    epsilon: float = 0.2
    epsilon_high: float | None = None
    mask_truncated: bool = False
    overlong_buffer: int = 0
    dynamic_sampling: int = 0


VARIANTS: dict[Variant, Knobs] = {
    "grpo": Knobs(),  # arXiv:2402.03300
    "dapo": Knobs(loss="dapo", epsilon_high=0.28, overlong_buffer=-1, dynamic_sampling=3),  # arXiv:2503.14476
    "dr_grpo": Knobs(loss="dr_grpo", scale_rewards="none"),  # arXiv:2503.20783
    "gspo": Knobs(importance="sequence", epsilon=3e-4, epsilon_high=4e-4),  # arXiv:2507.18071
    "rloo": Knobs(scale_rewards="none", importance="sequence"),  # arXiv:2402.14740
}
NOT_RLOO = ("loss", "scale_rewards", "importance")
"""What is fixed where whole answers are compared with the mean of the others."""


class GRPOSection(RowMethod):
    """Each prompt is answered several times, and answers become likelier by how much better than the others
    of their group they score. There is no value model, and no reference unless ``beta`` is above 0.

    A micro-batch (``training.batch_size``) counts answers, not prompts.
    """

    kind: Literal["grpo"] = "grpo"
    rewards: RewardList = Field(
        description="What an answer is scored by: built-in verifiers and functions of yours, each with a "
        "metric of its own."
    )
    variant: Variant = Field(
        "grpo",
        description="Sets the settings below that you leave open. dapo: mean over tokens, a higher upper "
        "clip, overlong answers punished, groups without spread drawn again. dr_grpo: no division by spread "
        "or length. gspo: one ratio an answer. rloo: leave-one-out baseline, whole answers.",
    )
    num_generations: int = Field(8, ge=2, description="Answers a prompt: the group they are compared in.")
    max_prompt_length: int | None = Field(
        None,
        ge=1,
        description="Longest prompt in tokens; of longer ones the end is kept. By default what "
        "model.max_length leaves beside the answer.",
    )
    max_completion_length: int = Field(256, ge=1, description="Longest answer in tokens.")
    temperature: float = Field(1.0, gt=0, description="Of sampling; the loss sees the same probabilities.")
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, description="0: all tokens.")
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0)
    beta: float = Field(
        0.0,
        ge=0,
        description="Weight of the KL divergence from the model as it began, which is the one with its "
        "adapter off. Above 0 each answer goes through the model once more.",
    )
    num_iterations: int = Field(1, ge=1, description="Passes over the same answers.")
    steps_per_generation: int | None = Field(
        None,
        ge=1,
        description="Micro-batches answered before a step; by default those of one optimizer step. More "
        "saves time and trains on answers of an older model.",
    )
    loss: Loss | None = Field(
        None,
        description="Mean over each answer's tokens, then answers (grpo); over the micro-batch's tokens "
        "(bnpo), the step's (dapo); or the sum over a constant (dr_grpo).",
    )
    scale_rewards: Literal["group", "batch", "none"] | None = Field(
        None, description="Divide a group's differences by its own spread, the batch's, or not."
    )
    importance: Literal["token", "sequence"] | None = Field(
        None, description="How far the model moved since it answered: by token, or one mean an answer."
    )
    epsilon: float | None = Field(None, gt=0, description="A ratio below 1 - epsilon earns no more.")
    epsilon_high: float | None = Field(
        None, gt=0, description="The same above 1 + epsilon_high; by default epsilon."
    )
    mask_truncated: bool | None = Field(None, description="Answers that were cut off teach nothing.")
    overlong_buffer: int | None = Field(
        None,
        ge=0,
        description="Answers lose reward over the last so many tokens before max_completion_length, up to 1 "
        "where they are cut off; 0: none. Metric rewards/overlong.",
    )
    dynamic_sampling: int | None = Field(
        None,
        ge=0,
        description="Groups whose answers all score the same are exchanged for other prompts, up to so "
        "many times a step; 0: kept.",
    )
    generation: Literal["whet", "vllm"] = Field(
        "whet",
        description="What answers: the model that trains, with its cache; or vLLM beside it, asleep while "
        "the model trains.",
    )
    vllm_memory: float = Field(0.3, gt=0, le=0.95, description="Share of the GPU that vLLM may take.")
    reward_errors: Literal["stop", "zero"] = Field(
        "stop", description="A reward function that fails ends the run, resumably; or scores its batch 0."
    )
    samples: int = Field(2, ge=0, description="Answers shown with their rewards, twenty times a run.")

    @field_validator("rewards", mode="before")
    @classmethod
    def _some(cls, value: Any) -> Any:
        """A single reward needs no list."""
        return [value] if isinstance(value, str | Mapping) else value

    @model_validator(mode="after")
    def _known_to_the_variant(self, info: ValidationInfo) -> GRPOSection:
        """Refuse what leave-one-out would ignore."""
        if not is_new(info):
            return self
        if self.variant == "rloo":
            for name in NOT_RLOO:
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"method.{name} belongs to the other variants; method.variant=rloo compares whole "
                        "answers with the mean of the others."
                    )
        if (self.overlong_buffer or 0) > self.max_completion_length:
            raise ValueError(
                f"method.overlong_buffer={self.overlong_buffer} is more than "
                f"method.max_completion_length={self.max_completion_length}."
            )
        return self

    @property
    def knobs(self) -> Knobs:
        """The variant's settings, with those that the recipe names in their place."""
        usual = VARIANTS[self.variant]
        named = {field.name: getattr(self, field.name) for field in fields(Knobs)}
        chosen = {name: getattr(usual, name) if value is None else value for name, value in named.items()}
        if chosen["overlong_buffer"] < 0:
            chosen["overlong_buffer"] = math.ceil(OVERLONG_SHARE * self.max_completion_length)
        if self.epsilon is not None and self.epsilon_high is None:
            chosen["epsilon_high"] = self.epsilon
        return Knobs(**chosen)

    @property
    def columns(self) -> dict[str, list[str]]:
        """Columns that the data must have, and the rewards that read each."""
        wanted: dict[str, list[str]] = {}
        for reward in self.rewards:
            for column in reward.columns:
                wanted.setdefault(column, []).append(reward.title)
        return wanted

    def micro_batches_a_generation(self, accumulation: int) -> int:
        """Those that are answered before a step."""
        return self.steps_per_generation or accumulation

    def micro_batches(self, prompts: int, batch_size: int, accumulation: int) -> int:
        """Of a pass over so many prompts; those that fill no whole generation wait for another pass.

        Raises WhetError ``data.few_prompts`` where one generation takes more prompts than there are.
        """
        size = self.micro_batches_a_generation(accumulation)
        at_once = batch_size * size // self.num_generations
        if prompts < at_once:
            raise WhetError(
                "data.few_prompts",
                f"{at_once} prompts are answered together ({batch_size * size} answers in groups of "
                f"{self.num_generations}), and there are {prompts}.",
                "Add prompts, or lower training.batch_size, training.gradient_accumulation or "
                "method.steps_per_generation.",
            )
        return prompts // at_once * size * self.num_iterations

    def longest(self, prompt: int, max_length: int) -> int:
        """Tokens of the longest prompt with the longest answer."""
        return max(1, min(prompt, self.prompt_limit(max_length))) + self.max_completion_length

    def epoch_tokens(self, tokens: int, prompts: int) -> int:
        """The most that a pass trains on.

        Args:
            tokens: of all prompts.
            prompts: their number.
        """
        answers = self.num_generations * self.num_iterations
        return (tokens + prompts * self.max_completion_length) * answers

    def prompt_limit(self, max_length: int) -> int:
        """Tokens that a prompt may have beside the longest answer; below 1 where nothing is left."""
        room = max_length - self.max_completion_length
        return room if self.max_prompt_length is None else min(room, self.max_prompt_length)

    def refuse_rows(self, rows: StoredRows) -> None:
        """Raises WhetError ``grpo.vllm`` where vLLM is asked for and not there, and what
        :mod:`whet.engine.rewards.checking` does of functions that cannot be used and programs that cannot be
        confined.
        """
        from ...rewards.checking import check_functions
        from ...rewards.verifiers.registry import check_programs

        columns = dict.fromkeys(name for text in rows.sample_of("columns") for name in json.loads(text))
        check_functions(self.rewards, Path.cwd(), list(columns))
        check_programs(self.rewards)
        if self.generation == "vllm" and find_spec("vllm") is None:
            raise WhetError(
                "grpo.vllm",
                "method.generation=vllm, but vLLM is not installed.",
                "Install it (`pip install vllm`, on a machine with an NVIDIA GPU), or set "
                "method.generation=whet, which needs nothing.",
            )

    def check_sizes(self, batch_size: int, accumulation: int, max_length: int) -> None:
        """Raise ValueError for settings of training and model that no group fits into."""
        at_once = batch_size * self.micro_batches_a_generation(accumulation)
        if at_once % self.num_generations:
            group = self.num_generations
            near = math.ceil(group / batch_size) if group % batch_size == 0 else None
            hint = (
                f"training.gradient_accumulation={near * max(1, round(accumulation / near))}"
                if near
                else f"training.batch_size={group}"
            )
            raise ValueError(
                f"{at_once} answers are written together (training.batch_size={batch_size} x "
                f"{at_once // batch_size} micro-batches), which do not divide into groups of "
                f"method.num_generations={group}. Set {hint}, or another method.num_generations."
            )
        if self.prompt_limit(max_length) < 1:
            raise ValueError(
                f"method.max_completion_length={self.max_completion_length} leaves no room for a prompt in "
                f"model.max_length={max_length}. Lower it, or raise model.max_length."
            )
