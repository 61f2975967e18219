"""Machines, data files and plan facts for tests of the planner and its checks. Light: no torch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from whet.engine.checks import PlanFacts
from whet.engine.data.formats import FormatGuess
from whet.engine.data.inspection import DataReport, Lengths, SplitReport
from whet.engine.hardware import GPU, Machine
from whet.engine.models.facts import ModelFacts, read_model_facts
from whet.engine.models.memory import estimate_memory
from whet.engine.plan import Plan, make_plan
from whet.engine.recipe import AdapterSection, Recipe
from whet.engine.recipe_files import patched
from whet.engine.resolve import resolve

GIB = 2**30

LLAMA_8B = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "max_position_embeddings": 131072,
    "dtype": "bfloat16",
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128009],
}

TESTED_VERSIONS = {
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "trl": "1.16.0",
    "peft": "0.21.2",
    "accelerate": "1.15.0",
    "datasets": "5.2.0",
    "bitsandbytes": "0.50.2",
    "tokenizers": "0.23.3",
    "llama-cpp-python": "0.3.36",
}


def gpu(
    memory_gib: float = 80, *, free_gib: float | None = None, capability: tuple[int, int] = (9, 0)
) -> GPU:
    return GPU(
        index=0,
        name="Test GPU",
        uuid="GPU-0000",
        memory_total=int(memory_gib * GIB),
        memory_free=int((memory_gib if free_gib is None else free_gib) * GIB),
        capability=capability,
        driver="580.00",
    )


def machine(*gpus: GPU, ram_gib: float = 64, **changes: Any) -> Machine:
    values = {
        "gpus": list(gpus),
        "cpu_name": "Test CPU",
        "cpu_count": 8,
        "ram_total": int(ram_gib * GIB),
        "ram_available": int(ram_gib * GIB),
        "disk_free": 1000 * GIB,
        "versions": TESTED_VERSIONS,
    }
    return Machine.model_validate({**values, **changes})


def model_facts(folder: Path, config: dict[str, Any] | None = None) -> ModelFacts:
    """Facts of a directory with config.json alone."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or LLAMA_8B), encoding="utf-8")
    return read_model_facts(folder, "some-org/some-model")


def split(**values: Any) -> SplitReport:
    """Counts of a split; what is not named is zero."""
    return SplitReport.model_validate(values)


def report(train: SplitReport | None = None, **changes: Any) -> DataReport:
    """5,000 healthy chat rows of up to 1,500 tokens."""
    healthy = split(
        rows=5000,
        token_rows=5000,
        tokens=2_000_000,
        supervised_tokens=900_000,
        length=Lengths(p50=350, p95=900, p99=1200, max=1500),
    )
    values: dict[str, Any] = {
        "formats": {"chats.jsonl": FormatGuess(format="messages", confidence=1, reason="all rows fit")},
        "train": train or healthy,
        "max_length": 2048,
        "supervise": "responses",
        "template": "model",
        "bos_token": "<|begin_of_text|>",
        "end_of_turn": "<|eot_id|>",
    }
    return DataReport(**{**values, **changes})


def with_train(base: DataReport, **changes: Any) -> DataReport:
    return base.model_copy(update={"train": base.train.model_copy(update=changes)})


def recipe(**patch: Any) -> Recipe:
    """A LoRA recipe for a hub model; ``training__batch_size=8`` sets ``training.batch_size``."""
    plain = Recipe.model_validate(
        {"model": {"name": "some-org/some-model"}, "data": {"train": "chats.jsonl"}}
    )
    return patched(plain, {key.replace("__", "."): value for key, value in patch.items()})


def adapter(**values: Any) -> AdapterSection:
    """An adapter section with these values, the rest default."""
    return AdapterSection.model_validate(values)


def plan_facts(
    model: ModelFacts,
    *,
    wanted: Recipe | None = None,
    on: Machine | None = None,
    data: DataReport | None = None,
    **changes: Any,
) -> PlanFacts:
    """What the checks see, resolved and estimated by the real planner code; healthy unless told otherwise."""
    wanted, on, data = wanted or recipe(), on or machine(gpu()), data or report()
    resolved, _ = resolve(wanted, model, on, data, data.train.token_rows)
    facts = PlanFacts(
        recipe=wanted,
        resolved=resolved,
        model=model,
        machine=on,
        report=data,
        memory=estimate_memory(model, wanted.adapter, resolved, data, on),
        alternatives=(),
        disk_bytes={"checkpoints": GIB},
        fitting_template=None,
        missing_markers=(),
        better_template=None,
        gguf_refusal=None,
        bitsandbytes="bitsandbytes" in on.versions,
        llama_cpp=True,
    )
    return replace(facts, **changes)


def write_chats(path: Path, rows: int) -> Path:
    """A messages file of ``rows`` distinct conversations."""
    lines: Iterable[dict[str, Any]] = (
        {
            "messages": [
                {"role": "user", "content": f"What is {number} plus {number + 1}?"},
                {"role": "assistant", "content": f"It is {2 * number + 1}."},
            ]
        }
        for number in range(rows)
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def chat_recipe(model: Path, data: Path, **patch: Any) -> Recipe:
    plain = Recipe.model_validate({"model": {"name": str(model)}, "data": {"train": str(data)}})
    return patched(plain, {key.replace("__", "."): value for key, value in patch.items()})


def plan_for(tiny_model: Path, tmp_path: Path, gpu_gib: float, **patch: Any) -> Plan:
    """A plan of the 8B shape (no weights needed) with the tiny model's tokenizer on a GPU of this size.

    One row of the data is longer than 2,048 tokens.
    """
    model = tmp_path / "8b"
    if not model.exists():
        model.mkdir()
        (model / "config.json").write_text(json.dumps(LLAMA_8B))
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tiny_model / name, model / name)
    data = tmp_path / "chats.jsonl"
    if not data.exists():
        write_chats(data, 1200)
        long = " ".join(f"word{number}" for number in range(3000))
        row = {"messages": [{"role": "user", "content": "Say much."}, {"role": "assistant", "content": long}]}
        data.write_text(data.read_text() + (json.dumps(row) + "\n"))
    return make_plan(chat_recipe(model, data, **patch), machine=machine(gpu(gpu_gib)))
