"""Where numbers first went wrong: the step runs again without gradients, each output is looked at.

Not a number once, not a number ever after: the first module in the order of computation is the one to name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ...checks.live.curve import USUAL_RATE
from ...findings import Finding, Fix
from ...models.fast_path import DecoderProgram, causal_model
from ...parallel.collectives import first_told
from ...parallel.fsdp import is_sharded, whole
from ..random_numbers import preserved_rng
from .collation import count_supervised

if TYPE_CHECKING:
    from .trainer import SupervisedTrainer


def not_finite(trainer: SupervisedTrainer, what: str, value: float, batches: Sequence[Any]) -> Finding:
    """T01, with the module named. Of several processes each looks through its own rows, and all come here.

    Args:
        trainer: whose step it was; its weights are as they were before the step.
        what: ``loss`` or ``gradient norm``.
        value: its value.
        batches: the step's micro-batches as the collator made them, or ``{"rows": ...}`` on the fast path.
    """
    with preserved_rng(trainer.args.device), torch.no_grad():
        module = first_told(first_bad(trainer, batches) or "") or None
    model: Any = trainer.model
    broken = [name for name, p in model.named_parameters() if not _finite(p)][:5]
    where = f"it began in {module}" if module else "the forward pass is finite, the backward pass is not"
    if module is None:
        gradient = _first_bad_gradient(model)
        where += f", first at {gradient}" if gradient else ""
    step = trainer.state.global_step + 1
    return Finding(
        id="T01",
        severity="error",
        title=f"The {what} of step {step} is {value}; {where}.",
        evidence={
            "step": step,
            what.replace(" ", "_"): str(value),
            "module": module or "backward pass",
            "broken_weights": broken,
            "learning_rate": trainer.args.learning_rate,
        },
        fix=way_out(trainer, broken),
    )


def way_out(trainer: SupervisedTrainer, broken: Sequence[str] = ()) -> Fix:
    """What to change; ``broken`` names weights that were not finite before the step."""
    if broken and trainer.state.global_step == 0:
        return Fix(
            text=f"{broken[0]} holds numbers that are not finite, before any step: training.learning_rate is "
            "not the cause. Download the model again."
        )
    if trainer.accelerator.scaler is not None:
        return Fix(text="Compute in fp32, or in bf16 on a GPU that has it.",
                   patch={"training.precision": "fp32"})  # fmt: skip
    rate = float(f"{min(trainer.args.learning_rate / 10, USUAL_RATE):.2g}")
    patch: dict[str, Any] = {"training.learning_rate": rate}
    if trainer.args.max_grad_norm in (0.0, float("inf")):
        patch["training.max_grad_norm"] = 1.0
    text = f"Lower training.learning_rate (now {trainer.args.learning_rate:g}), and warm up longer."
    return Fix(text=text, patch=patch)


def first_bad(trainer: SupervisedTrainer, batches: Sequence[Any]) -> str | None:
    """Path of the first module whose output is not finite; None where all are."""
    first: str | None = None
    together = is_sharded(causal_model(trainer.model))  # then all processes go through as many batches
    for batch in batches:
        if "rows" in batch and trainer.fast is not None:
            packed = (part.to(trainer.args.device) for part in trainer.fast.batches(batch["rows"]))
            found = next((name for part in packed for name in _walk(trainer.fast.program, part)), None)
        else:
            found = _hooked(trainer, batch)
        first = first or found
        if first is not None and not together:
            break
    return first


def _walk(program: DecoderProgram, batch: Any) -> Iterator[str]:
    """Names of the fast path's parts whose output is not finite, in order."""
    program.refresh()
    names = {module: name for name, module in program.decoder.named_modules()}
    root = "model."
    x_TD = program.embed(batch.packed.input_ids_T)
    if not _finite(x_TD):
        yield f"{root}embed_tokens"
    delta_TD: torch.Tensor | None = None
    for number, (layer, module) in enumerate(zip(program.layers, program.decoder.layers, strict=True)):  # type: ignore[arg-type]
        prefix = root + names.get(module, f"layers.{number}")
        table = None if layer.rope is None else program.table(layer.rope, batch.packed.longest)
        x_TD, delta_TD = layer.attention(x_TD, delta_TD, batch.packed, table, False)
        if not (_finite(x_TD) and (delta_TD is None or _finite(delta_TD))):
            yield f"{prefix}.self_attn"
        x_TD, delta_TD = layer.mlp(x_TD, delta_TD, False, program.chunk)
        if not (_finite(x_TD) and (delta_TD is None or _finite(delta_TD))):
            yield f"{prefix}.mlp"
    if not _finite(program.hidden_states(batch.packed)):
        yield f"{root}norm"
    if not _finite(program.loss(batch.packed, batch.places_S, batch.labels_S)):
        yield "lm_head"


def _hooked(trainer: SupervisedTrainer, batch: Any) -> str | None:
    """By hooks on every module: children report before the module they are in."""
    seen: list[str] = []
    causal = causal_model(trainer.model)

    def watch(name: str) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            if not seen and any(not _finite(part) for part in _tensors(output)):
                seen.append(name)

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in causal.named_modules() if name]
    try:
        inputs = trainer._prepare_inputs(dict(batch))
        with trainer.own_numbers(), trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(
                trainer.model, inputs, num_items_in_batch=count_supervised(inputs["labels"])
            )
    finally:
        for handle in handles:
            handle.remove()
    # TRL's loss multiplies with the head's weight itself, so the head is no call that a hook sees.
    return seen[0] if seen else None if _finite(loss) else "lm_head"


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, dict):
        for part in output.values():
            yield from _tensors(part)
    elif isinstance(output, tuple | list):
        for part in output:
            yield from _tensors(part)


def _finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(whole(torch.isfinite(tensor).all()))


def _first_bad_gradient(model: Any) -> str | None:
    """The parameter nearest to the loss whose gradient is not finite."""
    named = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
    return next((name for name, grad in reversed(named) if not _finite(grad)), None)
