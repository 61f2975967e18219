"""Kernels in milliseconds, bandwidth and share of the machine's ceiling, beside plain torch and rivals.

    PYTHONPATH=src python -P benchmarks/kernels.py --out benchmarks/results/kernels.md
    PYTHONPATH=src python -P benchmarks/kernels.py --kernels rms_norm,glu --cases 8b --rivals plain

Rivals are the kernel's own plain-torch reference, `torch.compile` of it, and Liger's operation where
`liger_kernel` is installed. Kernels run in a process beside this one, so that one that fails, hangs or
breaks the device costs its own rows only.
"""

from __future__ import annotations

import argparse
import datetime
import multiprocessing
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata, util
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from whet.kernels.parity import tensors_of
from whet.kernels.registry import SPECS
from whet.kernels.spec import Case, Inputs, KernelSpec
from whet.kernels.speed import Ceilings, Speed, directions_of, input_sets, measure, measure_ceilings

RIVALS = ("plain", "compile", "liger")
PACKAGES = ("torch", "triton", "liger-kernel", "transformers")
GRACE = 30.0  # seconds for a process that has sent everything to end
HEAD = ("kernel", "case", "pass", "ms", "rate", "of ceiling", "vs plain", *RIVALS)


# --- Liger's operations, called as ours are


def _liger_rms_norm(f: Any, x: torch.Tensor, weight: torch.Tensor, eps: float, **more: Any) -> Any:
    offset, residual = more.get("offset", 0.0), more.get("residual")
    casting = "gemma" if offset else "llama"
    if residual is not None:
        return f.liger_fused_add_rms_norm(x, residual, weight, eps, offset, casting, in_place=False)
    return f.liger_rms_norm(x, weight, eps, offset, casting, in_place=False)


def _liger_layer_norm(f: Any, x: Any, weight: Any, bias: Any, eps: float, **more: Any) -> Any:
    _only(more, residual=None)
    return f.liger_layer_norm(x, weight, bias, eps)


def _liger_glu(f: Any, gate: torch.Tensor, up: torch.Tensor, kind: str) -> Any:
    _only({"kind": kind if kind == "geglu" else None}, kind=None)
    return f.liger_swiglu(gate, up) if kind == "swiglu" else f.liger_geglu(gate, up)


def _liger_rope(
    f: Any, qkv: Any, cos: Any, sin: Any, positions: Any, heads: int, kv_heads: int, **more: Any
) -> Any:
    _only(more, q_weight=None, k_weight=None, eps=more.get("eps"), offset=more.get("offset"))
    query, key = (part.transpose(0, 1)[None] for part in (qkv[:, :heads], qkv[:, heads : heads + kv_heads]))
    return f.liger_rope(query, key, cos[positions][None], sin[positions][None])


def _liger_linear_cross_entropy(f: Any, hidden_SD: Any, weight_VD: Any, labels_S: Any, **more: Any) -> Any:
    _only(more, logit_scale=1.0, **{name: more.get(name) for name in _CROSS_ENTROPY})
    return f.liger_fused_linear_cross_entropy(
        hidden_SD,
        weight_VD,
        labels_S,
        more.get("bias_V"),
        ignore_index=more.get("ignore_index", -100),
        lse_square_scale=more.get("z_loss", 0.0),
        label_smoothing=more.get("label_smoothing", 0.0),
        reduction="sum",
        softcap=more.get("softcap"),
    )


_CROSS_ENTROPY = ("bias_V", "ignore_index", "z_loss", "label_smoothing", "softcap", "chunk")
LIGER: dict[str, Callable[..., Any]] = {
    "rms_norm": _liger_rms_norm,
    "layer_norm": _liger_layer_norm,
    "glu": _liger_glu,
    "rope": _liger_rope,
    "linear_cross_entropy": _liger_linear_cross_entropy,
}


def _only(options: dict[str, Any], **known: Any) -> None:
    """Refuse an option that Liger's operation does not have."""
    for name, value in options.items():
        if value != known.get(name):
            raise NotImplementedError(f"Liger has no {name}")


# --- the process that measures


