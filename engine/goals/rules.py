"""Rules from facts to settings: how much data, how long its rows, which model, what matters.

Recommended values are the recipe's defaults and those of the shipped recipes for the same case (plain text,
all weights, the demo model). Each rule sets a value with the reason that a person reads.
"""

from __future__ import annotations

import math

from ..data.inspection import SplitReport
from ..export.gguf.types import USUAL, USUAL_FOR_EMBEDDINGS
from ..export.task_heads import KINDS as HEADED
from ..hardware import Machine
from ..models.facts import ModelFacts
from ..models.listing import gguf_reason
from ..models.needs import can_hold, targets_of
from ..plan import Plan
from ..recipe import Recipe, TrainingSection
from ..recipe_files import load_recipe
from .draft import HELD_OUT, Draft, Look, questions
from .goal import ASKED
from .methods import FROM_CHAT, RECIPES, recipe_of

ENOUGH_TO_SHARE = 150
"""Rows from which some are held out; below, training has too few already."""
MOST_HELD_OUT = 0.1
FEWEST_HELD_OUT, ENOUGH_HELD_OUT = 50, 1000
"""Rows whose mean loss is steady enough to compare, and beyond which evaluations only take longer."""
FEW_ROWS, MANY_ROWS = 1000, 10_000
FEWEST_STEPS = 60
"""The seed of most scripts: a quick run of LoRA is sixty steps."""
LENGTH_STEP = 256
LEAST_BATCH = 16
"""Rows that a batch of texts is not made smaller than."""
TINY = 50e6
"""Parameters below which a model is a toy: fast on any machine, with a learning rate of its own."""
RANK = {"quality": 32, "speed": 16, "memory": 16}
PROMPTS, LONGEST_PROMPT = 3, 300


def before_reading(draft: Draft, look: Look) -> None:
    """What decides how rows are tokenised: layout, and which rows are held out."""
    if look.layout == "text":
        draft.set("method.supervise", "all", "plain text has no answers, so every token counts")
    kind = draft.recipe().method.kind
    if kind in RECIPES:  # a plan of smaller batches may be refused
        like = recipe_of(kind)
        draft.set("training.batch_size", like.training.batch_size, f"as whet's recipe {like.name} has it")
    if draft.goal.eval_data is not None or "data.eval" in draft.pinned:
        return
    fraction = held_out_share(look.rows)
    if fraction == 0:
        draft.set("data.eval_fraction", 0.0, f"{look.rows:,} rows are too few to hold some of them out")
        return
    count = round(fraction * look.rows)
    draft.set(
        "data.eval_fraction",
        fraction,
        f"about {count:,} of {look.rows:,} rows are held out, to see whether it learns or memorises",
    )


def held_out_share(rows: int) -> float:
    """A twentieth of the rows, more of few and less of very many; 0 where there are too few."""
    if rows < ENOUGH_TO_SHARE:
        return 0.0
    wanted = min(max(HELD_OUT * rows, FEWEST_HELD_OUT), ENOUGH_HELD_OUT)
    return round(min(wanted / rows, MOST_HELD_OUT), 3) or 0.001


def length(draft: Draft, facts: ModelFacts, train: SplitReport, layout: str | None) -> None:
    """Rows are kept whole where the default allows; of longer ones at least 99 in 100."""
    usual = draft.recipe().model.max_length
    most, lengths = facts.max_positions or train.length.max, train.length
    if layout == "text":
        wanted, reason = min(usual, most), "long texts are split into windows of this many tokens"
    elif lengths.max <= min(usual, most):
        usual = min(usual, most)
        wanted, reason = usual, f"the longest row has {lengths.max:,} tokens, so nothing is cut"
    else:
        wanted = max(usual, math.ceil(lengths.p99 / LENGTH_STEP) * LENGTH_STEP)
        reason = f"99 of 100 rows have at most {lengths.p99:,} tokens; the longest has {lengths.max:,}"
    if wanted > most:
        wanted, reason = most, f"the model has {most:,} positions, and the longest row {lengths.max:,} tokens"
    draft.set("model.max_length", wanted, reason)


