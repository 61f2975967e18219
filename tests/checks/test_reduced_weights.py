"""Weights in fewer bits: what the plan resolves, what L07 says, and what a recipe refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.plan_inputs import LLAMA_8B, gpu, machine, model_facts, plan_facts, recipe

from whet.engine.checks import load
from whet.engine.errors import WhetError
from whet.engine.findings import Finding

TIED = {**LLAMA_8B, "tie_word_embeddings": True}


def findings(
    path: Path, config: dict[str, Any], *, capability: tuple[int, int] = (9, 0), **patch: Any
) -> list[Finding]:
    facts = plan_facts(
        model_facts(path, config), wanted=recipe(**patch), on=machine(gpu(capability=capability))
    )
    return list(load.reduced_weights.run(facts))


def resolved_ends(path: Path, config: dict[str, Any], **patch: Any) -> tuple[str, str]:
    resolved = plan_facts(model_facts(path, config), wanted=recipe(**patch)).resolved
    return resolved.embedding_precision, resolved.head_precision


def test_healthy_choices_say_nothing(tmp_path: Path) -> None:
    ends: dict[str, Any] = {"model__embedding_precision": "nf4", "model__head_precision": "int8"}
    assert not findings(tmp_path / "a", LLAMA_8B, model__precision="fp8", **ends)
    assert not findings(tmp_path / "b", TIED, model__head_precision="nf4")


@pytest.mark.parametrize("capability", [(7, 5), (8, 6)])
def test_fp8_without_units_is_said(tmp_path: Path, capability: tuple[int, int]) -> None:
    (one,) = findings(tmp_path, LLAMA_8B, capability=capability, model__precision="fp8")
    assert (one.id, one.severity) == ("L07", "note")
    assert ".".join(map(str, capability)) in one.title
    assert one.fix is not None and one.fix.patch == {"model.precision": "auto"}


def test_fp8_on_a_cpu_is_said(tmp_path: Path) -> None:
    facts = plan_facts(model_facts(tmp_path), wanted=recipe(model__precision="fp8"), on=machine())
    (one,) = load.reduced_weights.run(facts)
    assert one.severity == "note" and "CPU" in one.title


@pytest.mark.parametrize(
    ("config", "patch", "ends"),
    [
        (LLAMA_8B, {}, ("16bit", "16bit")),
        (LLAMA_8B, {"model__head_precision": "nf4"}, ("16bit", "nf4")),
        (TIED, {"model__head_precision": "nf4"}, ("nf4", "nf4")),
        (TIED, {"model__embedding_precision": "int8"}, ("int8", "int8")),
        (TIED, {"model__embedding_precision": "int8", "model__head_precision": "16bit"}, ("int8", "16bit")),
    ],
)
def test_tied_ends_are_one_table(
    tmp_path: Path, config: dict[str, Any], patch: dict[str, str], ends: tuple[str, str]
) -> None:
    assert resolved_ends(tmp_path, config, **patch) == ends


@pytest.mark.parametrize(
    ("patch", "said"),
    [
        ({"model__embedding_precision": "int8", "model__head_precision": "nf4"}, "two ways"),
        ({"model__embedding_precision": "int8", "adapter__modules_to_save": ["lm_head"]}, "trains"),
    ],
)
def test_tied_ends_that_cannot_be_held_so(tmp_path: Path, patch: dict[str, Any], said: str) -> None:
    (one,) = findings(tmp_path, TIED, **patch)
    assert (one.id, one.severity) == ("L07", "error") and said in one.title
    assert one.fix is not None and set(one.fix.patch.values()) == {"16bit"}


@pytest.mark.parametrize(
    ("patch", "named"),
    [
        ({"model__precision": "fp8", "adapter__kind": "none"}, "fp8"),
        ({"model__precision": "fp8", "adapter__kind": "dora"}, "dora"),
        ({"model__precision": "int8", "model__products": "fp8"}, "model.products"),
        ({"model__head_precision": "nf4", "adapter__kind": "none"}, "model.head_precision"),
        ({"model__head_precision": "nf4", "adapter__modules_to_save": ["lm_head"]}, "lm_head"),
        (
            {"model__embedding_precision": "int8", "adapter__target_modules": ["q_proj", "embed_tokens"]},
            "embed_tokens",
        ),
    ],
)
def test_recipes_that_contradict_themselves(patch: dict[str, Any], named: str) -> None:
    with pytest.raises(WhetError) as caught:
        recipe(**patch)
    assert named in caught.value.message
