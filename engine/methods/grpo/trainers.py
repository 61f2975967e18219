"""TRL's GRPO and RLOO trainers in a run: their losses; answers, scores, checkpoints and order are ours."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers.trainer_utils import EvalLoopOutput
from trl import GRPOTrainer, RLOOTrainer
from trl.trainer.utils import RepeatSampler, add_fused_lm_head

from ...models.fast_path import program_of
from ..fast_head import put_fast_head
from ..preference.trainers import AnswerTrainer
from ..sft.fast_choice import mixed_reason
from .rollouts import Answer, Logps, Rollouts

ROLLOUTS = "rollouts.pt"
"""In a checkpoint: answers that are not trained on yet."""
SHOWN = {
    "reward": "reward",
    "reward_std": "reward_std",
    "kl": "kl",
    "entropy": "entropy",
    "completions/mean_length": "length",
    "frac_reward_zero_std": "no_spread",
    "clip_ratio/region_mean": "clipped",
}
"""Of TRL's metrics, under the names that events have."""


class PromptOrder(RepeatSampler):
    """TRL's order of prompts, made to follow from seed and epoch alone: a resumed run finds it again."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the loop before each pass."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(int(self.seed or 0) + self.epoch)
        yield from super().__iter__()


class GroupTrainer(AnswerTrainer):
    """What both trainers have in common in a run.

    Args:
        rollouts: of the model.
        beta: weight of the divergence from the reference.
        reference: frozen copy of the model; None: the model with its adapter off.
        exchange: times that groups without spread are exchanged for other prompts.
        show: takes the answers of each generation.
    """

    plain_reason: str | None = None
    """Why steps are not on the fast path that the model is on."""
    eos_token_ids: list[int]

    def __init__(
        self,
        model: Any,
        *,
        rollouts: Rollouts,
        beta: float,
        reference: Any = None,
        exchange: int = 0,
        show: Callable[[Sequence[Answer]], None],
        **more: Any,
    ) -> None:
        self.rollouts, self.exchange, self.show = rollouts, exchange, show
        super().__init__(model, reward_funcs=[_named(name) for name in rollouts.names], **more)
        own: Any = self
        own.beta, own.ref_model = beta, reference
        if reference is not None:
            add_fused_lm_head(reference, temperature=own.temperature)
        self.eos_token_ids = sorted(rollouts.stops)
        self._answers: list[Answer] = []
        if own.use_vllm:
            rollouts.engine = self._by_vllm
        program = program_of(model)
        if program is not None:
            self.plain_reason = mixed_reason(self.args, program.dtype)
            if own.aux_loss_enabled:
                self.plain_reason = "the router's own loss is added"
            if self.plain_reason is None:
                put_fast_head(model, ("log_probs", "entropy"), own.temperature)

    # Prompts.

    def _get_train_sampler(self, dataset: Any = None) -> PromptOrder:
        own: Any = self
        return PromptOrder(
            data_source=own.train_dataset if dataset is None else dataset,
            mini_repeat_count=own.num_generations,
            batch_size=own.args.generation_batch_size // own.num_generations,
            repeat_count=own.num_iterations * own.args.steps_per_generation,
            shuffle=own.shuffle_dataset,
            seed=self.args.seed,
        )

    # Answers. TRL asks for prompts' tokens, answers' tokens and scores one after the other.

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._answers = self._with_spread(self.rollouts.answer(inputs))
        self.show(self._answers)
        base: Any = super()
        rows = [{"prompt": answer.prompt} for answer in self._answers]
        found: dict[str, Any] = base._generate_and_score_completions(rows)
        return found

    def _by_vllm(self, prompts: list[list[int]]) -> tuple[list[list[int]], Logps]:
        """TRL's own way: weights are put into vLLM where they changed, and it sleeps again."""
        raise NotImplementedError

    def _with_spread(self, answers: list[Answer]) -> list[Answer]:
        """The same answers, groups that score the same throughout exchanged for other prompts' answers."""
        own: Any = self
        group: int = own.num_generations
        groups = [answers[at : at + group] for at in range(0, len(answers), group)]
        for _ in range(self.exchange):
            flat = [number for number, one in enumerate(groups) if not has_spread(one)]
            if not flat:
                break
            rows: Any = self.train_dataset
            drawn = torch.randint(len(rows), (len(flat),)).tolist()
            fresh = self.rollouts.answer([rows[place] for place in drawn for _ in range(group)])
            for at, number in enumerate(flat):
                other = fresh[at * group : (at + 1) * group]
                if has_spread(other):
                    groups[number] = other
        return [answer for one in groups for answer in one]

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [list(answer.row["prompt_ids"]) for answer in self._answers], None, {}

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, ids: Any) -> torch.Tensor:
        values = [
            [math.nan if value is None else value for value in answer.values] for answer in self._answers
        ]
        return torch.tensor(values, dtype=torch.float32, device=self.args.device)

    # Steps.

    def count_tokens(self, inputs: Any) -> int:
        """Of the micro-batch at hand, prompts included."""
        own: Any = self
        batch = own._buffered_inputs[(own._step - 1) % own.args.steps_per_generation]
        return int(batch["prompt_mask"].sum() + batch["completion_mask"].sum())

    def forget_notes(self) -> None:
        """What TRL noted of a step becomes the step's metrics."""
        if not self.accelerator.sync_gradients:
            return
        own: Any = self
        noted: dict[str, list[float]] = own._metrics["train"]
        means = {
            name: fmean(value for value in values if not math.isnan(value))
            for name, values in noted.items()
            if any(not math.isnan(value) for value in values)
        }
        noted.clear()
        self.stats.metrics = shown(means, self.rollouts.names)

    # Checkpoints.

    def _write_state(self, folder: Path) -> None:
        super()._write_state(folder)
        own: Any = self
        used_up = own._step % (own.args.steps_per_generation * own.num_iterations) == 0
        waiting = [] if used_up else own._buffered_inputs or []
        torch.save({"step": own._step, "waiting": waiting}, folder / ROLLOUTS)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            own: Any = self
            held = torch.load(Path(checkpoint) / ROLLOUTS, weights_only=True, map_location=self.args.device)
            own._step, own._buffered_inputs = held["step"], held["waiting"] or None

    # Held-out prompts.

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As the base class; outside of a run it starts the rewards for itself."""
        with self.rollouts.running():
            return super().evaluate(*args, **kwargs)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The likeliest answer to each held-out prompt, scored; the loss is the mean reward's negative."""
        rows: Any = self.eval_dataset
        answers: list[Answer] = []
        size = self.args.per_device_eval_batch_size
        for at in range(0, len(rows), size):
            batch = [rows[place] for place in range(at, min(at + size, len(rows)))]
            answers += self.rollouts.answer(batch, greedy=True)
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        found = summary(answers, self.rollouts.names)
        metrics: dict[str, float] = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        metrics[f"{metric_key_prefix}_loss"] = -found["reward"]
        metrics[f"{metric_key_prefix}_supervised_tokens"] = sum(len(answer.ids) for answer in answers)
        nothing: Any = None
        return EvalLoopOutput(predictions=nothing, label_ids=None, metrics=metrics, num_samples=len(answers))


