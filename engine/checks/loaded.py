"""Checks of a model that was just loaded, adapter and all, before its first step.

Light: the facts are gathered by the worker (:mod:`whet.engine.methods.sft.first_look`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import WhetError
from ..findings import Finding, Fix
from ..recipe import Recipe
from .registry import Check, check, worst_first
from .weights import Files, look_at

LAYER = re.compile(r"(^|\.)(layers|h|blocks)\.\d+\.")


@dataclass(frozen=True)
class LoadedFacts:
    """What a loaded model says of itself.

    Args:
        recipe: of the run.
        compute: type of the products, ``bf16``, ``fp16`` or ``fp32``.
        missing: weights the model has and the files do not; they hold random numbers.
        unexpected: weights the files hold and the model has no place for.
        tied: config.json says that the head is the embedding.
        ends_shared: head and embedding are one tensor; None where that cannot be told.
        vocabulary: rows of the embedding.
        tokenizer_rows: tokens of the tokenizer that was loaded.
        largest_id: of the training rows.
        trainable: parameters with a gradient.
        overflow: first module whose output left the finite range on one batch; None: none did, or not tried.
        kernel_failure: what a small kernel said when it was launched; None: it ran, or was not tried.
        files: what the planner could not look at, because the weights were not there yet.
    """

    recipe: Recipe
    compute: str
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    tied: bool = False
    ends_shared: bool | None = None
    vocabulary: int = 0
    tokenizer_rows: int = 0
    largest_id: int = -1
    trainable: int = 0
    overflow: str | None = None
    kernel_failure: str | None = None
    files: Files | None = None


@check("load", "L01", "L03", "L04", "E08")
def downloaded_files(facts: LoadedFacts) -> Iterator[Finding]:
    """What the plan would have said, had the weights been there."""
    if facts.files is not None:
        yield from look_at(facts.files)


@check("load", "E08")
def names_match(facts: LoadedFacts) -> Iterator[Finding]:
    """Weights without a place and places without weights, by name."""
    if facts.missing:
        yield Finding(
            id="E08",
            severity="error",
            title=f"{len(facts.missing)} of the model's weights are not in its files and hold random "
            f"numbers, e.g. {facts.missing[0]}.",
            evidence={"missing": list(facts.missing[:10]), "unexpected": list(facts.unexpected[:10])},
            fix=Fix(
                text="Download the model again, whole; or update transformers, when the files are newer than "
                "its class of this model."
            ),
        )
    elif facts.unexpected:
        in_layers = any(LAYER.search(name) for name in facts.unexpected)
        yield Finding(
            id="E08",
            severity="warning" if in_layers else "note",
            title=f"{len(facts.unexpected)} weights of the files have no place in the model, e.g. "
            f"{facts.unexpected[0]}.",
            evidence={"unexpected": list(facts.unexpected[:10]), "count": len(facts.unexpected)},
            fix=Fix(
                text="Mend config.json (num_hidden_layers, architectures), which describes a smaller model; "
                "or update transformers."
            )
            if in_layers
            else None,
        )


@check("load", "L02")
def ids_fit(facts: LoadedFacts) -> Iterator[Finding]:
    """The rows' ids against the embedding as it was loaded."""
    if facts.vocabulary and facts.largest_id >= facts.vocabulary:
        yield Finding(
            id="L02",
            severity="error",
            title=f"The rows hold token id {facts.largest_id}, the embedding has {facts.vocabulary} rows.",
            evidence={"largest_id": facts.largest_id, "tokenizer": facts.tokenizer_rows},
            fix=Fix(text="Put the model's own tokenizer beside it, or resize the embedding."),
        )


@check("load", "L04")
def ends_tied(facts: LoadedFacts) -> Iterator[Finding]:
    """The flag says tied, and yet there are two tensors: what trains in one is not in the other."""
    if facts.tied and facts.ends_shared is False:
        yield Finding(
            id="L04",
            severity="error",
            title="config.json ties the head to the embedding, but in memory they are two: what is trained "
            "in one is lost for whoever loads the model by the flag.",
            evidence={"tie_word_embeddings": True, "shared": False},
            fix=Fix(
                text="Train both as one (ensure_weight_tying=True in PEFT's LoraConfig), or untie the base: "
                '"tie_word_embeddings": false in config.json, with the head saved beside the embedding.'
            ),
        )


@check("load", "L05")
def overflows(facts: LoadedFacts) -> Iterator[Finding]:
    """One batch in the compute type was tried: its numbers left the range."""
    if facts.overflow is not None:
        fp16 = facts.compute == "fp16"
        yield Finding(
            id="L05",
            severity="error",
            title=f"On one batch in {facts.compute} the output of {facts.overflow} is not finite.",
            evidence={"module": facts.overflow, "compute": facts.compute, "largest": 65504 if fp16 else None},
            fix=Fix(text="Compute in fp32, or in bf16 on a GPU that has it.",
                    patch={"training.precision": "fp32"}),
        )  # fmt: skip


@check("load", "L07")
def kernels_run(facts: LoadedFacts) -> Iterator[Finding]:
    """A small kernel was launched on this GPU."""
    if facts.kernel_failure is not None:
        yield Finding(
            id="L07",
            severity="error",
            title=f"whet's kernels do not run on this GPU: {facts.kernel_failure}",
            evidence={"said": facts.kernel_failure},
            fix=Fix(
                text="Run the plain-torch references instead, which are slower; `whet doctor --kernels` says "
                "more.",
                command="WHET_KERNELS=reference whet resume last",
            ),
        )


@check("load", "L09")
def something_trains(facts: LoadedFacts) -> Iterator[Finding]:
    """Parameters with a gradient."""
    if facts.trainable == 0:
        yield Finding(
            id="L09",
            severity="error",
            title="No parameter of the model trains.",
            evidence={"trainable": 0, "adapter": facts.recipe.adapter.kind},
            fix=Fix(text="Adapt all linear layers.", patch={"adapter.target_modules": "all-linear"}),
        )


LOADED: tuple[Check[LoadedFacts], ...] = (
    downloaded_files,
    names_match,
    ids_fit,
    ends_tied,
    overflows,
    kernels_run,
    something_trains,
)


def look_at_loaded(facts: LoadedFacts) -> list[Finding]:
    """All findings about a loaded model, worst first."""
    return worst_first(finding for one in LOADED for finding in one.run(facts))


def refuse(findings: list[Finding], recipe: Recipe) -> None:
    """End the run before its first step where an error is not accepted.

    Raises:
        WhetError: ``load.blocked``, naming the ids.
    """
    blocking = [f for f in findings if f.severity == "error" and f.id not in recipe.accept]
    if blocking:
        first = blocking[0]
        raise WhetError(
            "load.blocked",
            f"{', '.join(sorted({f.id for f in blocking}))}: {first.title}",
            (first.fix.text if first.fix else "") + f" Or accept it: accept=[{first.id}].",
        )