def adapter(draft: Draft, facts: ModelFacts) -> None:
    """Rank by priority; targets by family."""
    if draft.recipe().adapter.kind == "none":
        return
    rank = draft.recipe().adapter.rank if "adapter.rank" in draft.pinned else RANK[draft.goal.priority]
    words = {
        "quality": "the larger of the two usual ranks, since quality comes first",
        "speed": "the smaller of the two usual ranks: fewer numbers to train",
        "memory": "the smaller of the two usual ranks: less to hold",
    }
    draft.set("adapter.rank", rank, words[draft.goal.priority])
    draft.set("adapter.alpha", rank, "as the rank: the update counts once")
    targets, usual = targets_of(facts), draft.recipe().adapter.target_modules
    if targets != usual:
        draft.set("adapter.target_modules", targets, f"the linear layers of {facts.family}")


def training(draft: Draft, facts: ModelFacts, machine: Machine, plan: Plan) -> None:
    """Passes, learning rate, and how many rows make a step."""
    train, layout = plan.data.report.train, plan.data.report.format.format
    rows = max(train.rows, train.token_rows)
    like, why = _recommended(draft, facts, layout)
    draft.set("training.learning_rate", like.training.learning_rate, why)
    draft.set("training.batch_size", like.training.batch_size, f"as whet's recipe {like.name} has it")
    for name in ("warmup", "scheduler", "weight_decay"):
        value = getattr(like.training, name)
        if value != getattr(TrainingSection(), name):
            draft.set(f"training.{name}", value, f"as whet's recipe {like.name} has it")
    if like.method.kind in FROM_CHAT:
        draft.set(
            "training.epochs", like.training.epochs, "compared answers are seen few times, or they stick"
        )
    else:
        draft.set("training.epochs", *_epochs(facts, machine, rows, layout, like))
    if layout == "text":
        draft.set("method.packing", True, "texts are packed, so that each step is full")
        _whole_ends(draft, like)
    if like.method.kind != "sft":
        _smaller_batches(draft, like, rows)
        draft.set("eval.batch_size", like.eval.batch_size, f"as whet's recipe {like.name} has it")
    _steps(draft, like, rows)


def _smaller_batches(draft: Draft, like: Recipe, rows: int) -> None:
    """Of few rows, where the usual batch gives too few steps to learn from; never below sixteen."""
    size = usual = like.training.batch_size
    while size >= 2 * LEAST_BATCH and rows * draft.recipe().training.epochs / size < FEWEST_STEPS:
        size //= 2
    if size < usual:
        reason = f"{usual} as usual would give too few steps from {rows:,} rows"
        draft.set("training.batch_size", size, reason)


def _recommended(draft: Draft, facts: ModelFacts, layout: str | None) -> tuple[Recipe, str]:
    """The shipped recipe of the same case, whose values are taken."""
    kind = draft.recipe().method.kind
    if kind in RECIPES:
        like = recipe_of(kind)
        return like, f"as whet's recipe {like.name} has it"
    if draft.recipe().adapter.kind == "none":
        return load_recipe("full-finetune"), "the usual value where all weights train"
    if facts.parameters.total < TINY:
        return load_recipe("demo"), "so small a model needs larger steps than the usual 2e-4"
    if layout == "text":
        return load_recipe("continued-pretraining"), "the usual value for plain text"
    return load_recipe("lora-chat"), "the usual value for LoRA"


def _epochs(
    facts: ModelFacts, machine: Machine, rows: int, layout: str | None, like: Recipe
) -> tuple[float, str]:
    if facts.parameters.total < TINY and rows < FEW_ROWS:
        return like.training.epochs, "a very small model takes more passes over few rows"
    if not machine.gpus and facts.parameters.total >= TINY:
        return 1.0, "one pass, since a CPU is slow"
    passes = 3 if rows < FEW_ROWS else 2 if rows < MANY_ROWS else 1
    if layout == "text":
        passes = min(passes, 2)
    if passes == 1:
        return 1.0, f"{rows:,} rows are enough to learn from one pass"
    return float(passes), f"{rows:,} rows are few, so the model sees them {passes} times"


