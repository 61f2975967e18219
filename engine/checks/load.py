"""Load: weights, family, adapter targets, compute type, memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..adapted import adapter_parts, moved_to_whole
from ..findings import Finding, Fix
from ..hardware import supports_bf16
from ..models.facts import match_targets
from ..models.families import Unsupported
from ..models.memory import evaluation_bytes_a_token
from .registry import PlanFacts, check

GIB = 2**30
FP8_CAPABILITY = (8, 9)


@check("load", "E08")
def weights_there(facts: PlanFacts) -> Iterator[Finding]:
    """A local directory must hold its weights; a hub model's are downloaded by the worker."""
    missing = facts.model.missing_weight_files
    local = facts.recipe.model.name == "demo" or Path(facts.recipe.model.name).expanduser().is_dir()
    if missing and local:
        yield Finding(
            id="E08",
            severity="error",
            title=f"{facts.model.path} lacks weights.",
            evidence={"missing": missing[:5], "found": facts.model.weight_files[:5]},
            fix=Fix(text="Put the safetensors files there; other formats are not read."),
        )


@check("load", "L08")
def family_known(facts: PlanFacts) -> Iterator[Finding]:
    """What runs on plain transformers, without a descriptor or by its family's nature, and that is said."""
    slow = facts.family.slow
    if facts.family.model_types and slow is not None:
        yield Finding(
            id="L08",
            severity="note",
            title=f"{facts.model.model_type} trains without the fast path: {slow}.",
            evidence={"architecture": facts.model.architecture, "family": facts.family.name},
        )
    if not facts.family.model_types:
        yield Finding(
            id="L08",
            severity="note",
            title="Models that see train without the fast path: the layers are transformers' own."
            if facts.recipe.method.kind == "vision"
            else f"{facts.model.model_type or 'this architecture'} is not a family whet knows: it trains on "
            "plain transformers.",
            evidence={"architecture": facts.model.architecture, "sizes_exact": facts.model.parameters.exact},
        )


@check("load", "L09")
def target_modules(facts: PlanFacts) -> Iterator[Finding]:
    """Names that match no layer: an adapter that trains nothing, or less than was meant."""
    adapter = facts.recipe.adapter
    if adapter.kind == "none" or not facts.model.parameters.exact:
        return
    targets, whole = adapter_parts(adapter)
    found = match_targets(facts.model, targets)
    lost = [name for name, modules in found.items() if not modules]
    names = sorted({module.pattern.rsplit(".", 1)[-1] for module in facts.model.parameters.linear})
    if lost:
        everything = len(lost) == len(found)
        yield Finding(
            id="L09",
            severity="error" if everything else "warning",
            title=f"adapter.target_modules match no layer: {', '.join(lost)}.",
            evidence={"unmatched": lost, "linear_layers": names},
            fix=Fix(
                text="Take all linear layers, or names from the evidence.",
                patch={"adapter.target_modules": "all-linear"},
            ),
        )
    known = {*names, "embed_tokens", "lm_head", "norm"}
    odd = [name for name in whole if name.rsplit(".", 1)[-1] not in known]
    if odd and facts.family.model_types:
        yield Finding(
            id="L09",
            severity="error",
            title=f"adapter.modules_to_save match no module: {', '.join(odd)}.",
            evidence={"unmatched": odd, "known": sorted(known)},
            fix=Fix(
                text="Leave them out.",
                patch={
                    "adapter.modules_to_save": [name for name in adapter.modules_to_save if name not in odd]
                },
            ),
        )


@check("load", "L09")
def trained_whole(facts: PlanFacts) -> Iterator[Finding]:
    """Head and embedding never get an adapter: the loss multiplies with the head's own weight."""
    adapter = facts.recipe.adapter
    moved = moved_to_whole(adapter)
    if moved and adapter.kind != "none":
        yield Finding(
            id="L09",
            severity="note",
            title=f"{' and '.join(moved)}: trained whole (adapter.modules_to_save) instead of by an adapter.",
            evidence={"adapter.target_modules": adapter.target_modules},
        )


