"""Which implementation of each operation runs on a device, and why. Imports torch."""

from __future__ import annotations

import os

import torch

from whet.kernels.attention_choice import (
    AttentionSizes,
    choose_attention,
    choose_without_kernels,
    nvidia_capability,
)
from whet.kernels.attention_reference import AttentionOptions
from whet.kernels.registry import SPECS
from whet.kernels.spec import KernelSpec

from .kernel_report import BackendChoice

OLDEST = 70  # compute capability x 10 that Triton compiles for
ROWS: dict[str, tuple[AttentionOptions, int, int, int]] = {
    "equal rows of 2048": (AttentionOptions(), 16384, 8, 2048),
    "mixed lengths": (AttentionOptions(), 11200, 20, 1200),
    "short chats": (AttentionOptions(), 4096, 100, 120),
    "window": (AttentionOptions(window=1024), 16384, 8, 2048),
    "softcap": (AttentionOptions(softcap=50.0), 16384, 8, 2048),
}
"""What attention is asked for: options, tokens, documents, longest document."""


def compute_type(device: torch.device) -> torch.dtype:
    """What training on the device computes in: bf16, fp16 on NVIDIA GPUs before 8.0, fp32 on the CPU."""
    if device.type != "cuda":
        return torch.float32
    capability = nvidia_capability(device)
    return torch.float16 if capability is not None and capability < (8, 0) else torch.bfloat16


def why_reference(device: torch.device) -> str:
    """Why no Triton kernel runs on the device; empty where they do."""
    if os.environ.get("WHET_KERNELS", "triton") != "triton":
        return f"WHET_KERNELS={os.environ['WHET_KERNELS']}"
    if device.type != "cuda":
        intel = torch.xpu.is_available()
        return "no GPU that torch reaches as cuda" + (" (an Intel GPU is there)" if intel else "")
    capability = nvidia_capability(device)
    if capability is not None and 10 * capability[0] + capability[1] < OLDEST:
        return f"compute capability {capability[0]}.{capability[1]} is older than Triton's oldest, 7.0"
    return ""


def runs_triton(device: torch.device) -> bool:
    """Whether kernels run on the device."""
    return not why_reference(device)


def backends(device: torch.device) -> list[BackendChoice]:
    """One entry for each operation; attention has one for each kind of request."""
    reason = why_reference(device)
    others = [spec for spec in SPECS.values() if spec.name != "attention"]
    if reason:
        plain = [BackendChoice(operation=spec.name, backend="reference", reason=reason) for spec in others]
        return plain + _attention(device)
    return [_choice(spec, device) for spec in others] + _attention(device)


def kernel_notes(device: torch.device) -> list[str]:
    """What a user of this device should know."""
    notes = []
    if device.type == "cuda" and torch.version.hip is not None:
        notes.append(f"An AMD GPU, through Triton's HIP back end (ROCm {torch.version.hip}): less tried.")
    if compute_type(device) == torch.float16:
        notes.append("Compute capability before 8.0 has no bf16: training computes in fp16, loss scaled.")
    if device.type == "cpu":
        notes.append("On the CPU attention runs torch's own kernel, all else its plain-torch reference.")
    return notes


def _choice(spec: KernelSpec, device: torch.device) -> BackendChoice:
    capability = nvidia_capability(device)
    least = min((wanted.least_capability for wanted in spec.compilations), default=0)
    if capability is not None and 10 * capability[0] + capability[1] < least and least > 75:
        reason = f"its kernels need compute capability {least / 10}"
        return BackendChoice(operation=spec.name, backend="reference", reason=reason)
    maker = "AMD GPU" if capability is None else f"capability {capability[0]}.{capability[1]}"
    return BackendChoice(operation=spec.name, backend="triton", reason=maker)


def _attention(device: torch.device) -> list[BackendChoice]:
    dtype, capability = compute_type(device), nvidia_capability(device)
    if runs_triton(device):
        chosen = {
            kind: choose_attention(capability, options, AttentionSizes(dtype, 32, 8, 128, *sizes))
            for kind, (options, *sizes) in ROWS.items()
        }
    else:
        chosen = {
            kind: choose_without_kernels(device, dtype, longest, options)
            for kind, (options, _, _, longest) in ROWS.items()
        }
    return [
        BackendChoice(operation=f"attention, {kind}", backend=choice.name, reason=choice.reason)
        for kind, choice in chosen.items()
    ]
