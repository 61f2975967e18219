"""Head and cross-entropy on this GPU: which launch and which chunk are fastest, and what the parts cost.

PYTHONPATH=src python -P benchmarks/head_probe.py
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch

from whet.kernels.contrastive import contrastive_loss
from whet.kernels.linear_cross_entropy import linear_cross_entropy
from whet.kernels.selective_log_softmax import selective_log_softmax
from whet.kernels.softmax_triton import cross_entropy_rows
from whet.kernels.speed import milliseconds
from whet.kernels.vocabulary_head import add_product, chunk_rows, fill_logits, logits_buffer

DEVICE = torch.device("cuda")
ROWS = 8192
HEADS = {"8b": (4096, 128_256), "0.6b": (1024, 151_936), "odd": (1024, 151_937)}


def timed(call: Callable[[], object]) -> float:
    return milliseconds([call], DEVICE, budget=0.3)


def head(width: int, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    hidden = torch.randn(ROWS, width, device=DEVICE, dtype=torch.bfloat16)
    weight = (torch.randn(vocabulary, width, device=DEVICE) / width**0.5).bfloat16()
    return hidden, weight, torch.randint(vocabulary, (ROWS,), device=DEVICE)


def accumulation() -> None:
    """Whether this torch adds a 16-bit product to an fp32 sum in place."""
    a, b = (torch.randn(512, 512, device=DEVICE).bfloat16() for _ in range(2))
    total = torch.ones(512, 512, device=DEVICE)
    add_product(total, a.T, b, 0.5)
    error = (total - (1 + 0.5 * a.double().T @ b.double())).abs().max().item()
    print(f"torch {torch.__version__}: fp32 sum of bf16 products, largest error {error:.2e}")


def kernel(name: str, vocabulary: int) -> None:
    """Bandwidth (one read, one write) of the loss kernel by tile and warps, beside a copy of its bytes."""
    rows = chunk_rows(ROWS, vocabulary, torch.bfloat16)
    logits = logits_buffer(rows, vocabulary, torch.empty(0, device=DEVICE, dtype=torch.bfloat16))
    labels = torch.randint(vocabulary, (rows,), device=DEVICE)
    losses, lses, entropies = (torch.empty(rows, device=DEVICE) for _ in range(3))
    hits = torch.empty(rows, device=DEVICE, dtype=torch.int32)
    moved = 2 * logits.numel() * 2
    other = torch.empty_like(logits)
    copy = timed(lambda: other.copy_(logits))
    print(f"{name}: {rows} rows of {vocabulary}, copy {moved / copy / 1e6:.0f} GB/s")
    width = -(-vocabulary // 16) * 16
    for block, warps in itertools.product((2048, 4096, 8192, 16384), (4, 8, 16, 32)):
        if not 8 <= block // (32 * warps) <= 64:
            continue
        for capped, statistics in ((False, False), (False, True), (True, True)):
            logits.normal_()

            def launch() -> None:
                cross_entropy_rows[(rows,)](
                    logits, logits.stride(0), labels, losses, lses, entropies, hits,
                    vocabulary, width, -100, 1 / 30.0 if capped else 1.0, 30.0, 0.0, 0.0, 1.0,  # noqa: B023
                    CAPPED=capped, SMOOTHED=False, STATISTICS=statistics, GRADIENT=True,  # noqa: B023
                    BLOCK=block, GROUP=8, num_warps=warps,  # noqa: B023
                )  # fmt: skip

            rate = moved / timed(launch) / 1e6
            options = f"{'softcap ' if capped else ''}{'statistics' if statistics else ''}"
            print(f"  block {block:6} warps {warps:2} {rate:6.0f} GB/s {options}", flush=True)


def chunks(name: str, width: int, vocabulary: int) -> None:
    """Milliseconds and peak memory of loss and gradient by chunk; the share of the two products."""
    hidden, weight, labels = head(width, vocabulary)
    hidden.requires_grad_()
    flops = 4 * ROWS * width * vocabulary
    for chunk in (512, 1024, 2048, 4096, 8192, None):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        linear_cross_entropy(hidden, weight, labels, chunk=chunk)
        peak = (torch.cuda.max_memory_allocated() - before) / 2**20

        def both(chunk: int | None = chunk) -> torch.Tensor:
            return torch.autograd.grad(linear_cross_entropy(hidden, weight, labels, chunk=chunk), hidden)[0]

        ms = timed(both)
        print(
            f"{name}: chunk {chunk}: {ms:.2f} ms, {flops / ms / 1e9:.0f} TFLOP/s, +{peak:.0f} MiB", flush=True
        )
    rows = chunk_rows(ROWS, vocabulary, torch.bfloat16)
    part = hidden.detach()[:rows]
    out, gradient = logits_buffer(rows, vocabulary, part), torch.empty_like(part)
    to_logits = timed(lambda: fill_logits(part, weight, None, out))
    to_hidden = timed(lambda: torch.addmm(gradient, out, weight, beta=0, out=gradient))
    once = 2 * rows * width * vocabulary / 1e9
    print(f"  {rows} rows: logits {once / to_logits:.0f}, hidden gradient {once / to_hidden:.0f} TFLOP/s")
    with torch.no_grad():
        print(f"  loss alone {timed(lambda: linear_cross_entropy(hidden, weight, labels)):.2f} ms")

    def log_probabilities() -> torch.Tensor:
        return torch.autograd.grad(selective_log_softmax(hidden, weight, labels).sum(), hidden)[0]

    print(f"  log-probabilities, both passes {timed(log_probabilities):.2f} ms", flush=True)


def contrast() -> None:
    for batch, candidates, width in ((64, 128, 384), (1024, 2048, 384), (8192, 16384, 1024)):
        a, c = (torch.randn(n, width, device=DEVICE).bfloat16().requires_grad_() for n in (batch, candidates))

        def both(a: torch.Tensor = a, c: torch.Tensor = c) -> torch.Tensor:
            return torch.autograd.grad(contrastive_loss(a, c), [a, c])[0]

        print(f"contrastive {batch} x {candidates}, {width} wide: {timed(both):.3f} ms", flush=True)


if __name__ == "__main__":
    accumulation()
    for name, (width, vocabulary) in HEADS.items():
        kernel(name, vocabulary)
        chunks(name, width, vocabulary)
    contrast()
