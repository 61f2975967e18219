"""Preference training as runs: it learns, equals TRL's trainers, goes on where it stopped, loads plainly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from support.comparisons import pairs, ratings, recipe, steps
from support.live_runs import attempt
from support.tiny_models import build_tiny_model
from support.tiny_runs import create_run, events_of, next_attempt
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from whet.engine.errors import WhetError
from whet.engine.methods.preference.job import PreferenceTraining
from whet.engine.methods.sft.arguments import checkpointing
from whet.engine.models.fast_path import Keep, program_of
from whet.engine.plan import make_plan
from whet.engine.recipe import Recipe
from whet.engine.recipe_files import patched
from whet.engine.runs.events import FAST_PATH, EvalEvent, FindingEvent, PhaseEvent
from whet.engine.runs.store import RunDir


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model") / "llama")


def finished(wanted: Recipe) -> RunDir:
    run = create_run(wanted)
    assert attempt(run, method=PreferenceTraining) == "finished"
    return run


def test_dpo_learns_what_is_preferred_and_plain_peft_loads_the_result(tiny: Path, tmp_path: Path) -> None:
    run = finished(
        recipe(
            tiny, tmp_path, pairs(),
            data={"eval_fraction": 0.25}, training={"max_steps": 12}, eval={"every": 12, "batch_size": 8},
        )
    )  # fmt: skip
    first, last = [event for event in events_of(run) if isinstance(event, EvalEvent)]
    assert first.loss == pytest.approx(0.6931, abs=1e-3) and last.loss < 0.5
    assert first.metrics["rewards/margins"] == 0
    assert last.metrics["rewards/accuracies"] > 0.9 and last.metrics["rewards/margins"] > 0.5
    assert not any(e.finding.id == "L08" for e in events_of(run) if isinstance(e, FindingEvent))
    said = [event.detail for event in events_of(run) if isinstance(event, PhaseEvent)]
    assert f"{FAST_PATH}attention 2/2, mlp 2/2, loss 1/1" in said
    base = AutoModelForCausalLM.from_pretrained(tiny)
    tokenizer = AutoTokenizer.from_pretrained(run.export / "adapter")
    ids = torch.tensor([tokenizer.encode("the river was yes")])
    untrained = base(ids).logits
    loaded = PeftModel.from_pretrained(base, run.export / "adapter").eval()
    training = PreferenceTraining(next_attempt(run))
    training.trainer.load_weights(run.export / "adapter")
    own = training.handle.model.eval()
    assert list(own.peft_config) == ["default"]
    torch.testing.assert_close(loaded(ids).logits, own(ids).logits)
    with own.disable_adapter():
        torch.testing.assert_close(untrained, own(ids).logits)
    assert not torch.allclose(untrained, own(ids).logits, atol=1e-2)


def test_rated_answers_move_apart(tiny: Path, tmp_path: Path) -> None:
    run = finished(
        recipe(
            tiny, tmp_path, ratings(),
            data={"eval_fraction": 0.25}, training={"max_steps": 12, "learning_rate": 1e-2},
            eval={"every": 12, "batch_size": 16},
        )
    )  # fmt: skip
    first, last = [event for event in events_of(run) if isinstance(event, EvalEvent)]
    assert last.loss < first.loss - 0.05 and last.metrics["rewards/margins"] > 0.5


@pytest.mark.parametrize("loss", ["ipo", "robust", "apo_zero", "simpo", "cpo", "orpo"])
def test_every_loss_trains_and_nothing_is_sent_home(
    tiny: Path, tmp_path: Path, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda **said: sent.append(said))
    more = {"label_smoothing": 0.1} if loss == "robust" else {}
    run = finished(recipe(tiny, tmp_path, pairs(), method={"loss": loss, **more}))
    seen = steps(run)
    assert len(seen) == 2 and all(step.grad_norm > 0 and step.tokens > 0 for step in seen)
    assert sent == []


@pytest.mark.parametrize("loss", ["dpo", "kto", "orpo"])
def test_a_stopped_run_goes_on_where_it_was(tiny: Path, tmp_path: Path, loss: str) -> None:
    wanted = recipe(
        tiny, tmp_path, ratings() if loss == "kto" else pairs(),
        method={"loss": loss}, adapter={"dropout": 0.1}, training={"max_steps": 5},
    )  # fmt: skip
    whole = [step.loss for step in steps(finished(wanted))]
    run = create_run(wanted)
    assert attempt(run, stop_after=2, method=PreferenceTraining) == "stopped"
    assert attempt(run, method=PreferenceTraining) == "finished"
    assert list({step.step: step.loss for step in steps(run)}.values()) == whole


STEPS, RATE = 30, 1e-3
TRL: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "dpo": (DPOTrainer, DPOConfig, {}),
    "ipo": (DPOTrainer, DPOConfig, {"loss_type": ["ipo"]}),
    "cpo": (CPOTrainer, CPOConfig, {"loss_type": "sigmoid", "cpo_alpha": 1.0}),
    "simpo": (CPOTrainer, CPOConfig, {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0}),
    "orpo": (ORPOTrainer, ORPOConfig, {}),
    "kto": (KTOTrainer, KTOConfig, {}),
}


@pytest.mark.parametrize("loss", TRL)
def test_steps_are_those_of_trl_on_the_same_rows(tiny: Path, tmp_path: Path, loss: str) -> None:
    """All rows in each step, so that their order does not count; TRL reads and tokenises them for itself."""
    told = ratings()[:8] if loss == "kto" else pairs()[:8]
    run = create_run(
        recipe(
            tiny, tmp_path, told,
            method={"loss": loss},
            training={"batch_size": 8, "gradient_accumulation": 1, "max_steps": STEPS,
                      "scheduler": "constant", "learning_rate": RATE, "weight_decay": 0},
        )
    )  # fmt: skip
    training = PreferenceTraining(next_attempt(run))
    if loss == "kto":
        training.trainer.args.train_sampling_strategy = "sequential"  # each row's neighbour counts
    plain = plain_trl(training, tiny, tmp_path, loss, told)
    training.trainer.train()
    plain.train()
    ours = [event.loss for event in steps(run)]
    theirs = [log["loss"] for log in plain.state.log_history if "loss" in log]
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert ours[-1] < 0.9 * ours[0]


def plain_trl(training: PreferenceTraining, tiny: Path, folder: Path, loss: str, rows: list[Any]) -> Any:
    """TRL's trainer of its own, with the same fresh adapter."""
    kind, config, more = TRL[loss]
    adapter = folder / "fresh"
    training.handle.model.save_pretrained(adapter)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), adapter, is_trainable=True)
    if loss == "kto":
        rows = [
            {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "completion": [{"role": "assistant", "content": row["completion"]}],
                "label": row["label"],
            }
            for row in rows
        ]
    settings: dict[str, Any] = {
        "output_dir": str(folder / "trl"), "max_steps": STEPS, "per_device_train_batch_size": 8,
        "learning_rate": RATE, "lr_scheduler_type": "constant", "optim": "adamw_torch", "weight_decay": 0.0,
        "max_grad_norm": training.recipe.training.max_grad_norm or 1e9, "bf16": False, "use_cpu": True,
        "gradient_checkpointing": False, "logging_steps": 1, "report_to": "none", "disable_tqdm": True,
        "save_strategy": "no", "max_length": 64, "beta": 0.1, "seed": training.recipe.training.seed,
        "adam_beta2": training.recipe.training.beta2, "adam_epsilon": training.recipe.training.epsilon,
    } | more  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    # TRL also trains the line break that a template writes behind the last turn's end, for the next one.
    source = tokenizer.chat_template
    tokenizer.eos_token = training.data.report.end_of_turn  # its CPO and ORPO put another EOS there
    trimmed = "{{ whole if add_generation_prompt else whole.rstrip() }}"
    tokenizer.chat_template = "{% set whole %}" + source + "{% endset %}" + trimmed
    return kind(
        model, args=config(**settings), train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )


