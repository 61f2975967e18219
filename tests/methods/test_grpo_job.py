"""Reinforcement learning as runs: rewards rise, runs go on where they stopped, results load plainly."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from peft import PeftModel
from support.comparisons import steps
from support.live_runs import attempt
from support.scored import decided_model, prompts, recipe
from support.tiny_runs import create_run, events_of, next_attempt
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOTrainer

from whet.engine.errors import WhetError
from whet.engine.methods.grpo.job import GRPOTraining, open_prompts
from whet.engine.methods.grpo.rollouts import generation_settings, overlong, written
from whet.engine.methods.grpo.section import GRPOSection
from whet.engine.methods.jobs import run_job
from whet.engine.plan import make_plan
from whet.engine.recipe import Recipe
from whet.engine.runs.events import EvalEvent, FindingEvent, SampleEvent
from whet.engine.runs.jobs import EvaluateJob
from whet.engine.runs.store import RunDir, RunStore


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return decided_model(tmp_path_factory.mktemp("model") / "llama")


def finished(wanted: Recipe) -> RunDir:
    run = create_run(wanted)
    assert attempt(run, method=GRPOTraining) == "finished", (run.path / "events.jsonl").read_text()[-2000:]
    return run


def test_rewards_rise_and_plain_peft_loads_the_result(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda **said: sent.append(said))
    rewards = [f"{tmp_path}/rewards.py:letters", {"name": "exact_answer", "weight": 0}]
    run = finished(
        recipe(
            tiny, tmp_path, prompts(20),
            method={"rewards": rewards}, data={"eval_fraction": 0.2},
            training={"max_steps": 8}, eval={"every": 8, "batch_size": 8},
        )
    )  # fmt: skip
    seen = [step.metrics for step in steps(run)]
    assert fmean(one["rewards/letters"] for one in seen[-3:]) > 0.1 + fmean(
        one["rewards/letters"] for one in seen[:3]
    )
    assert all(0 <= one["rewards/exact_answer"] <= 1 and one["length"] <= 8 for one in seen)
    assert {"reward", "reward_std", "entropy", "no_spread", "finished", "clipped"} <= seen[0].keys()
    first, last = [event for event in events_of(run) if isinstance(event, EvalEvent)]
    assert last.loss == -last.metrics["reward"] == -last.metrics["rewards/letters"] < first.loss
    shown = [event for event in events_of(run) if isinstance(event, SampleEvent)]
    assert shown[0].prompt.startswith("the river") and set(shown[0].rewards) == {
        "reward", "letters", "exact_answer"
    }  # fmt: skip
    assert shown[0].rewards["reward"] > shown[1].rewards["reward"]  # the best and the worst
    assert sent == []
    found = [event.finding for event in events_of(run) if isinstance(event, FindingEvent)]
    assert not any(finding.severity == "error" or finding.id == "L08" for finding in found)
    base = AutoModelForCausalLM.from_pretrained(tiny)
    tokenizer = AutoTokenizer.from_pretrained(run.export / "adapter")
    ids = torch.tensor([tokenizer.encode("the river was yes")])
    untrained = base(ids).logits
    loaded = PeftModel.from_pretrained(base, run.export / "adapter").eval()
    training = GRPOTraining(next_attempt(run))
    training.trainer.load_weights(run.export / "adapter")
    own = training.handle.model.eval()
    assert list(own.peft_config) == ["default"]
    torch.testing.assert_close(loaded(ids).logits, own(ids).logits, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(untrained, own(ids).logits, atol=1e-2)
    job = RunStore().create_job(EvaluateJob(parent=run.id), "test")
    again = next_attempt(job)
    run_job(again)
    assert again.summary["base_reward"] == pytest.approx(first.metrics["reward"])
    assert again.summary["tuned_reward"] == pytest.approx(last.metrics["reward"])


RESUMED: list[dict[str, Any]] = [
    {"method": {"variant": "rloo"}, "adapter": {"dropout": 0.1}},
    {"method": {"variant": "dapo"}},
    {"method": {"steps_per_generation": 4, "num_iterations": 2, "beta": 0.1}},
]
"""With dropout; with groups exchanged; within a generation that is trained on twice."""


@pytest.mark.parametrize("sections", RESUMED, ids=["rloo", "dapo", "iterations"])
def test_a_stopped_run_goes_on_where_it_was(tiny: Path, tmp_path: Path, sections: dict[str, Any]) -> None:
    """Five steps of four prompts, of six: the second pass over the prompts, too."""
    rows = prompts(9 if sections["method"].get("variant") else 16)
    wanted = recipe(tiny, tmp_path, rows, training={"max_steps": 5}, **sections)
    whole = [(step.loss, step.tokens, step.metrics) for step in steps(finished(wanted))]
    run = create_run(wanted)
    assert attempt(run, stop_after=3, method=GRPOTraining) == "stopped"
    assert attempt(run, method=GRPOTraining) == "finished"
    resumed = {step.step: (step.loss, step.tokens, step.metrics) for step in steps(run)}
    assert list(resumed.values()) == whole
    assert len({loss for loss, _, _ in whole}) > 2


@pytest.mark.parametrize("variant", ["dr_grpo", "gspo"])
def test_the_other_variants_train_held_to_a_reference(tiny: Path, tmp_path: Path, variant: str) -> None:
    run = finished(recipe(tiny, tmp_path, prompts(), method={"variant": variant, "beta": 0.05}))
    seen = steps(run)
    assert seen[0].metrics["kl"] == pytest.approx(0, abs=1e-6) and seen[-1].metrics["kl"] > 1e-4
    assert all(step.grad_norm > 0 for step in seen)


def test_steps_are_those_of_trl(tiny: Path, tmp_path: Path) -> None:
    """Log-probabilities, entropy and loss of the fast path beside TRL's own head on plain layers."""
    from whet.engine.models.fast_path import program_of, take_off_fast_path

    run = create_run(recipe(tiny, tmp_path, prompts(), method={"temperature": 0.7}))
    training = GRPOTraining(next_attempt(run))
    trainer: Any = training.trainer
    with trainer.rollouts.running():
        inputs = trainer._generate_and_score_completions(
            [row for row in open_prompts(training.data.train).select(range(4)) for _ in range(4)]
        )
    trainer.current_gradient_accumulation_steps = 1
    results = []
    for fast in (True, False):
        if not fast:
            take_off_fast_path(trainer.model)
        assert (program_of(trainer.model) is not None) == fast
        trainer.model.zero_grad()
        trainer._metrics["train"].clear()
        loss = trainer.compute_loss(trainer.model, inputs)
        loss.backward()
        norm = torch.nn.utils.get_total_norm(
            [p.grad for p in trainer.model.parameters() if p.grad is not None]
        )
        results.append((float(loss), float(norm), trainer._metrics["train"]["entropy"][0]))
    assert results[0] == pytest.approx(results[1], rel=1e-3, abs=1e-6)
    assert results[0][1] > 1e-3


