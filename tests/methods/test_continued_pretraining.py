"""Continued pretraining: text is learnt with embedding and head, which move at a rate of their own."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from support.plan_inputs import gpu, machine, model_facts, recipe, report
from support.tiny_models import TEXT, build_tiny_model
from support.tiny_runs import create_run, events_of, next_attempt, tiny_recipe
from transformers import AutoModelForCausalLM, AutoTokenizer

from whet.engine.alternatives import find_alternatives
from whet.engine.errors import WhetError
from whet.engine.export.of_run import export_run
from whet.engine.fitting import fit
from whet.engine.methods.sft.job import train
from whet.engine.models.fast_path import causal_model
from whet.engine.plan import Plan, make_plan
from whet.engine.recipe import Recipe
from whet.engine.resolve import resolve
from whet.engine.runs.context import RunContext, Stopped
from whet.engine.runs.events import EvalEvent, Event, StepEvent
from whet.engine.runs.store import RunDir

RATE, SHARE = 1e-2, 0.1


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WHET_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Documents in which each word has one that follows it, to train on and held out."""
    folder, draw = tmp_path_factory.mktemp("texts"), random.Random(0)
    words = sorted(set(TEXT.read_text(encoding="utf-8").split()))[:30]
    files = (folder / "train.jsonl", folder / "eval.jsonl")
    for file, count in zip(files, (40, 6), strict=True):
        with open(file, "w", encoding="utf-8") as out:
            for _ in range(count):
                start, length = draw.randrange(30), draw.randint(6, 30)
                text = " ".join(words[(start + n) % 30] for n in range(length))
                out.write(json.dumps({"text": text}) + "\n")
    return files