class PolicyTrainer(GroupTrainer, GRPOTrainer):
    """GRPO, DAPO, Dr. GRPO and GSPO."""

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """As TRL's, without the answers that add nothing: where a group scores the same throughout, each
        answer's part of the loss is zero, and so is its gradient, unless a reference holds the model."""
        own: Any = self
        told_B = inputs["advantages"] != 0
        if own.beta or bool(told_B.all()):
            loss: torch.Tensor = super()._compute_loss(model, inputs)
            return loss
        told_B[:1] |= ~told_B.any()
        part = {name: value[told_B] if value.dim() else value for name, value in inputs.items()}
        return super()._compute_loss(model, part) * self._share(inputs, part)

    def _share(self, inputs: dict[str, Any], part: dict[str, Any]) -> float | torch.Tensor:
        """What the loss of a part must be multiplied with to be the whole's: it divides by its own size."""
        own: Any = self
        if own.loss_type == "dapo":  # by the tokens of all answers, whatever it is given
            return 1.0
        if own.loss_type == "bnpo":
            masks = [given["completion_mask"].sum().clamp(min=1) for given in (part, inputs)]
            return masks[0] / masks[1]
        return len(part["advantages"]) / len(inputs["advantages"])

    def _by_vllm(self, prompts: list[list[int]]) -> tuple[list[list[int]], Logps]:
        own: Any = self
        ids, logps = GRPOTrainer._generate_single_turn(own, prompts, None, {}, own.num_generations)
        return ids, logps

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> tuple[list[list[int]], Any]:
        logps = [answer.logps for answer in self._answers]
        return [answer.ids for answer in self._answers], None if logps[0] is None else logps


class LeaveOneOutTrainer(GroupTrainer, RLOOTrainer):
    """RLOO."""

    def _by_vllm(self, prompts: list[list[int]]) -> tuple[list[list[int]], Logps]:
        own: Any = self
        ids: list[list[int]] = RLOOTrainer._generate_single_turn(own, prompts, None, {})
        return ids, [None] * len(ids)

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> list[list[int]]:
        return [answer.ids for answer in self._answers]


def has_spread(group: Sequence[Answer]) -> bool:
    """Whether some answers of a group score better than others."""
    totals = [answer.total for answer in group]
    return max(totals) - min(totals) > 1e-6


def shown(means: dict[str, float], rewards: Sequence[str]) -> dict[str, float]:
    """A step's metrics under the names that events have."""
    found = {name: means[theirs] for theirs, name in SHOWN.items() if theirs in means}
    for reward in rewards:
        for part in ("mean", "std"):
            if (value := means.get(f"rewards/{reward}/{part}")) is not None:
                found[f"rewards/{reward}" if part == "mean" else f"rewards/{reward}/std"] = value
    if "completions/clipped_ratio" in means:
        found["finished"] = 1 - means["completions/clipped_ratio"]
    return found


def summary(answers: Sequence[Answer], rewards: Sequence[str]) -> dict[str, float]:
    """Means over answers: of the weighted sum, each reward where it applies, length, and those that ended."""
    found = {
        "reward": fmean(answer.total for answer in answers),
        "length": fmean(len(answer.ids) for answer in answers),
        "finished": fmean(answer.finished for answer in answers),
    }
    for place, name in enumerate(rewards):
        values = [value for answer in answers if (value := answer.values[place]) is not None]
        if values:
            found[f"rewards/{name}"] = fmean(values)
    return found


def _named(name: str) -> Callable[..., list[float]]:
    """What TRL takes for a reward function: it asks for its name, the scores come from elsewhere."""

    def reward(**kwargs: Any) -> list[float]:
        raise NotImplementedError(name)

    reward.__name__ = name
    return reward