def test_layers_recompute_as_planned_and_the_losses_are_the_same(tiny: Path, tmp_path: Path) -> None:
    """Everything kept, everything computed again, and half of it."""
    from whet.engine.models.fast_path import program_of

    part: dict[str, Any] = {"recompute_mlp": 1, "recompute_attention": 0, "chunk": 64, "logit_bytes": 4096}
    found = []
    for wish, changed in (("off", {}), ("on", {}), ("off", part)):
        sections: dict[str, Any] = {"method": {"beta": 0.1}, "training": {"gradient_checkpointing": wish}}
        plan = make_plan(recipe(tiny, tmp_path, prompts(), **sections))
        assert plan.resolved.schedule is not None and plan.resolved.schedule.recomputes == (wish == "on")
        schedule = plan.resolved.schedule.model_copy(update=changed)
        resolved = plan.resolved.model_copy(update={"schedule": schedule})
        run = RunStore().create(plan.model_copy(update={"resolved": resolved}), "test")
        training = GRPOTraining(next_attempt(run))
        program = program_of(training.handle.model)
        assert program is not None
        assert [keep.mlp for keep in program.keep] == schedule.keep_mlp
        assert [keep.attention for keep in program.keep] == schedule.keep_attention
        assert program.logit_bytes == schedule.logit_bytes
        training.run(run.export / "adapter")
        found.append([(step.loss, step.grad_norm) for step in steps(run)])
    for other in found[1:]:
        for ours, kept in zip(other, found[0], strict=True):
            assert ours == pytest.approx(kept, rel=1e-3, abs=1e-6)


