"""Every attention back end on this GPU: errors against float32, milliseconds and TFLOP/s, one table.

    PYTHONPATH=src python benchmarks/attention_probe.py            # all back ends, the main cases
    PYTHONPATH=src python benchmarks/attention_probe.py --cases all
    PYTHONPATH=src python benchmarks/attention_probe.py --sweep    # tile sizes of the Triton kernels

Each back end runs in a process of its own: a fault on the device ends that process, and the table goes on.
Times are of a replayed CUDA graph of one forward and backward pass ("graph"), or where capture fails of the
plain calls ("eager"). FLOPs count visible pairs only, 4 E forward and 10 E backward for each pair and head.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from whet.kernels import attention as A
from whet.kernels import attention_reference, attention_triton
from whet.kernels.attention_triton import Tiles
from whet.kernels.spec import Case, relative_error

BACKENDS = ("cudnn", "flash", "triton", "efficient")
_8B = {"heads": 32, "kv_heads": 8, "head_size": 128}
_06B = {"heads": 16, "kv_heads": 8, "head_size": 128}


def _lengths(documents: int, tokens: int, seed: int) -> tuple[int, ...]:
    """Document lengths of a skewed mix that add up to ``tokens``."""
    weights = [random.Random(seed + i).lognormvariate(0, 0.8) for i in range(documents)]
    lengths = [max(1, int(tokens * weight / sum(weights))) for weight in weights]
    lengths[0] += tokens - sum(lengths)
    return tuple(lengths)


CASES = {
    "8b 8x2048": {**_8B, "lengths": (2048,) * 8},
    "0.6b 8x2048": {**_06B, "lengths": (2048,) * 8},
    "8b 1x32768": {**_8B, "lengths": (32768,)},
    "8b mixed": {**_8B, "lengths": (*_lengths(20, 11200, 0), *(0,) * 4)},
    "minilm 512x12": {"heads": 12, "kv_heads": 12, "head_size": 32, "causal": False,
                      "lengths": _lengths(512, 6144, 1)},
}  # fmt: skip
MORE_CASES = {
    "0.6b chat": {**_06B, "lengths": (*_lengths(60, 16384, 2), *(0,) * 4)},
    "bge 256x60": {"heads": 16, "kv_heads": 16, "head_size": 64, "causal": False,
                   "lengths": _lengths(256, 15360, 3)},
    "8b window": {**_8B, "lengths": (8192,), "window": 1024},
    "gemma softcap": {"heads": 8, "kv_heads": 4, "head_size": 256, "softcap": 50.0, "lengths": (2048,) * 4},
    "head 96": {"heads": 32, "kv_heads": 32, "head_size": 96, "lengths": (2048,) * 4},
    "head 80": {"heads": 32, "kv_heads": 32, "head_size": 80, "lengths": (2048,) * 4},
}  # fmt: skip
TIMED_ONLY = ("8b 1x32768",)


def milliseconds(call: Callable[[], Any], repeats: int = 7) -> float:
    """Median over repeats of one call, by device events."""
    for _ in range(2):
        call()
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def captured(call: Callable[[], Any]) -> Callable[[], Any]:
    """The call as a CUDA graph's replay."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def exact(x: dict[str, Any], do: torch.Tensor, options: A.AttentionOptions) -> list[torch.Tensor]:
    """o, log-sum-exp, dq, dk, dv in float32, one key/value head at a time to bound memory."""
    groups = x["k"].shape[1]
    members = x["q"].shape[1] // groups
    columns: list[list[torch.Tensor]] = []
    for group in range(groups):
        heads = slice(group * members, (group + 1) * members)
        q, k, v = x["q"][:, heads].float(), x["k"][:, group, None].float(), x["v"][:, group, None].float()
        o, lse, extra = attention_reference.forward(q, k, v, x["offsets"], x["longest"], options)
        gradients = attention_reference.backward(
            do[:, heads].float(), q, k, v, o, lse, extra, x["offsets"], x["longest"], options
        )
        columns.append([o, lse.mT, *gradients])
    return [torch.cat(parts, dim=1) for parts in zip(*columns, strict=True)]


def measure(name: str, sizes: dict[str, Any], backend: str, checked: bool) -> str:
    """One row of the table after the case's and back end's names."""
    x = A._inputs(Case(name, sizes), torch.bfloat16, torch.device("cuda"), 0)
    settings = {key: x[key] for key in ("causal", "window", "softcap", "scale") if key in x}
    options = A.AttentionOptions(**settings)
    documents = sum(length > 0 for length in sizes["lengths"])
    settings |= {"backend": backend, "documents": documents}
    q, k, v, offsets, longest = x["q"], x["k"], x["v"], x["offsets"], x["longest"]
    do = torch.randn_like(q)

    def forward() -> Any:
        return A.attention_forward(q, k, v, offsets, longest, **settings)

    began = time.perf_counter()
    o, lse, extra = forward()

    def backward() -> Any:
        return A.attention_backward(do, q, k, v, o, lse, extra, offsets, longest, **settings)

    gradients = backward()
    torch.cuda.synchronize()
    first = time.perf_counter() - began
    errors = ""
    if checked:
        values = exact(x, do, options)
        errors = " ".join(
            f"{relative_error(*pair):.0e}" for pair in zip((o, lse.mT, *gradients), values, strict=True)
        )
        del values
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    backward()
    workspace = (torch.cuda.max_memory_allocated() - held) / 2**20
    began = time.perf_counter()
    for _ in range(5):
        forward()
        backward()
    host = (time.perf_counter() - began) * 200
    torch.cuda.synchronize()
    try:
        kind, forward_call, backward_call = "graph", captured(forward), captured(backward)
    except RuntimeError as error:
        kind, forward_call, backward_call = f"eager: {str(error).splitlines()[0][:60]}", forward, backward
    times = milliseconds(forward_call), milliseconds(backward_call)
    flops = A._flops(x)
    rates = (flops / times[0] / 1e9, 2.5 * flops / times[1] / 1e9, 3.5 * flops / sum(times) / 1e9)
    return (
        f"{errors:30} {times[0]:8.3f} {times[1]:8.3f} {rates[0]:6.0f} {rates[1]:6.0f} {rates[2]:6.0f} "
        f"{workspace:8.0f} {host:7.2f} {first:6.1f} {kind}"
    )