@check("load", "L08")
def slow_adapter(facts: PlanFacts) -> Iterator[Finding]:
    """Settings of the adapter that keep parts of a fast family on the plain path, each with its patch."""
    adapter = facts.recipe.adapter
    if adapter.kind == "none" or facts.family.slow is not None:
        return
    slow: list[tuple[str, str, dict[str, object]]] = []
    if adapter.kind == "dora":
        slow.append(("DoRA", "its norm of every weight is computed at each step", {"adapter.kind": "lora"}))
    if adapter.bias != "none":
        slow.append((f"adapter.bias={adapter.bias}", "biases train", {"adapter.bias": "none"}))
    if adapter.dropout and facts.resolved.device == "cuda":
        reason = "steps that are short cannot be replayed as one CUDA graph"
        slow.append((f"adapter.dropout={adapter.dropout:g}", reason, {"adapter.dropout": 0.0}))
    for setting, reason, patch in slow:
        yield Finding(
            id="L08",
            severity="note",
            title=f"{setting} is slower than an adapter without: {reason}.",
            evidence={"family": facts.family.name},
            fix=Fix(text="Leave it out, unless it is what you want to try.", patch=patch),
        )


@check("load", "L05")
def narrow_type(facts: PlanFacts) -> Iterator[Finding]:
    """fp16, with its largest number of 65,504, for a family whose hidden states grow beyond."""
    capability = facts.family.capabilities.get("compute_fp16")
    if facts.resolved.compute_dtype == "fp16" and isinstance(capability, Unsupported):
        wider = "auto" if supports_bf16(facts.machine) else "fp32"
        if wider == "auto" and facts.recipe.training.precision == "auto":
            wider = "bf16"
        yield Finding(
            id="L05",
            severity="warning",
            title=f"{facts.model.family} is to compute in fp16: {capability.reason}.",
            evidence={"compute": "fp16", "largest": 65504, "family": facts.family.name},
            fix=Fix(
                text="Compute in bf16." if wider != "fp32" else "Compute in fp32; this GPU has no bf16.",
                patch={"training.precision": wider},
            ),
        )


@check("load", "L06", "L07")
def compute_type(facts: PlanFacts) -> Iterator[Finding]:
    """A compute type the hardware lacks, and what the family does not do."""
    asked = facts.recipe.training.precision
    if asked == "bf16" and facts.machine.gpus and not supports_bf16(facts.machine):
        gpu = facts.machine.gpus[0]
        yield Finding(
            id="L06",
            severity="error",
            title=f"training.precision=bf16, but {gpu.name} has no bf16 (capability below 8.0).",
            evidence={"gpu": gpu.name, "capability": list(gpu.capability)},
            fix=Fix(text="Compute in fp16.", patch={"training.precision": "fp16"}),
        )
    if asked == "fp16" and not facts.machine.gpus:
        yield Finding(
            id="L06",
            severity="error",
            title="training.precision=fp16 needs a GPU; none is seen.",
            evidence={"gpus": 0, "note": facts.machine.gpu_note},
            fix=Fix(text="Let the hardware decide.", patch={"training.precision": "auto"}),
        )
    if facts.recipe.adapter.kind == "none" and facts.model.quantization is not None:
        yield Finding(
            id="L07",
            severity="error",
            title=f"adapter.kind=none trains all weights, and {facts.model.name} holds them quantised "
            f"({facts.model.quantization}).",
            evidence={"quantization": facts.model.quantization},
            fix=Fix(text="Train an adapter, or name the 16-bit original.", patch={"adapter.kind": "lora"}),
        )
    method = facts.recipe.method
    asked_for = [method.kind, facts.resolved.base_precision, facts.recipe.adapter.kind]
    for name in [*asked_for, "packing"] if method.packing else asked_for:
        capability = facts.family.capabilities.get(name)
        if isinstance(capability, Unsupported):
            yield Finding(
                id="L07",
                severity="error",
                title=f"{name} is not possible with {facts.model.family}: {capability.reason}.",
                evidence={"family": facts.model.family},
            )


