"""Each check on facts where it must speak, and on healthy ones where it must not."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.plan_inputs import (
    LLAMA_8B,
    TESTED_VERSIONS,
    gpu,
    machine,
    model_facts,
    plan_facts,
    recipe,
    report,
    split,
    with_train,
)

from whet.engine.checks import CHECKS, PlanFacts, run_checks
from whet.engine.checks.environment import TESTED
from whet.engine.data.formats import FormatGuess
from whet.engine.models.facts import ModelFacts
from whet.engine.recipe_files import patched

QWEN3_06B = {
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "max_position_embeddings": 40960,
}


@pytest.fixture
def model(tmp_path: Path) -> ModelFacts:
    return model_facts(tmp_path / "model")


HEALTHY: dict[str, Callable[[Path], PlanFacts]] = {
    "LoRA of 8B on 80 GB": lambda path: plan_facts(model_facts(path)),
    "QLoRA of 8B on 12 GB": lambda path: plan_facts(
        model_facts(path),
        wanted=recipe(model__precision="nf4", training__gradient_checkpointing="on"),
        on=machine(gpu(12)),
    ),
    "QLoRA of 8B on an old GPU": lambda path: plan_facts(
        model_facts(path),
        wanted=recipe(model__precision="nf4", training__gradient_checkpointing="on"),
        on=machine(gpu(16, capability=(7, 5))),
    ),
    "0.6B on 8 GB": lambda path: plan_facts(
        model_facts(path, QWEN3_06B),
        wanted=recipe(training__gradient_checkpointing="on", export__gguf=["q4_k_m", "Q8_0"]),
        on=machine(gpu(8)),
    ),
    "0.6B on a CPU": lambda path: plan_facts(model_facts(path, QWEN3_06B), on=machine(ram_gib=32)),
    "plain text": lambda path: plan_facts(
        model_facts(path),
        data=report(
            formats={"books": FormatGuess(format="text", confidence=1, reason="folder of texts")},
            train=split(
                rows=40, token_rows=9000, tokens=18_000_000, supervised_tokens=18_000_000,
                special_in_text={"<|eot_id|>": 3},
            ),
            template=None,
        ),
    ),
    "slightly dirty data": lambda path: plan_facts(
        model_facts(path),
        data=with_train(
            report(), duplicates=20, truncated_rows=10, truncated_lost_end=10, odd_roles=5, empty_replies=2,
            unsupervised_rows=7, without_end_token=3, special_in_text={"<|eot_id|>": 4},
        ),
    ),
    "translations and quotations": lambda path: plan_facts(
        model_facts(path),
        data=report(
            with_train(
                report(), answer_in_prompt=3500, answers_in_prompt=10,
                languages={"German": 3000, "English": 1900},
            ).train,
            eval=split(rows=100, languages={"German": 70, "English": 30}),
        ),
    ),
    "a choice whose last word is the usual answer": lambda path: plan_facts(
        model_facts(path), data=with_train(report(), answer_in_prompt=4500, answers_in_prompt=1)
    ),
    "a template of the recipe's choice brings its end": lambda path: plan_facts(
        model_facts(path), wanted=recipe(data__template="llama-3"), data=report(template="llama-3", end_id=7)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_set_ups_raise_no_alarm(name: str, tmp_path: Path) -> None:
    alarms = [finding for finding in run_checks(HEALTHY[name](tmp_path)) if finding.severity != "note"]
    assert alarms == []


def data_case(**changes: Any) -> Callable[[ModelFacts], PlanFacts]:
    return lambda model: plan_facts(model, data=with_train(report(), **changes))


def recipe_case(**patch: Any) -> Callable[[ModelFacts], PlanFacts]:
    return lambda model: plan_facts(model, wanted=recipe(**patch))


# What is wrong, the finding and severity it must give, and what must stand in its patch.
CASES: list[tuple[str, Callable[[ModelFacts], PlanFacts], str, str, dict[str, Any]]] = [
    ("no supervised token", data_case(supervised_tokens=0, tokens=0, token_rows=0, unsupervised_rows=5000),
     "D01", "error", {"method.supervise": "all"}),
    ("a tenth of the rows unsupervised", data_case(unsupervised_rows=500), "D01", "warning",
     {"data.drop": ["empty"]}),
    ("hardly any supervised token", data_case(supervised_tokens=100), "D01", "warning",
     {"method.supervise": "all"}),
    ("answers cut away", lambda model: plan_facts(
        model, data=with_train(report(), truncated_rows=900, truncated_lost_all=900, unsupervised_rows=900,
                               length=report().train.length.model_copy(update={"max": 7000}))),
     "D02", "warning", {"model.max_length": 7000}),
    ("all answers cut away", data_case(supervised_tokens=0, truncated_lost_all=5000, truncated_rows=5000,
                                       unsupervised_rows=5000),
     "D02", "error", {}),
    ("ends cut away", data_case(truncated_rows=600, truncated_lost_end=600), "D03", "warning",
     {"data.drop": ["cut"]}),
    ("longer than the model", lambda model: plan_facts(
        model.model_copy(update={"max_positions": 1024}), wanted=recipe(model__max_length=4096)),
     "D04", "warning", {"model.max_length": 1024}),
    ("double BOS everywhere", data_case(double_bos=5000), "D05", "error", {}),
    ("double BOS in some rows", data_case(double_bos=12), "D05", "warning", {}),
    ("BOS missing", lambda model: plan_facts(
        model, data=with_train(report(template="chatml"), missing_bos=5000)), "D06", "warning", {}),
    ("a published template without BOS", data_case(missing_bos=5000), "D06", "note", {}),
    ("another prompt than in training", data_case(broken_prefix=5000), "D10", "warning", {}),
    ("thinking that is dropped", data_case(thinking_dropped=50), "D10", "note", {"data.reasoning": "each"}),
    ("an end where generation goes on", lambda model: plan_facts(
        model, data=report(end_id=7)), "D08", "warning", {"model.end_tokens": ["<|eot_id|>"]}),
    ("answers in their prompts", data_case(answer_in_prompt=4500, answers_in_prompt=9), "D16", "warning", {}),
    ("held-out rows in another language", lambda model: plan_facts(
        model, data=report(with_train(report(), languages={"English": 4000}).train,
                           eval=split(rows=50, languages={"German": 45, "unsure": 5}))),
     "D16", "warning", {"data.eval": None, "data.eval_fraction": 0.05}),
    ("no end token", data_case(without_end_token=5000), "D07", "error", {}),
    ("no template", lambda model: plan_facts(model, fitting_template="llama-3.1"),
     "D09", "error", {"data.template": "llama-3.1"}),
    ("markers of another model", data_case(foreign_markers={"<|im_start|>": 5000},
                                          marked_rows=5000), "D11", "warning", {}),
    ("special tokens in messages", data_case(special_in_text={"<|eot_id|>": 400}, marked_rows=400),
     "D11", "warning", {"data.drop": ["markers"]}),
    ("odd roles", data_case(odd_roles=400), "D12", "warning", {"data.drop": ["odd"]}),
    ("many duplicates", data_case(duplicates=2000), "D12", "warning", {"data.drop": ["duplicates"]}),
    ("eval rows in train", lambda model: plan_facts(
        model, data=report(eval=split(rows=100, token_rows=100), eval_in_train=30)),
     "D12", "warning", {"data.drop": ["leaked"]}),
    ("template of another family", lambda model: plan_facts(
        model, wanted=recipe(data__template="chatml"), missing_markers=("<|im_start|>", "<|im_end|>")),
     "D13", "error", {"data.template": None}),
    ("skipped rows", lambda model: plan_facts(
        model, wanted=recipe(data__bad_rows="skip"), data=report(bad_rows=300)), "D15", "warning", {}),
    ("unreadable rows", lambda model: plan_facts(model, data=report(bad_rows=3)),
     "D15", "error", {"data.bad_rows": "skip"}),
    ("mixed rows", lambda model: plan_facts(model, data=report(
        formats={"a.jsonl": FormatGuess(format="alpaca", confidence=0.6, reason="60 of 100")})),
     "D15", "warning", {"data.format": "alpaca"}),
    ("99 rows", data_case(rows=99, token_rows=99), "D16", "error", {"accept": ["D16"]}),
    ("999 rows", data_case(rows=999, token_rows=999), "D16", "note", {}),
    ("double end", data_case(double_end=5000), "D17", "warning", {}),
    ("unknown family", lambda model: plan_facts(model.model_copy(
        update={"family": "unknown", "model_type": "newmodel"})), "L08", "note", {}),
    ("a family the fast path leaves out", lambda model: plan_facts(model.model_copy(
        update={"family": "deepseek_v3", "model_type": "deepseek_v3"})), "L08", "note", {}),
    ("an encoder", lambda model: plan_facts(model.model_copy(
        update={"family": "bert", "model_type": "bert"})), "L07", "error", {}),
    ("targets that match nothing", recipe_case(adapter__target_modules=["query", "value"]),
     "L09", "error", {"adapter.target_modules": "all-linear"}),
    ("one target that matches nothing", recipe_case(adapter__target_modules=["q_proj", "value"]),
     "L09", "warning", {"adapter.target_modules": "all-linear"}),
    ("whole modules that are not there", recipe_case(adapter__modules_to_save=["lm_head", "embeddings"]),
     "L09", "error", {"adapter.modules_to_save": ["lm_head"]}),
    ("an adapter on the head", recipe_case(adapter__target_modules=["q_proj", "lm_head"]), "L09", "note", {}),
    ("bf16 on an old GPU", lambda model: plan_facts(
        model, wanted=recipe(training__precision="bf16"), on=machine(gpu(capability=(7, 5)))),
     "L06", "error", {"training.precision": "fp16"}),
    ("fp16 on a CPU", lambda model: plan_facts(
        model, wanted=recipe(training__precision="fp16"), on=machine(ram_gib=256)),
     "L06", "error", {"training.precision": "auto"}),
    ("too small a GPU", lambda model: plan_facts(model, on=machine(gpu(12))), "L11", "error", {}),
    ("a busy GPU", lambda model: plan_facts(model, on=machine(gpu(80, free_gib=9))), "E07", "warning", {}),
    ("old packages", lambda model: plan_facts(
        model, on=machine(gpu(), versions={**TESTED_VERSIONS, "trl": "0.9.0"})), "E01", "warning", {}),
    ("no torch", lambda model: plan_facts(model, on=machine(
        gpu(), versions={k: v for k, v in TESTED_VERSIONS.items() if k != "torch"})), "E01", "error", {}),
    ("nf4 without bitsandbytes", lambda model: plan_facts(
        model, wanted=recipe(model__precision="nf4"), bitsandbytes=False), "E02", "error", {}),
    ("torch without CUDA", lambda model: plan_facts(
        model, on=machine(gpu(), versions={**TESTED_VERSIONS, "torch": "2.13.0+cpu"})), "E02", "error", {}),
    ("full disk", lambda model: plan_facts(model, disk_bytes={"merged": 10**13}),
     "X02", "error", {"training.keep_checkpoints": 1}),
    ("no llama.cpp", lambda model: plan_facts(
        model, wanted=recipe(export__gguf=["q4_k_m"]), llama_cpp=False), "X04", "error", {"export.gguf": []}),
    ("GGUF that cannot be written", lambda model: plan_facts(
        model, wanted=recipe(export__gguf=["f16"]), gguf_refusal="The writer does not know it."),
     "X04", "error", {"export.gguf": []}),
    ("merge onto weights that cannot be restored", lambda model: plan_facts(
        model.model_copy(update={"quantization": "gptq"}), wanted=recipe(export__merged=True)),
     "X04", "error", {"export.merged": False, "export.gguf": []}),
    ("full fine-tuning of a quantised checkpoint", lambda model: plan_facts(
        model.model_copy(update={"quantization": "nf4"}), wanted=recipe(adapter__kind="none")),
     "L07", "error", {"adapter.kind": "lora"}),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0].replace(" ", "-"))
def test_finding(case: tuple[str, Any, str, str, dict[str, Any]], model: ModelFacts) -> None:
    _, build, id, severity, patch = case
    facts = build(model)
    found = [finding for finding in run_checks(facts) if finding.id == id]
    assert [finding.severity for finding in found] == [severity]
    assert found[0].evidence or id == "D09"
    fix = found[0].fix
    assert (fix.patch if fix else {}) == patch
    if patch:
        patched(facts.recipe, patch)  # a patch is machine-applicable: the recipe stays valid


def test_missing_weights_of_a_local_model(tmp_path: Path) -> None:
    facts = plan_facts(model_facts(tmp_path), wanted=recipe(model__name=str(tmp_path)))
    assert [(f.id, f.severity) for f in run_checks(facts)] == [("E08", "error")]


def test_every_listed_check_declares_what_it_yields(model: ModelFacts) -> None:
    """A finding's id is always among those its check declared."""
    for _, build, *_ in CASES:
        facts = build(model)
        for check in CHECKS:
            assert {finding.id for finding in check.run(facts)} <= set(check.ids)


def test_worst_first(model: ModelFacts) -> None:
    facts = plan_facts(
        model, wanted=recipe(adapter__target_modules=["query"]),
        data=with_train(report(), rows=500, token_rows=500, odd_roles=400),
    )  # fmt: skip
    assert [finding.severity for finding in run_checks(facts)] == ["error", "warning", "note"]


def test_tested_ranges_are_the_dependencies() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    declared = {}
    for line in project["project"]["dependencies"]:
        requirement = line.partition(";")[0].strip()
        name = requirement.partition(">")[0].partition("=")[0]
        declared[name] = requirement[len(name) :]
    assert {name: declared[name] for name in TESTED} == TESTED


def test_config_of_the_baseline_is_llama_8b(model: ModelFacts) -> None:
    """The cases above stand on a model of known size."""
    assert LLAMA_8B["hidden_size"] == model.hidden_size and model.parameters.total == 8_030_261_248
