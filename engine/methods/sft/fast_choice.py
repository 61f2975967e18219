"""Whether a trainer's steps can run on the fast path that its model is on, and why not."""

from __future__ import annotations

from typing import Any

import torch
import trl

from ...models.fast_path import DecoderProgram


def plain_reason(trainer: Any, program: DecoderProgram) -> str | None:
    """Why a step goes through the model's forward pass and TRL's loss; None where it need not.

    The model's decoder still runs packed then, where it can; what is lost is the fused loss, and rows of
    several micro-batches going through together.
    """
    args: Any = trainer.args
    config: Any = program.decoder.config
    if trainer.compute_loss_func is not None:
        return "compute_loss_func is a loss of its own"
    if type(trainer).compute_loss is not trl.SFTTrainer.compute_loss:
        return f"{type(trainer).__name__} has a compute_loss of its own"
    if args.loss_type != "nll":
        return f"loss_type={args.loss_type!r}"
    if args.label_smoothing_factor:
        return "labels are smoothed"
    if args.use_liger_kernel:
        return "use_liger_kernel puts other kernels in place"
    if args.world_size > 1 and not trainer.sums_gradients:
        return "several processes share a step"
    if config.to_dict().get("output_router_logits"):
        return "the router's own loss is added"
    return mixed_reason(args, program.dtype)


def mixed_reason(args: Any, computed: torch.dtype) -> str | None:
    """Why autocast is wanted on a model that computes in fp32; 16-bit models compute as they were loaded."""
    if computed == torch.float32 and (args.bf16 or args.fp16):
        return f"weights in fp32 are to compute in {'bf16' if args.bf16 else 'fp16'}"
    return None