def run_backend(backend: str, cases: dict[str, dict[str, Any]]) -> None:
    """All cases of one back end; what it refuses or fails at is printed in its row."""
    for name, sizes in cases.items():
        documents = sum(length > 0 for length in sizes["lengths"])
        facts = A.AttentionSizes(
            torch.bfloat16, sizes["heads"], sizes["kv_heads"], sizes["head_size"], sum(sizes["lengths"]),
            documents, max(sizes["lengths"]),
        )  # fmt: skip
        options = A.AttentionOptions(sizes.get("causal", True), sizes.get("window"), sizes.get("softcap"))
        chosen = A.choose_attention(torch.cuda.get_device_capability(), options, facts).name
        if backend == "cudnn" and (not facts.equal or options.window or options.softcap):
            continue
        if options.softcap and backend != "triton":
            continue
        try:
            row = measure(name, sizes, backend, name not in TIMED_ONLY)
        except (RuntimeError, ImportError, ValueError, TypeError) as error:
            row = f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"
        print(f"{name:14} {backend:13}{'*' if backend == chosen else ' '} {row}", flush=True)
        torch.cuda.empty_cache()


TILES = {
    "forward": ((128, 128, 8, 2), (128, 64, 8, 2), (128, 64, 4, 3), (128, 64, 8, 3), (64, 64, 4, 3),
                (128, 128, 8, 3), (64, 128, 4, 2)),
    "query_gradient": ((128, 64, 8, 2), (128, 32, 8, 3), (64, 64, 4, 2), (128, 128, 8, 1), (64, 64, 4, 3)),
    "key_gradient": ((128, 64, 8, 2), (128, 32, 8, 3), (64, 64, 4, 2), (128, 32, 4, 3), (64, 32, 4, 3),
                     (128, 64, 8, 1), (64, 64, 8, 2)),
}  # fmt: skip


def sweep(name: str, sizes: dict[str, Any]) -> None:
    """Milliseconds of the forward or the whole backward pass by the tiles of one Triton kernel."""
    x = A._inputs(Case(name, sizes), torch.bfloat16, torch.device("cuda"), 0)
    q, k, v, offsets, longest = x["q"], x["k"], x["v"], x["offsets"], x["longest"]
    options = A.AttentionOptions(x.get("causal", True), x.get("window"), x.get("softcap"))
    o, lse, extra = attention_triton.forward(q, k, v, offsets, longest, options)
    do = torch.randn_like(o)

    def forward() -> Any:
        return attention_triton.forward(q, k, v, offsets, longest, options)

    def backward() -> Any:
        return attention_triton.backward(do, q, k, v, o, lse, extra, offsets, longest, options)

    for kernel, choices in TILES.items():
        call = forward if kernel == "forward" else backward
        for choice in (None, *choices):
            attention_triton.OVERRIDES.clear()
            if choice is not None:
                attention_triton.OVERRIDES[kernel] = Tiles(*choice)
            try:
                result = f"{call.__name__} {milliseconds(call):8.3f} ms"
            except RuntimeError as error:
                result = str(error).splitlines()[0][:90]
            print(f"{name:14} {kernel:15} {choice or 'table'!s:20} {result}", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backends", default=",".join(BACKENDS), help="comma-separated")
    parser.add_argument("--cases", default="main", help="main, all, or names separated by commas")
    parser.add_argument("--sweep", action="store_true", help="time tile sizes of the Triton kernels instead")
    parser.add_argument("--seconds", type=float, default=120, help="limit for one back end")
    parser.add_argument("--here", action="store_true", help="run in this process")
    arguments = parser.parse_args()
    every = {**CASES, **MORE_CASES}
    groups = {"main": CASES, "all": every}
    cases = groups.get(arguments.cases) or {name: every[name] for name in arguments.cases.split(",")}
    if arguments.sweep:
        for name in ("8b 8x2048",) if arguments.cases == "main" else tuple(cases):
            sweep(name, every[name])
        return
    backends = arguments.backends.split(",")
    if arguments.here:
        for backend in backends:
            run_backend(backend, cases)
        return
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}"
    )
    columns = f"{'errors o lse dq dk dv':30} {'fwd ms':>8} {'bwd ms':>8} {'fwd':>6} {'bwd':>6} {'both':>6} "
    columns += f"{'bwd MiB':>8} {'host ms':>7} {'1st s':>6} timed by (TFLOP/s; * chosen)"
    print(f"{'case':14} {'back end':14} {columns}")
    sys.stdout.flush()
    for backend in backends:
        command = [sys.executable, __file__, "--here", "--backends", backend, "--cases", arguments.cases]
        try:
            status = subprocess.run(command, timeout=arguments.seconds, check=False).returncode
        except subprocess.TimeoutExpired:
            status = f"stopped after {arguments.seconds:.0f} s"
        if status:
            print(f"{backend}: process ended with {status}", flush=True)


if __name__ == "__main__":
    main()