def test_rows_are_rendered_as_for_supervised_fine_tuning(tiny: Path, tmp_path: Path) -> None:
    """One BOS, one end of turn, nothing after it; both answers behind the same prompt."""
    from whet.engine.methods.preference.trainers import open_answers

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    told = [
        pairs()[0],
        {
            "prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                       {"role": "user", "content": "c"}],
            "chosen": [{"role": "assistant", "content": "yes"}], "rejected": "no",
        },
        pairs(conversations=False)[1],
    ]  # fmt: skip
    plan = make_plan(recipe(tiny, tmp_path, told, data={"system": "be kind"}))
    assert plan.data.report.template == "model" and plan.data.report.bad_rows == 0
    stored = list(open_answers(plan.data.train))
    turns = [{"role": "system", "content": "be kind"}, *told[1]["prompt"]]
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert stored[1]["prompt_ids"] == tokenizer.encode(prompt, add_special_tokens=False)
    end = plan.data.report.end_id
    for row in stored:
        whole = row["prompt_ids"] + row["chosen_ids"]
        assert whole.count(tokenizer.bos_token_id) == (tokenizer.bos_token in prompt)
        assert row["chosen_ids"].count(end) == 1 and row["chosen_ids"][-1] == row["rejected_ids"][-1] == end
    assert tokenizer.decode(stored[1]["chosen_ids"][:-1]) == "yes"