@dataclass(frozen=True)
class Row:
    """One implementation of one kernel at one size; ``error`` instead of ``speed`` where it failed."""

    kernel: str
    case: str
    direction: str
    implementation: str
    speed: Speed | None = None
    error: str = ""
    difference: float | None = None


def measure_kernels(names: list[str], options: argparse.Namespace, results: Connection) -> None:
    """Send each kernel's name, then its rows; the ceilings first."""
    device, asked = torch.device(options.device), getattr(torch, options.dtype)
    results.send(measure_ceilings(device, asked))
    for name in names:
        results.send(name)
        dtype = asked if asked in SPECS[name].dtypes else SPECS[name].dtypes[0]
        for case in SPECS[name].timed:
            if options.cases and case.name not in options.cases.split(","):
                continue
            for row in _case_rows(SPECS[name], case, dtype, device, options):
                results.send(row)
        torch.compiler.reset()
    results.close()


def _case_rows(
    spec: KernelSpec, case: Case, dtype: torch.dtype, device: torch.device, options: argparse.Namespace
) -> Iterator[Row]:
    try:
        sets = input_sets(spec, case, dtype, device)
    except Exception as error:
        yield Row(spec.name, case.name, "forward", "whet", error=_words(error))
        return
    rivals = [name for name in RIVALS if name in options.rivals.split(",")]
    for name in ("whet", *rivals):
        function = _implementation(spec, name)
        if function is None:
            continue
        for direction in directions_of(spec):
            row = partial(Row, spec.name, case.name, direction, name)
            try:
                if direction == "forward":
                    row = partial(row, difference=_difference(spec, function, sets[0]))
                yield row(measure(spec, function, sets, direction, device, options.seconds))
            except Exception as error:  # shown in its place in the table
                yield row(error=_words(error))
                if device.type == "cuda":
                    torch.cuda.synchronize()  # ends this process if the device is no longer usable
                    torch.cuda.empty_cache()


def _implementation(spec: KernelSpec, name: str) -> Callable[..., Any] | None:
    if name == "whet":
        return spec.operation
    if name == "plain":
        return spec.reference
    if name == "compile":
        return torch.compile(spec.reference, dynamic=False)
    if spec.name not in LIGER or util.find_spec("liger_kernel") is None:
        return None
    from liger_kernel.transformers import functional

    return partial(LIGER[spec.name], functional)


def _difference(spec: KernelSpec, function: Callable[..., Any], inputs: Inputs) -> float | None:
    """Relative difference of the first output from plain torch's; None where their shapes differ."""
    with torch.no_grad():
        ours, plain = (next(tensors_of(each(**inputs))) for each in (function, spec.reference))
    if ours is None or plain is None or ours.shape != plain.shape:
        return None
    return float((ours.float() - plain.float()).norm() / plain.float().norm())


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


# --- the process that collects


class Results:
    """What has been measured so far.

    Args:
        total: seconds that there are for all of it.
    """

    def __init__(self, total: float) -> None:
        self.ends = time.monotonic() + total
        self.ceilings: Ceilings | None = None
        self.rows: list[Row] = []
        self.begun: list[str] = []


def collect(names: list[str], options: argparse.Namespace) -> Results:
    """Measure all kernels, in a new process from the next kernel on whenever one ends early or hangs."""
    results = Results(options.total)
    while len(results.begun) < len(names) and time.monotonic() < results.ends:
        before = len(results.begun)
        why = _one_process(names[before:], options, results)
        if why:
            name = results.begun[-1] if len(results.begun) > before else names[before]
            results.rows.append(Row(name, "", "", "whet", error=why))
        if len(results.begun) == before:
            break  # it fails before any kernel
    return results