@check("load", "L07")
def reduced_weights(facts: PlanFacts) -> Iterator[Finding]:
    """FP8 without units for it, and embedding or head held in fewer bits than they can be."""
    gpus, resolved = facts.machine.gpus, facts.resolved
    slow = not gpus or min(gpu.capability for gpu in gpus) < FP8_CAPABILITY
    if slow and (resolved.base_precision == "fp8" or facts.recipe.model.products == "fp8"):
        where = f"{gpus[0].name} (capability {'.'.join(map(str, gpus[0].capability))})" if gpus else "a CPU"
        yield Finding(
            id="L07",
            severity="note",
            title=f"{where} has no FP8 units (capability 8.9 and up): weights are expanded before they are "
            "multiplied, which saves memory and no time.",
            evidence={"base_precision": resolved.base_precision, "products": facts.recipe.model.products},
            fix=Fix(text="Hold the base as the compute type.", patch={"model.precision": "auto"})
            if resolved.base_precision == "fp8"
            else None,
        )
    held = {"embed_tokens": resolved.embedding_precision, "lm_head": resolved.head_precision}
    settings = {"embed_tokens": "model.embedding_precision", "lm_head": "model.head_precision"}
    reduced = [name for name, precision in held.items() if precision != "16bit"]
    if not reduced:
        return
    reason = None
    if facts.model.tied and held["embed_tokens"] != held["lm_head"]:
        reason = "embedding and head are tied: one table cannot be held in two ways"
    trained = [name for name in adapter_parts(facts.recipe.adapter)[1] if name in held]
    if trained and (facts.model.tied or set(trained) & set(reduced)):
        reason = f"{' and '.join(trained)} trains" + (", and both are tied" if facts.model.tied else "")
    if reason is not None:
        yield Finding(
            id="L07",
            severity="error",
            title=f"{' and '.join(reduced)} cannot be held in fewer bits: {reason}.",
            evidence={settings[name].removeprefix("model."): held[name] for name in held},
            fix=Fix(text="Hold both in 16 bits.", patch=dict.fromkeys(settings.values(), "16bit")),
        )


@check("load", "L11", "E07")
def fits(facts: PlanFacts) -> Iterator[Finding]:
    """The step's peak against the device's memory; alternatives that fit come as patches."""
    memory = facts.memory
    evidence = {
        "needed_gib": round(memory.needed / GIB, 2),
        "capacity_gib": round(memory.capacity / GIB, 2),
        "free_gib": round(memory.available / GIB, 2),
        "components_gib": {name: round(size / GIB, 2) for name, size in memory.components.items()},
    }
    if memory.needed > memory.capacity:
        fitting = [one for one in facts.alternatives if one.memory.fits]
        evidence["alternatives"] = [
            {"patch": one.patch, "needed_gib": round(one.memory.needed / GIB, 2), "fits": one.memory.fits}
            for one in facts.alternatives
        ]
        evidence["fitting_gpus"] = facts.fitting_gpus
        together = (
            f", or {facts.fitting_gpus} such GPUs, which would hold it in shares"
            if facts.fitting_gpus
            else ""
        )
        fix = (
            Fix(text=fitting[0].text, patch=fitting[0].patch)
            if fitting
            else Fix(
                text=f"Use a smaller model or a larger machine{together}: no setting makes this one fit."
            )
        )
        where = "GPU" if memory.where == "gpu" else "machine"
        yield Finding(
            id="L11",
            severity="error",
            title=f"Training needs about {memory.needed / GIB:.1f} GiB, the {where} has "
            f"{memory.capacity / GIB:.1f}.",
            evidence=evidence,
            fix=fix,
        )
    elif memory.needed > memory.available:
        yield Finding(
            id="E07",
            severity="warning",
            title=f"Training needs about {memory.needed / GIB:.1f} GiB; other programs leave "
            f"{memory.available / GIB:.1f}.",
            evidence=evidence,
            fix=Fix(text="Wait for them or stop them; a whet run on the same GPU waits by itself."),
        )


@check("load", "T08")
def fits_evaluation(facts: PlanFacts) -> Iterator[Finding]:
    """Held-out batches off the fast path are padded and go through whole; training rows may be fewer."""
    evaluated, resolved = facts.report.eval, facts.resolved
    packed = resolved.schedule is not None and not resolved.answers  # prompts are padded to be answered
    if packed or evaluated is None:
        return
    asked, memory = facts.recipe.eval.batch_size, facts.memory
    longest = min(facts.resolved.max_length, max(evaluated.length.max, 1))
    a_row = longest * evaluation_bytes_a_token(facts.model, facts.recipe.adapter, facts.resolved)
    staying = ("base", "adapter", "optimizer", "exchange", "runtime")
    held = sum(memory.components.get(name, 0) for name in staying)
    if held + asked * a_row <= memory.capacity or memory.needed > memory.capacity:
        return
    fitting = max(1, int((memory.capacity - held) / (1.05 * a_row)))
    yield Finding(
        id="T08",
        severity="warning",
        title=f"Evaluating {asked} rows at once needs about {(held + asked * a_row) / GIB:.1f} GiB, there "
        f"are {memory.capacity / GIB:.1f}: training would run out of memory at its first evaluation.",
        evidence={"eval_batch_size": asked, "longest_row": longest, "gib_a_row": round(a_row / GIB, 2)},
        fix=Fix(text="Evaluate fewer rows at once.", patch={"eval.batch_size": min(2, fitting)}),
    )