def test_steps_that_run_plainly_recompute_by_transformers(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "a reason of the test"
    monkeypatch.setattr("whet.engine.methods.grpo.trainers.mixed_reason", lambda args, dtype: reason)
    wanted = recipe(tiny, tmp_path, prompts(), training={"gradient_checkpointing": "on", "max_steps": 1})
    training = GRPOTraining(next_attempt(create_run(wanted)))
    assert training.trainer.plain_reason == reason and reason in str(training.fused)
    training.run(tmp_path / "adapter")
    inside = training.handle.model.modules()
    assert any(module.gradient_checkpointing for module in inside if "gradient_checkpointing" in vars(module))


def test_prompts_are_rendered_cut_and_kept_with_their_columns(tiny: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    turns = [{"role": "user", "content": "the river"}, {"role": "assistant", "content": "was"},
             {"role": "user", "content": "and then"}]  # fmt: skip
    rows = [*prompts(13), {"prompt": turns, "answer": ["yes", 3]}, {"prompt": "long " * 60, "answer": None}]
    plan = make_plan(recipe(tiny, tmp_path, rows, data={"system": "be kind"}))
    stored = list(open_prompts(plan.data.train))
    said = [{"role": "system", "content": "be kind"}, *turns]
    text = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    assert stored[13]["prompt_ids"] == tokenizer.encode(text, add_special_tokens=False)
    assert json.loads(stored[13]["prompt"]) == said
    assert json.loads(stored[13]["columns"]) == {"answer": ["yes", 3]}
    assert json.loads(stored[2]["columns"]) == {"answer": "2", "facts": {"seen": [2, None]}}
    cut = stored[14]["prompt_ids"]
    assert len(cut) == 64 - 8 and str(tokenizer.decode(cut)).endswith("<|assistant|>\n")
    assert plan.data.report.train.truncated_rows == 1
    assert (plan.resolved.longest, plan.resolved.answers) == (64, 16)
    assert plan.resolved.steps_per_epoch == 15 // 4
    note = next(finding for finding in plan.findings if finding.id == "T06")
    assert note.severity == "note" and "15 prompts" in note.title


BAD = [
    (
        {"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        "nothing to answer",
    ),
    ({"prompt": ""}, "is empty"),
    ({"prompt": 3}, "'prompt' is int"),
    ({"answer": "3"}, "'prompt' is missing"),
]


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_bad_rows_are_named(tiny: Path, tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    plan = make_plan(recipe(tiny, tmp_path, [*prompts(12), row]))
    assert reason in plan.data.report.bad[0].reason and plan.data.report.bad[0].line == 13


def test_what_cannot_be_trained_is_refused_by_the_plan(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(**sections: dict[str, Any]) -> WhetError:
        with pytest.raises(WhetError) as error:
            make_plan(recipe(tiny, tmp_path, prompts(), **sections))
        return error.value

    with pytest.raises(ValueError, match=r"gradient_accumulation=\d+"):
        recipe(tiny, tmp_path, prompts(), training={"batch_size": 1, "gradient_accumulation": 6})
    with pytest.raises(ValueError, match="leaves no room"):
        recipe(tiny, tmp_path, prompts(), method={"max_completion_length": 64})
    with pytest.raises(ValueError, match=r"method\.loss belongs to the other variants"):
        recipe(tiny, tmp_path, prompts(), method={"variant": "rloo", "loss": "dapo"})
    with pytest.raises(ValueError, match="rewards"):
        recipe(tiny, tmp_path, prompts(), method={"rewards": []})
    with pytest.raises(ValueError, match="variant: rloo"):
        Recipe.model_validate(
            {"model": {"name": "demo"}, "data": {"train": "demo"}, "method": {"kind": "ppo"}}
        )
    missing = refused(method={"rewards": [{"name": "exact_answer", "column": "solution"}]})
    assert (
        missing.code == "data.reward_column"
        and "'solution'" in missing.message
        and "answer" in missing.message
    )
    assert refused(training={"batch_size": 128}).code == "data.few_prompts"
    monkeypatch.setattr("whet.engine.methods.grpo.section.find_spec", lambda name: None)
    assert refused(method={"generation": "vllm"}).code == "grpo.vllm"


@pytest.mark.parametrize(
    ("function", "code"),
    [("raises", "reward.raised"), ("short", "reward.wrong_length"), ("hangs", "reward.timed_out")],
)
def test_a_reward_that_fails_ends_the_run_by_name(
    tiny: Path, tmp_path: Path, function: str, code: str
) -> None:
    reward = {"function": f"{tmp_path}/rewards.py:{function}", "seconds": 0.5}
    run = create_run(recipe(tiny, tmp_path, prompts(), method={"rewards": [reward]}))
    assert attempt(run, method=GRPOTraining) == code
    last = events_of(run)[-1]
    assert last.type == "error" and function in last.message


def test_knobs_follow_the_variant_and_the_recipe() -> None:
    def knobs(**settings: Any) -> Any:
        return GRPOSection(rewards=["exact_answer"], **settings).knobs

    assert knobs(variant="dapo", max_completion_length=100).overlong_buffer == 20
    assert knobs(variant="dapo", epsilon_high=0.3).epsilon_high == 0.3
    assert (knobs(variant="gspo").importance, knobs(variant="dr_grpo").scale_rewards) == ("sequence", "none")
    assert knobs(epsilon=0.1).epsilon_high == 0.1
    assert [overlong(length, True, 10, 4) for length in (5, 6, 8, 10)] == [0, 0, -0.5, -1]
    assert overlong(10, False, 10, 4) == -1


def test_answers_written_in_turns_are_those_written_at_once(tiny: Path, tmp_path: Path) -> None:
    wanted = recipe(tiny, tmp_path, prompts(), training={"max_steps": 2})
    plan = make_plan(wanted)
    assert plan.resolved.answers % 2 == 0 and plan.resolved.turns == 1
    divided = plan.model_copy(update={"resolved": plan.resolved.model_copy(update={"turns": 2})})
    run = RunStore().create(divided, "test")
    training = GRPOTraining(next_attempt(run))
    rollouts = training.trainer.rollouts
    assert rollouts.at_once == plan.resolved.answers // 2
    asked, sizes = [[5, 6, 7], [8, 9], [10, 11, 12, 13], [14], [15, 16]], list[int]()
    model: Any = training.handle.model
    settings = generation_settings(training.section, training.handle, [0], greedy=True)
    model.get_base_model().register_forward_pre_hook(
        lambda _, args, named: sizes.append(len(named["input_ids"])), with_kwargs=True
    )
    whole = written(model, training.handle.dtype, asked, settings)
    assert set(sizes) == {5}
    sizes.clear()
    assert written(model, training.handle.dtype, asked, settings, at_once=2) == whole
    assert set(sizes) == {1, 2}
    training.run(run.export / "adapter")
    assert len(steps(run)) == 2


class FakeEngine:
    """Stands for vLLM: writes by plain transformers, and says how likely each token was."""

    def __init__(self, training: GRPOTraining) -> None:
        self.handle, self.section = training.handle, training.section
        self.synced = 0

    def sync_weights(self) -> None:
        self.synced += 1

    @torch.no_grad()
    def generate(self, prompts: list[list[int]], num_generations: int, **more: Any) -> tuple[Any, ...]:
        assert prompts[0] == prompts[num_generations - 1]
        settings = generation_settings(self.section, self.handle, [0], greedy=False)
        answers = written(self.handle.model, self.handle.dtype, prompts, settings)
        said = []
        for prompt, ids in zip(prompts, answers, strict=True):
            logits = self.handle.model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
            said.append(logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).tolist())
        return prompts, answers, said, None


def test_another_engine_writes_and_its_own_probabilities_are_corrected_for(
    tiny: Path, tmp_path: Path
) -> None:
    run = create_run(recipe(tiny, tmp_path, prompts()))
    training = GRPOTraining(next_attempt(run))
    trainer: Any = training.trainer
    engine = trainer.vllm_generation = FakeEngine(training)
    trainer.use_vllm, trainer._last_loaded_step = True, -1
    training.trainer.rollouts.engine = trainer._by_vllm
    training.run(run.export / "adapter")
    seen = steps(run)
    assert engine.synced == len(seen) == 3
    assert all(step.grad_norm > 1e-3 for step in seen)  # as likely here as there: nothing is masked


def test_all_weights_train_against_a_copy(tiny: Path, tmp_path: Path) -> None:
    sections: dict[str, Any] = {
        "adapter": {"kind": "none"},
        "training": {"learning_rate": 1e-3, "max_steps": 2},
        "method": {"beta": 0.1},
    }
    plan = make_plan(recipe(tiny, tmp_path, prompts(), **sections))
    assert plan.resolved.second_copy
    seen = steps(finished(recipe(tiny, tmp_path, prompts(), **sections)))
    assert seen[0].metrics["kl"] == pytest.approx(0, abs=1e-6) and seen[1].metrics["kl"] > 1e-6


@pytest.mark.slow  # half a minute: `make slow`; preference leaves by the same way
def test_the_result_leaves_merged_and_proven_on_its_prompts(tiny: Path, tmp_path: Path) -> None:
    from whet.engine.export.held_out import planned_rows
    from whet.engine.export.importance_rows import training_rows
    from whet.engine.export.of_run import export_run

    run = finished(recipe(tiny, tmp_path, prompts(), export={"merged": True, "gguf": ["f16"]}))
    plan = run.load_plan()
    row = planned_rows(plan, tiny)[1]
    assert row["messages"][-1]["content"] == "1" and sum(label != -100 for label in row["labels"]) == 2
    assert training_rows(plan, tiny)[0] == open_prompts(plan.data.train)[0]["prompt_ids"]
    result = export_run(next_attempt(run))
    assert result.status in ("pass", "warn")
    merged = AutoModelForCausalLM.from_pretrained(result.paths["merged"]).eval()
    base = AutoModelForCausalLM.from_pretrained(tiny)
    ids = torch.tensor([row["input_ids"]])
    trained = PeftModel.from_pretrained(base, run.export / "adapter").eval()(ids).logits
    torch.testing.assert_close(merged(ids).logits.float(), trained, atol=0.2, rtol=0.05)


@pytest.mark.parametrize("loss", ["grpo", "bnpo", "dapo", "dr_grpo"])
def test_answers_that_add_nothing_are_left_out_and_the_gradient_is_the_same(
    tiny: Path, tmp_path: Path, loss: str
) -> None:
    training = GRPOTraining(
        next_attempt(create_run(recipe(tiny, tmp_path, prompts(), method={"loss": loss})))
    )
    trainer: Any = training.trainer
    with trainer.rollouts.running():
        inputs = trainer._generate_and_score_completions(
            [row for row in open_prompts(training.data.train).select(range(4)) for _ in range(4)]
        )
    inputs["advantages"][4:12] = 0
    trainer.current_gradient_accumulation_steps = 1
    seen: list[int] = []
    forward = training.handle.model.forward

    def counted(**given: Any) -> Any:
        seen.append(len(given["input_ids"]))
        return forward(**given)

    training.handle.model.forward = counted
    found = []
    for whole in (False, True):
        trainer.model.zero_grad()
        compute = GRPOTrainer._compute_loss if whole else type(trainer)._compute_loss
        compute(trainer, trainer.model, inputs).backward()
        found.append([p.grad.clone() for p in trainer.model.parameters() if p.grad is not None])
    assert seen == [8, 16]
    assert any(bool(grad.any()) for grad in found[0])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
    inputs["advantages"][:] = 0
    assert trainer._compute_loss(trainer.model, inputs).requires_grad and seen[-1] == 1