def _one_process(names: list[str], options: argparse.Namespace, results: Results) -> str:
    """Start a process on ``names`` and take its results in; returns why it ended early, or nothing."""
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    worker = context.Process(target=measure_kernels, args=(names, options, sending))
    worker.start()
    sending.close()
    try:
        while receiving.poll(max(0.0, min(options.limit, results.ends - time.monotonic()))):
            message = receiving.recv()
            if isinstance(message, Ceilings):
                results.ceilings = message
            elif isinstance(message, str):
                results.begun.append(message)
                print(f"{message} ...", file=sys.stderr, flush=True)
            else:
                results.rows.append(message)
        out_of_time = time.monotonic() >= results.ends
        return "no time was left" if out_of_time else f"nothing for {options.limit:.0f} s"
    except EOFError:  # it has closed its end: done, or dead
        worker.join(GRACE)
        return f"its process ended with code {worker.exitcode}" if worker.exitcode else ""
    finally:
        worker.kill()
        worker.join()


def table(rows: list[Row], ceilings: Ceilings | None) -> str:
    """Markdown: a line for each kernel, case and direction, rivals as milliseconds and our speed-up."""
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    groups: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in rows:
        groups.setdefault((row.kernel, row.case, row.direction), {})[row.implementation] = row
    for key, by in groups.items():
        ours = by.get("whet")
        speed = ours.speed if ours else None
        cells = [*key, f"{speed.milliseconds:.4f}" if speed else (ours.error if ours else "")]
        cells += [_rate(speed), f"{speed.share(ceilings):.0%}" if speed and ceilings and speed.unit else ""]
        cells.append(f"{ours.difference:.1e}" if ours and ours.difference is not None else "")
        lines.append("| " + " | ".join(cells + [_rival(by.get(name), speed) for name in RIVALS]) + " |")
    return "\n".join(lines)


def _rate(speed: Speed | None) -> str:
    if speed is None or not speed.unit:
        return ""
    return f"{speed.rate / 1e12:.0f} TFLOP/s" if speed.unit == "FLOP" else f"{speed.rate / 1e9:.0f} GB/s"


def _rival(row: Row | None, ours: Speed | None) -> str:
    if row is None or row.speed is None:
        return row.error if row else ""
    times = f" ({row.speed.milliseconds / ours.milliseconds:.2f}×)" if ours else ""
    far = "" if row.difference is None or row.difference < 0.05 else f", differs by {row.difference:.1e}"
    return f"{row.speed.milliseconds:.4f}{times}{far}"


def heading(options: argparse.Namespace, ceilings: Ceilings | None) -> str:
    """When, on what, with which versions and by which command."""
    installed = {dist.metadata["Name"]: dist.version for dist in metadata.distributions()}
    versions = ", ".join(f"{name} {installed[name]}" for name in PACKAGES if name in installed)
    device = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or "CPU"
    command = shlex.join(["python", "-P", *sys.argv])
    lines = [
        f"# Kernels, {device}, {datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        "",
        f"Python {platform.python_version()}, {versions}, CUDA {torch.version.cuda}; {options.dtype}.",
        f"`{command}`",
    ]
    if ceilings:
        lines.append(
            f"Ceilings measured in this run: copy {ceilings.copy / 1e9:.0f} GB/s, "
            f"matrix product {ceilings.matmul / 1e12:.0f} TFLOP/s."
        )
    lines += [
        "Median device time over cold inputs; rate and share count the bytes or operations the work needs;",
        "`vs plain` is the first output's relative difference; rivals: milliseconds (theirs over ours).",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Measure, print the table, and write it with ``--out``; 1 if one of our kernels failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--kernels", default=",".join(SPECS), help="names, with commas between")
    parser.add_argument("--cases", default="", help="only timed cases of these names")
    parser.add_argument("--rivals", default=",".join(RIVALS), help="of plain, compile, liger")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=0.1, help="device time spent on each figure")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds to wait for a figure")
    parser.add_argument("--total", type=float, default=3600.0, help="seconds for all; the rest is left out")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    names = options.kernels.split(",")
    if unknown := [name for name in names if name not in SPECS]:
        parser.error(f"unknown: {', '.join(unknown)}; known are {', '.join(SPECS)}")
    results = collect(names, options)
    text = heading(options, results.ceilings) + "\n" + table(results.rows, results.ceilings) + "\n"
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text, encoding="utf-8")
    return int(any(row.error for row in results.rows if row.implementation == "whet"))


if __name__ == "__main__":
    sys.exit(main())
