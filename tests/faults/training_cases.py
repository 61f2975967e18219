"""Broken set-ups of the training phase: real trainings of tiny models."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
from faults.data_set_ups import chat, write
from faults.harness import Fault, Looked
from support.broken_models import change_weights, whole_model
from support.live_runs import attempt, findings_of, plain_trainer, trained, watched
from support.plan_inputs import gpu, machine
from support.tiny_runs import create_run, tiny_recipe, write_chat_rows
from torch.nn import functional as F

from whet.engine.findings import Finding
from whet.engine.methods.sft.collation import PackingCollator, PaddingCollator
from whet.engine.methods.sft.self_tests import self_tests
from whet.engine.methods.sft.trainer import SupervisedTrainer
from whet.engine.models.loading import ModelHandle, Precision, load_model
from whet.engine.models.stored_tensors import stored_tensors
from whet.engine.plan import make_plan
from whet.engine.recipe import Recipe
from whet.engine.recipe_files import patched
from whet.engine.runs.manifest import MANIFEST, Manifest, write_manifest
from whet.engine.runs.store import RunDir
from whet.engine.runs.supervisor import _replan

UP = "model.layers.1.mlp.up_proj.weight"


@lru_cache
def base() -> Path:
    return whole_model(Path(mkdtemp(prefix="whet-fault-base-")) / "model")


def chats(folder: Path, rows: int = 120, **sections: Any) -> Recipe:
    """A healthy recipe of 120 chats; sections as :func:`support.tiny_runs.tiny_recipe` takes them."""
    data = write_chat_rows(folder / "rows.jsonl", rows)
    sections["adapter"] = {"dropout": 0.0} | sections.get("adapter", {})
    model = sections.pop("path", base())
    return tiny_recipe(model, data, **sections)


def copied(source: Path | str, target: Path) -> None:
    """Put a file back."""
    shutil.copy(source, target)


def run_of(recipe: Recipe, by_hand: Callable[[], None] | None = None) -> Looked:
    """Train; mended by the patch, or by hand, and trained again."""

    def mend(finding: Finding) -> Looked:
        assert finding.fix is not None
        if by_hand is not None:
            by_hand()
            return run_of(recipe)
        return run_of(patched(recipe, finding.fix.patch))

    return Looked(trained(recipe), mend)


# --- T01


def rate_beyond_all(folder: Path) -> Looked:
    training = {"learning_rate": 1e15, "warmup": 2, "max_grad_norm": 0, "max_steps": 5}
    return run_of(chats(folder, training=training))


def infinite_weight(folder: Path) -> Looked:
    """One number of one layer did not survive a conversion."""
    path = whole_model(folder / "model")

    def spoil(tensors: dict[str, Any]) -> None:
        tensors[UP][3, 5] = float("inf")

    whole = shutil.copy(path / "model.safetensors", folder / "whole.safetensors")
    change_weights(path, spoil)
    recipe = chats(folder, path=path, training={"max_steps": 2})
    return run_of(recipe, lambda: copied(whole, path / "model.safetensors"))


# --- T02, T03


def handle_of() -> ModelHandle:
    return load_model(base(), Precision())


def own_mean(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """A script's loss that knows nothing of the other micro-batches."""
    return F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def own_sum(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """The same, right."""
    logits, wanted = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return F.cross_entropy(logits, wanted, reduction="sum") / num_items_in_batch


class OldTrainer(SupervisedTrainer):
    """As scripts did it before transformers passed the number of tokens of the whole step."""

    def compute_loss(  # type: ignore[override]
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(**inputs, use_cache=False)
        return (outputs.loss, outputs) if return_outputs else outputs.loss


def old_trainer(folder: Path, kind: Any = OldTrainer) -> Looked:
    trainer, rows = plain_trainer(handle_of(), folder / "out", kind=kind)
    return Looked(self_tests(trainer, rows), lambda finding: old_trainer(folder, SupervisedTrainer))


def own_loss(loss: Any) -> Callable[[Path], Looked]:
    def look(folder: Path) -> Looked:
        trainer, rows = plain_trainer(handle_of(), folder / "out", compute_loss_func=loss)
        return Looked(self_tests(trainer, rows), lambda finding: own_loss(own_sum)(folder))

    return look


@dataclass(frozen=True)
class JoinedCollator:
    """Rows end to end, positions counted on: a packing from before attention knew of documents."""

    collate: PackingCollator
    positions: bool = False
    mask: bool = False

    def __call__(self, rows: Sequence[Any]) -> dict[str, Any]:
        batch = replace(self.collate, rows=rows)([{"rows": range(len(rows))}])
        if not self.positions:
            batch["position_ids"] = torch.arange(batch["input_ids"].shape[1])[None]
        if self.mask:
            batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        return batch


def joined(positions: bool, mask: bool) -> Callable[[Path], Looked]:
    def look(folder: Path) -> Looked:
        handle = handle_of()
        collate = JoinedCollator(PackingCollator([], handle.pad_id), positions, mask)
        trainer, rows = plain_trainer(handle, folder / "out", collate=collate)
        return Looked(self_tests(trainer, rows), lambda finding: joined(True, False)(folder))

    return look


# --- T04


def demo_chats(path: Path, **training: Any) -> Recipe:
    """The demo's rows for the demo's model, or one beside it."""
    from whet.engine.demo import TRAIN_FILE

    return tiny_recipe(path, Path(TRAIN_FILE), adapter={"dropout": 0.0}, training=training)


def foreign_weights(folder: Path) -> Looked:
    """Weights of a sibling whose tokenizer numbers its tokens otherwise."""
    from whet.engine.demo import MODEL_DIR

    path = Path(shutil.copytree(MODEL_DIR, folder / "model"))
    whole = shutil.copy(path / "model.safetensors", folder / "whole.safetensors")

    def renumber(tensors: dict[str, Any]) -> None:
        name = "model.embed_tokens.weight"
        tensors[name] = tensors[name].roll(300, 0).clone()

    change_weights(path, renumber)
    recipe = demo_chats(path, max_steps=1)
    return run_of(recipe, lambda: copied(whole, path / "model.safetensors"))


def known_by_heart(folder: Path) -> Looked:
    """Rows that the model was made from: it answers them before the first step."""
    import yaml

    from whet.engine.demo import MODEL_DIR

    build = Path(MODEL_DIR).parent / "build" / "everyday.yaml"
    groups = yaml.safe_load(build.read_text(encoding="utf-8"))
    pairs = [chat(question, group["answer"]) for group in groups for question in group["ask"]]
    rows = write(folder / "rows.jsonl", pairs)
    recipe = tiny_recipe(Path(MODEL_DIR), rows, training={"max_steps": 1}, adapter={"dropout": 0.0})

    def other_rows(finding: Finding) -> Looked:
        return Looked(trained(demo_chats(Path(MODEL_DIR), max_steps=1)))

    return Looked(trained(recipe), other_rows)


# --- T05


def stopped_run(folder: Path, **sections: Any) -> RunDir:
    """Trained to step 3 of 8, with a checkpoint there."""
    training = {"max_steps": 8, "save_every": 100} | sections.pop("training", {})
    return stopped(chats(folder, training=training, **sections))


def stopped(recipe: Recipe) -> RunDir:
    run = create_run(recipe)
    assert attempt(run, stop_after=3) == "stopped"
    return run


def checkpoint_of_another_run(folder: Path) -> Looked:
    """A checkpoint of an adapter of another rank was copied into the run."""
    run, other = stopped_run(folder), stopped_run(folder, adapter={"rank": 8})
    name = "step-000003"
    own = shutil.move(run.checkpoints / name, folder / name)
    shutil.copytree(other.checkpoints / name, run.checkpoints / name)
    attempt(run)

    def put_back(finding: Finding) -> Looked:
        again = stopped_run(folder)
        shutil.rmtree(again.checkpoints / name)
        shutil.copytree(own, again.checkpoints / name)
        attempt(again)
        return Looked(findings_of(again))

    return Looked(findings_of(run), put_back)


def resumed_with_other_batches(folder: Path, overrides: Sequence[str] = ("training.batch_size=4",)) -> Looked:
    """Twice the rows a step from the checkpoint on: the cursor is the step."""
    run = stopped_run(folder)
    _replan(run, overrides)
    attempt(run)

    def mend(finding: Finding) -> Looked:
        assert finding.fix is not None
        patch = [f"{key}={value}" for key, value in finding.fix.patch.items()]
        return resumed_with_other_batches(folder, [*overrides, *patch])

    return Looked(findings_of(run), mend)


def damaged_checkpoint(folder: Path, spoil: bool = True) -> Looked:
    """A disk changed one bit of the newest checkpoint."""
    run = stopped_run(folder)
    file = run.checkpoints / "step-000003" / "adapter_model.safetensors"
    if spoil:
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    attempt(run)
    return Looked(findings_of(run), lambda finding: damaged_checkpoint(folder, spoil=False))


def spoiled_checkpoint(folder: Path, spoil: bool = True) -> Looked:
    """The adapter in the checkpoint has other numbers than were trained, and sums that fit them."""
    from whet.engine.demo import MODEL_DIR

    run = stopped(demo_chats(Path(MODEL_DIR), max_steps=8, save_every=100))
    file = run.checkpoints / "step-000003" / "adapter_model.safetensors"
    if spoil:
        for number, tensor in enumerate(stored_tensors([file]).values()):
            values = np.memmap(file, "<f4", "r+", tensor.start, tensor.shape)
            values[:] = np.random.default_rng(number).standard_normal(tensor.shape)
            values.flush()
        told = Manifest.model_validate_json((file.parent / MANIFEST).read_bytes())
        write_manifest(file.parent, MANIFEST, told.files)
    attempt(run)
    return Looked(findings_of(run), lambda finding: spoiled_checkpoint(folder, spoil=False))


# --- T07


def recited(folder: Path) -> Looked:
    """All weights on a hundred rows of chance words, far too long: held-out rows get worse."""
    held_out = write_chat_rows(folder / "held_out.jsonl", 20, seed=1)
    recipe = chats(
        folder,
        rows=100,
        data={"eval": str(held_out), "train": str(write_chat_rows(folder / "train.jsonl", 100))},
        adapter={"kind": "none"},
        training={"max_steps": 150, "learning_rate": 4e-3, "save_every": 1000, "batch_size": 4},
        eval={"every": 15, "batch_size": 10},
    )
    return run_of(recipe)


def diverging(folder: Path) -> Looked:
    """The demo, at a rate a thousand times what it stands, without clipping."""
    from whet.engine.demo import MODEL_DIR

    rate = {"learning_rate": 0.3, "warmup": 20, "max_grad_norm": 0}
    return run_of(demo_chats(Path(MODEL_DIR), max_steps=40, save_every=1000, **rate))


def rate_next_to_nothing(folder: Path) -> Looked:
    """A slip of the exponent: on answers that are new to it, the model's loss stays where it began."""
    from support.healthy_models import demo_pairs

    from whet.engine.demo import MODEL_DIR

    questions, answers = zip(*demo_pairs(), strict=True)
    pairs = zip(questions, [*answers[7:], *answers[:7]], strict=True)
    rows = write(folder / "rows.jsonl", [chat(*pair) for pair in pairs])
    training = {"max_steps": 70, "save_every": 1000, "learning_rate": 2e-9, "batch_size": 8}
    return run_of(tiny_recipe(Path(MODEL_DIR), rows, adapter={"dropout": 0.0}, training=training))


# --- T08


def large_evaluation(folder: Path) -> Looked:
    """A model off the fast path, whose held-out batches are far larger than its training batches."""
    from transformers import AutoModelForCausalLM, GenerationConfig, OlmoConfig

    path = whole_model(folder / "model")
    own = json.loads((path / "config.json").read_text())
    config = OlmoConfig(
        vocab_size=400, hidden_size=64, intermediate_size=8192, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=512, bos_token_id=own["bos_token_id"], eos_token_id=own["eos_token_id"],
        pad_token_id=own["pad_token_id"],
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config = GenerationConfig.from_pretrained(path)
    model.save_pretrained(path)
    held_out = write_chat_rows(folder / "held_out.jsonl", 50, seed=1)
    recipe = chats(folder, rows=1000, path=path, data={
        "eval": str(held_out), "train": str(write_chat_rows(folder / "train.jsonl", 1000))},
        eval={"batch_size": 50})  # fmt: skip

    def look(recipe: Recipe) -> Looked:
        findings = make_plan(recipe, machine=machine(gpu(0.95))).findings
        return Looked(
            findings, lambda finding: look(patched(recipe, finding.fix.patch if finding.fix else {}))
        )

    return look(recipe)


def logits_of_all_rows(folder: Path, keep: bool = True) -> Looked:
    """compute_metrics over more rows than there is memory for their logits."""
    from psutil import virtual_memory

    found: list[Finding] = []
    trainer, rows = plain_trainer(handle_of(), folder / "out", compute_metrics=lambda _: {"a": 0.0})
    trainer.found = found.append
    if not keep:
        trainer.preprocess_logits_for_metrics = lambda logits, labels: logits.argmax(-1)
    row = max(rows, key=lambda one: len(one["input_ids"]))
    count = virtual_memory().available // (len(row["input_ids"]) * 400 * 4) + 1
    trainer._look_at_predictions(trainer.get_eval_dataloader([row] * count))
    return Looked(found, lambda finding: logits_of_all_rows(folder, keep=False))


# --- T09


@dataclass
class SlowCollator:
    """Rows that are fetched over a network."""

    collate: PaddingCollator
    seconds: float

    def __call__(self, rows: Sequence[Any]) -> dict[str, Any]:
        time.sleep(self.seconds)
        return self.collate(rows)


def slow_rows(folder: Path, seconds: float = 0.04) -> Looked:
    handle = handle_of()
    collate = SlowCollator(PaddingCollator(handle.pad_id), seconds)
    trainer, _ = plain_trainer(handle, folder / "out", collate=collate, max_steps=24)
    found = watched(trainer, chats(folder))
    return Looked(found, lambda finding: slow_rows(folder, 0.0))


def neighbour(folder: Path, seconds: float = 0.15) -> Looked:
    """From the 25th step on something else takes the machine's time."""
    handle = handle_of()
    trainer, _ = plain_trainer(handle, folder / "out", max_steps=38)

    def wait(_module: Any, _inputs: Any) -> None:
        if trainer.state.global_step >= 25:
            time.sleep(seconds)

    handle.model.register_forward_pre_hook(wait)
    return Looked(watched(trainer, chats(folder)), lambda finding: neighbour(folder, 0.0))


FAULTS: tuple[Fault, ...] = (
    Fault("T01", "a rate beyond all numbers", rate_beyond_all,
          {"training.learning_rate": 2e-4, "training.max_grad_norm": 1.0}, "error"),
    Fault("T01", "an infinite weight", infinite_weight, "Download the model again", "error"),
    Fault("T02", "a mean of each micro-batch", own_loss(own_mean), {"training.gradient_accumulation": 1},
          "error"),
    Fault("T02", "a trainer that ignores the step's tokens", old_trainer,
          {"training.gradient_accumulation": 1}, "error"),
    Fault("T03", "positions that count on", joined(False, False), {"method.packing": False}, "error"),
    Fault("T03", "a mask that allows all", joined(True, True), {"method.packing": False}, "error"),
    Fault("T04", "weights of another numbering", foreign_weights, "whet template", "error"),
    Fault("T04", "rows the model was made from", known_by_heart, "whet template"),
    Fault("T05", "a checkpoint of another run", checkpoint_of_another_run, "own files back", "error"),
    Fault("T05", "other rows a step", resumed_with_other_batches,
          {"training.batch_size": 4, "training.gradient_accumulation": 1}),
    Fault("T05", "a bit of the checkpoint flipped", damaged_checkpoint, "delete the folder"),
    Fault("T05", "other numbers in the checkpoint", spoiled_checkpoint, "start anew", "error"),
    Fault("T07", "recited rows", recited, "held-out loss was lowest"),
    Fault("T07", "a rate that is too high", diverging,
          {"training.learning_rate": 2e-4, "training.max_grad_norm": 1.0}, "error"),
    Fault("T07", "a rate next to nothing", rate_next_to_nothing, {"training.learning_rate": 2e-4}),
    Fault("T08", "held-out batches larger than the GPU", large_evaluation, {"eval.batch_size": 2}),
    Fault("T08", "logits of all rows", logits_of_all_rows, "preprocess_logits_for_metrics"),
    Fault("T09", "rows that come slowly", slow_rows, "local disk"),
    Fault("T09", "a neighbour on the machine", neighbour, "what else runs here"),
)  # fmt: skip