@pytest.fixture(scope="module", params=[False, True], ids=["two matrices", "tied"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    name = "tied" if request.param else "llama"
    return build_tiny_model(folder / name, tied=request.param, wide=True, chat=False)


def recipe_of(model: Path, texts: tuple[Path, Path], **sections: Any) -> Recipe:
    """Packed over epochs."""
    training = {
        "max_steps": None,
        "epochs": 3,
        "batch_size": 1,
        "gradient_accumulation": 2,
        "learning_rate": RATE,
        "optimizer": "adamw_8bit",
        "save_every": 100,
    } | sections.pop("training", {})
    return tiny_recipe(
        model,
        texts[0],
        data={"eval": str(texts[1])},
        method={"supervise": "all", "packing": True},
        adapter={"dropout": 0.0, "rank": 8, "train_embeddings": True},
        training=training,
        eval={"every": 1000},
        **sections,
    )


def of(run: RunDir, kind: type[Any]) -> list[Any]:
    return [event for event in events_of(run) if isinstance(event, kind)]


def losses(run: RunDir) -> list[float]:
    return [event.loss for event in of(run, StepEvent)]


@pytest.fixture(scope="module")
def trained(model: Path, texts: tuple[Path, Path]) -> tuple[RunContext, Path]:
    written = {"merged": True, "gguf": ["f16"] if "tied" in str(model) else []}
    run = create_run(recipe_of(model, texts, export=written))
    context = next_attempt(run)
    train(context)
    export_run(context)
    return context, model


def ends_of(model: Any) -> list[torch.Tensor]:
    causal: Any = causal_model(model)
    return [causal.get_input_embeddings().weight, causal.get_output_embeddings().weight]


def test_held_out_text_is_learnt(trained: tuple[RunContext, Path]) -> None:
    run = trained[0].dir
    first, *_, last = of(run, EvalEvent)
    steps = of(run, StepEvent)
    assert last.loss < first.loss - 1.0
    assert all(event.supervised_tokens > 0.95 * event.tokens for event in steps)
    plan = run.load_plan()
    assert len(steps) == 3 * plan.resolved.steps_per_epoch > 10
    # Packed rows come in another order, and all of them, in each epoch.
    tokens = [event.tokens for event in steps]
    third = plan.resolved.steps_per_epoch
    assert sum(tokens[:third]) == sum(tokens[third : 2 * third]) == plan.tokens_per_epoch


def test_the_plan_says_the_rate_and_counts_the_matrices(trained: tuple[RunContext, Path]) -> None:
    context = trained[0]
    plan = context.plan
    bare = make_plan(
        plan.recipe.model_copy(
            update={"adapter": plan.recipe.adapter.model_copy(update={"train_embeddings": False})}
        )
    )
    assert plan.resolved.embedding_learning_rate == pytest.approx(SHARE * RATE)
    assert "a tenth" in plan.origins["training.embedding_learning_rate"]
    assert bare.resolved.embedding_learning_rate is None
    rows, width = plan.model.embedding_rows, plan.model.hidden_size
    matrices = rows * width * (1 if plan.model.tied else 2)
    assert plan.resolved.trainable_parameters - bare.resolved.trainable_parameters == matrices

    def more(part: str) -> int:
        return plan.memory.components[part] - bare.memory.components[part]

    # fp32 copies and gradients; states of 8 bits but for an embedding's.
    assert more("adapter") == more("gradients") == 4 * matrices
    assert more("optimizer") == pytest.approx(8 * rows * width + 2.03 * (matrices - rows * width), rel=0.01)
    written = sum(file.stat().st_size for file in (context.dir.export / "adapter").glob("*.safetensors"))
    assert plan.disk_bytes["adapter"] == pytest.approx(written, rel=0.02)


def test_rows_of_both_matrices_move_as_far_as_their_rate_lets_them(
    model: Path, texts: tuple[Path, Path]
) -> None:
    """AdamW's first step moves each number with a gradient by the learning rate."""
    one = {"max_steps": 1, "warmup": 0, "weight_decay": 0}
    run = create_run(recipe_of(model, texts, training=one))
    adapter = train(next_attempt(run))
    base = AutoModelForCausalLM.from_pretrained(model)
    before = [end.clone() for end in ends_of(base)]
    tuned = PeftModel.from_pretrained(base, adapter)
    seen = torch.tensor(sorted({id for row in tokens_of(run.load_plan()) for id in row}))
    for old, new in zip(before, ends_of(tuned), strict=True):
        moved = (new - old).detach().abs()
        assert moved.max() == pytest.approx(SHARE * RATE, rel=1e-3)
        assert moved[seen].median() == pytest.approx(SHARE * RATE, rel=1e-2)
    factor = next(p for name, p in tuned.named_parameters() if "lora_B" in name)
    assert factor.detach().abs().max() == pytest.approx(RATE, rel=1e-3)  # it began at zero


def tokens_of(plan: Plan) -> list[list[int]]:
    from whet.engine.methods.sft.loading import open_rows

    return [row["input_ids"].tolist() for row in open_rows(plan.data.train)]


def test_everything_that_is_written_holds_the_trained_matrices(trained: tuple[RunContext, Path]) -> None:
    """Plain PEFT's logits, the merged folder's, and the verdict of llama.cpp's proof."""
    context, model = trained
    export = context.dir.export
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(export / "adapter")("the model learns", return_tensors="pt").input_ids
    with torch.no_grad():
        untuned = base(ids).logits
        tuned = PeftModel.from_pretrained(base, export / "adapter").eval()
        expected = tuned(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(export / "merged", dtype=torch.float32)
        ends = [end.clone() for end in ends_of(tuned)]
        difference = (merged(ids).logits - expected).abs().max()
    assert torch.equal(ends[0], ends[1]) == context.plan.model.tied
    for end, written in zip(ends, ends_of(merged), strict=True):
        assert torch.equal(end.bfloat16(), written.bfloat16())
    assert difference < 0.1 * (untuned - expected).abs().max()
    held_out = of(context.dir, EvalEvent)[-1]
    assert math.isclose(float(loss_of(tuned, context)), held_out.loss, rel_tol=1e-3)
    assert context.summary["verdict"] == "pass"


def loss_of(model: Any, context: RunContext) -> float:
    """Mean loss of a token of the held-out rows, each by itself."""
    from whet.engine.methods.sft.loading import open_rows

    total = count = 0.0
    assert context.plan.data.eval is not None
    for row in open_rows(context.plan.data.eval):
        ids = torch.tensor(row["input_ids"].tolist())
        with torch.no_grad():
            logits = model(ids[None]).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum"))
        count += len(ids) - 1
    return total / count


class StopsAt(RunContext):
    """Asks for a stop after step 4."""

    def emit(self, event: Event) -> None:
        super().emit(event)
        if isinstance(event, StepEvent) and event.step == 4:
            self.signals = 1


def test_it_resumes_to_the_same_losses(trained: tuple[RunContext, Path], texts: tuple[Path, Path]) -> None:
    whole, model = trained
    run = create_run(recipe_of(model, texts))
    context = next_attempt(run)
    with pytest.raises(Stopped):
        train(StopsAt(run, context.attempt, context._events))
    train(next_attempt(run))
    assert losses(run) == losses(whole.dir)


def test_where_the_matrices_do_not_fit_training_without_them_is_offered(tmp_path: Path) -> None:
    facts = model_facts(tmp_path)
    wanted = recipe(
        adapter__train_embeddings=True, training__embedding_learning_rate=1e-6, model__precision="nf4"
    )
    on, data = machine(gpu(12)), report()
    resolved, memory, _ = fit(wanted, resolve(wanted, facts, on, data, 1000)[0], facts, data, on)
    assert not memory.fits
    others = find_alternatives(wanted, resolved, facts, on, data, memory)
    first = others[0]
    assert first.memory.fits and first.patch["adapter.train_embeddings"] is False
    matrices = 2 * facts.embedding_rows * facts.hidden_size
    spared = memory.components["gradients"] - first.memory.components["gradients"]
    assert spared == 4 * matrices


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"training": {"embedding_learning_rate": 1e-5}}, "train_embeddings=true"),
        ({"adapter": {"kind": "none", "train_embeddings": True}}, "all weights train"),
        ({"adapter": {"train_embeddings": True}, "model": {"head_precision": "int8"}}, "lm_head quantised"),
        ({"adapter": {"train_embeddings": True}, "method": {"kind": "classification"}}, "modules_to_save"),
        ({"data": {"reasoning": "drop"}, "method": {"kind": "preference"}}, "data.reasoning=drop"),
        ({"data": {"reasoning": "each"}, "method": {"supervise": "all"}}, "learns all tokens"),
    ],
)
def test_what_cannot_be_is_refused(sections: dict[str, Any], said: str) -> None:
    from whet.engine.recipe_files import build

    needed = {"model": {"name": "demo"}, "data": {"train": "demo"}}
    values = {name: needed.get(name, {}) | sections.get(name, {}) for name in needed | sections}
    with pytest.raises(WhetError, match=said):
        build(values)