def test_long_rows_are_cut_and_those_without_an_answer_left_out(tiny: Path, tmp_path: Path) -> None:
    long = {"prompt": "the river", "chosen": "day " * 80, "rejected": "no"}
    lost = {"prompt": "house " * 80, "chosen": "yes", "rejected": "no"}
    plan = make_plan(recipe(tiny, tmp_path, [*pairs(conversations=False)[:6], long, lost]))
    train = plan.data.report.train
    assert (train.rows, train.token_rows) == (8, 7)
    assert (train.truncated_rows, train.truncated_lost_end, train.truncated_lost_all) == (2, 1, 1)
    assert train.length.max > 64 and plan.resolved.longest == 64 and plan.resolved.texts_per_row == 2


BAD = [
    ({"prompt": "a", "chosen": "same", "rejected": "same"}, "are the same"),
    ({"prompt": "a", "chosen": "yes", "rejected": 3}, "'rejected' is int"),
    ({"chosen": "yes", "rejected": "no"}, "'prompt' is missing"),
    ({"prompt": "a", "chosen": "yes", "rejected": " "}, "'rejected' is empty"),
    (
        {
            "chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
            "rejected": [{"role": "user", "content": "other"}, {"role": "assistant", "content": "c"}],
        },
        "same conversation",
    ),
    (
        {
            "chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
            "rejected": [{"role": "user", "content": "a"}, {"role": "user", "content": "c"}],
        },
        "one message of the assistant",
    ),
    (
        {"chosen": [{"role": "user", "content": "a"}, {"role": "pope", "content": "b"}], "rejected": "c"},
        "pope",
    ),
]


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_bad_rows_are_named(tiny: Path, tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    plan = make_plan(recipe(tiny, tmp_path, [*pairs()[:12], row]))
    assert plan.data.report.bad_rows == 1
    bad = plan.data.report.bad[0]
    assert reason in bad.reason and bad.line == 13
    assert plan.blocked()


def test_verdicts_must_be_yes_or_no_and_both(tiny: Path, tmp_path: Path) -> None:
    rows = [*ratings()[:12], {"prompt": "a", "completion": "b", "label": "maybe"}]
    assert "expected true or false" in make_plan(recipe(tiny, tmp_path, rows)).data.report.bad[0].reason
    with pytest.raises(WhetError, match="fewer than two classes"):
        make_plan(recipe(tiny, tmp_path, ratings()[::2]))


def test_rows_and_settings_that_do_not_suit_the_loss_are_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(WhetError, match=r"method\.loss=dpo learns from pairs"):
        make_plan(recipe(tiny, tmp_path, ratings(), method={"loss": "dpo"}))
    with pytest.raises(WhetError, match="no layout"):
        make_plan(recipe(tiny, tmp_path, [{"messages": [{"role": "user", "content": "a"}]}]))
    for settings in (
        {"loss": "dpo", "label_smoothing": 0.1},
        {"loss": "kto", "gamma": 1.0},
        {"loss": "robust"},
    ):
        with pytest.raises(ValueError, match=r"method\."):
            recipe(tiny, tmp_path, pairs(), method=settings)
    with pytest.raises(WhetError, match=r"training\.batch_size is 1"):
        make_plan(recipe(tiny, tmp_path, ratings(), training={"batch_size": 1}))


def test_a_head_in_fewer_bits_is_read_by_the_fast_path_alone(tiny: Path, tmp_path: Path) -> None:
    ends = {"model.head_precision": "int8", "model.embedding_precision": "int8"}
    seen = steps(finished(patched(recipe(tiny, tmp_path, pairs()), ends)))
    assert seen[0].loss == pytest.approx(0.6931, abs=1e-3) and seen[0].grad_norm > 0
    routed = build_tiny_model(tmp_path / "routed", "mixtral")  # its router has a loss of its own
    run = create_run(patched(recipe(routed, tmp_path, pairs()), ends))
    assert attempt(run, method=PreferenceTraining) == "preference.head"


def test_whoever_runs_the_layers_recomputes_them_as_planned(tiny: Path, tmp_path: Path) -> None:
    more = {"training.gradient_checkpointing": "on", "adapter.dropout": 0.1}
    fused = PreferenceTraining(next_attempt(create_run(patched(recipe(tiny, tmp_path, pairs()), more))))
    program = program_of(fused.handle.model)
    assert program is not None and program.keep == [Keep(attention=False, mlp=False)] * 2
    setting = next(iter(checkpointing(True)))  # by its newest name
    assert not getattr(fused.trainer.args, setting) and fused.trainer.head is not None
    routed = build_tiny_model(tmp_path / "routed", "mixtral")
    wanted = patched(recipe(routed, tmp_path, pairs()), more)
    plain = PreferenceTraining(next_attempt(create_run(wanted)))
    assert getattr(plain.trainer.args, setting) and plain.trainer.head is None
    assert plain.fused.reasons == {"steps: the router's own loss is added": 1}


def test_all_weights_train_against_a_copy_that_the_plan_counts(tiny: Path, tmp_path: Path) -> None:
    sections: dict[str, dict[str, Any]] = {
        "adapter": {"kind": "none"},
        "training": {"learning_rate": 1e-3, "max_steps": 4},
    }
    wanted = recipe(tiny, tmp_path, pairs(), **sections)
    alone = make_plan(recipe(tiny, tmp_path, pairs(), method={"loss": "orpo"}, **sections))
    bases = [plan.memory.components["base"] for plan in (make_plan(wanted), alone)]
    assert bases[0] == 2 * bases[1]
    run = finished(wanted)
    seen = steps(run)
    assert seen[0].loss == pytest.approx(0.6931, abs=1e-3) and seen[-1].loss < seen[0].loss
    assert (run.export / "model" / "model.safetensors").is_file()


def test_the_result_leaves_merged_and_proven_on_chosen_answers(tiny: Path, tmp_path: Path) -> None:
    from whet.engine.export.held_out import planned_rows
    from whet.engine.export.importance_rows import training_rows
    from whet.engine.export.of_run import export_run

    wanted = recipe(tiny, tmp_path, pairs(), export={"merged": True})
    run = finished(wanted)
    plan = run.load_plan()
    row = planned_rows(plan, tiny)[0]
    assert row["messages"][-1]["content"].startswith("yes ")
    assert sum(label != -100 for label in row["labels"]) > 2
    assert len(training_rows(plan, tiny)) == len(pairs())
    result = export_run(next_attempt(run))
    merged = AutoModelForCausalLM.from_pretrained(result.paths["merged"]).eval()
    base = AutoModelForCausalLM.from_pretrained(tiny)
    ids = torch.tensor([row["input_ids"]])
    trained = PeftModel.from_pretrained(base, run.export / "adapter").eval()(ids).logits
    torch.testing.assert_close(merged(ids).logits.float(), trained, atol=0.05, rtol=0.05)