def _whole_ends(draft: Draft, like: Recipe) -> None:
    """New language needs embedding and head, which costs memory."""
    if draft.goal.priority == "quality" and draft.recipe().adapter.kind != "none":
        whole = like.adapter.train_embeddings
        draft.set("adapter.train_embeddings", whole, "plain text brings words of its own, so these train too")


def _steps(draft: Draft, like: Recipe, rows: int) -> None:
    """Fewer rows a step where the usual number gives too few steps to learn from."""
    training = draft.recipe().training
    if "training.gradient_accumulation" in draft.pinned:
        return
    wanted = usual = like.training.gradient_accumulation
    while wanted > 1 and rows * training.epochs / (training.batch_size * wanted) < FEWEST_STEPS:
        wanted //= 2
    reason = f"{training.batch_size * wanted} rows make a step"
    if wanted < usual:
        reason += f", fewer than usual: {rows:,} rows would give too few steps"
    draft.set("training.gradient_accumulation", wanted, reason)


def evaluation(draft: Draft) -> None:
    """Stop when held-out loss no longer falls, where rows are seen more than once."""
    recipe = draft.recipe()
    holds_out = recipe.data.eval is not None or recipe.data.eval_fraction > 0
    if holds_out and recipe.training.epochs > 1:
        patience = load_recipe("lora-chat").eval.early_stopping
        reason = "rows are seen more than once: stop when held-out loss no longer falls, keep the best"
        draft.set("eval.early_stopping", patience, reason)
    else:
        draft.unset("eval.early_stopping")


def precision(draft: Draft, facts: ModelFacts, machine: Machine) -> None:
    """How the base is held, before memory has its say."""
    if draft.recipe().adapter.kind == "none":
        return
    if facts.quantization is not None:
        draft.set("model.precision", "auto", f"the checkpoint itself is quantised ({facts.quantization})")
    elif draft.goal.priority == "memory" and machine.gpus and facts.parameters.total >= TINY:
        if can_hold(facts, machine, "nf4"):
            draft.set("model.precision", "nf4", "4 bits (QLoRA) take a quarter of the memory of 16")
        reason = "activations are computed again instead of held, which saves memory and costs time"
        draft.set("training.gradient_checkpointing", "on", reason)
    else:
        held = "16 bits fit" if machine.gpus else "CPUs train in fp32"
        draft.set("model.precision", "auto", f"{held}, and nothing is lost to rounding")


def sampling(draft: Draft, plan: Plan, look: Look) -> None:
    """Questions of the data itself, answered before and during training."""
    asked = questions(plan, look.head, PROMPTS, LONGEST_PROMPT)
    if asked:
        draft.set("sampling.prompts", asked, "questions of your data, answered before, during and after")


def export(draft: Draft, facts: ModelFacts) -> None:
    """What was asked for; else the usual GGUF where the model can have one."""
    goal, kind = draft.goal, draft.recipe().method.kind
    if kind in HEADED and not goal.export:
        draft.set("export.merged", True, "one folder that transformers and sentence-transformers load")
        return
    if goal.export is not None:
        draft.set("export.gguf", goal.export, ASKED if goal.export else "none was asked for")
        return
    refusal = gguf_reason(facts)
    if refusal is None:
        reason = "one small file for Ollama, LM Studio and llama.cpp, good for most uses"
        usual = USUAL_FOR_EMBEDDINGS[0] if kind == "embedding" else USUAL[0]
        if kind == "embedding":
            reason = "one file for embedding servers; rounding moves vectors more than answers"
        draft.set("export.gguf", [usual], reason)
    else:
        draft.set("export.gguf", [], f"no GGUF of this model: {refusal}")
