"""Generation after training: whet's beside transformers' own, with the LoRA adapter on. For one GPU.

    PYTHONPATH=src python -P benchmarks/decode.py --out benchmarks/results/decode.md
    PYTHONPATH=src python -P benchmarks/decode.py --shapes 0.6b --bases bf16 --compiled --profile

Random weights in the shapes of Qwen3-0.6B and Llama-3.1-8B, prompts of 128 tokens, greedy. A step's time is
that of a long generation less that of a short one, so the prompt does not count; `floor` is the time to read
weights, adapter and cache once at the copy bandwidth measured here. transformers runs with its dynamic and
its static cache (and with `--compiled` the static one under torch.compile), adapter in the base's type, which
is faster there; whet reads the fp32 adapter. First, tokens are compared in fp32 on a few layers.
"""

from __future__ import annotations

import argparse
import gc
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# A folder of its own: in this one, kernels.py would hide a package that transformers looks for.
sys.path.insert(0, str(Path(__file__).resolve().parent / "training"))

import torch
import transformers
from models import SHAPES
from transformers import AutoConfig, AutoModelForCausalLM

from whet.engine.models.adapters import add_adapter
from whet.engine.models.fast_path import DecoderProgram, apply_fast_path, generate, program_of
from whet.engine.models.fp8 import Fp8Linear
from whet.engine.recipe import AdapterSection
from whet.kernels.speed import measure_ceilings

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PROMPT, SHORT = 128, 8


@dataclass(frozen=True)
class Row:
    """One implementation at one size: time of a step, and tokens a second of the whole generation."""

    name: str
    step_ms: float
    tokens_per_second: float
    ids: torch.Tensor


def build(shape: str, base: str, dtype: torch.dtype, layers: int | None = None) -> Any:
    """The model with random weights and an adapter whose B is not zero."""
    values = dict(SHAPES[shape])
    config = AutoConfig.for_model(**values | ({"num_hidden_layers": layers} if layers else {}))
    torch.manual_seed(0)
    with DEVICE:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    head = model.get_output_embeddings()
    for path, part in list(model.named_modules()):
        if type(part) is torch.nn.Linear and part is not head and base != "bf16":
            model.set_submodule(path, Fp8Linear.of(part) if base == "fp8" else in_nf4(part))
    torch.cuda.empty_cache()
    model = add_adapter(model, AdapterSection(rank=16, alpha=16), seed=0)
    with torch.no_grad():
        for path, param in model.named_parameters():
            if "lora_B" in path:
                param.normal_(std=0.02)
    return model.eval()


def in_nf4(linear: Any) -> Any:
    """The same layer as bitsandbytes holds it."""
    import bitsandbytes

    options = {"quant_type": "nf4", "compress_statistics": True}
    layer = bitsandbytes.nn.Linear4bit(
        linear.in_features, linear.out_features, bias=False, compute_dtype=linear.weight.dtype,
        device="meta", **options,
    )  # fmt: skip
    weight = bitsandbytes.nn.Params4bit(linear.weight.data, requires_grad=False, **options)
    layer.weight = weight.to(DEVICE)
    return layer


def adapter_in(model: Any, dtype: torch.dtype) -> None:
    for path, param in model.named_parameters():
        if "lora_" in path:
            param.data = param.data.to(dtype)


def prompts(shape: str, rows: int) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randint(3, SHAPES[shape]["vocab_size"], (rows, PROMPT), device=DEVICE)


def seconds(call: Callable[[], Any], repeats: int = 3) -> tuple[float, Any]:
    """Least wall time, and the last result."""
    times = []
    for _ in range(repeats):
        _wait()
        begun = time.perf_counter()
        result = call()
        _wait()
        times.append(time.perf_counter() - begun)
    return min(times), result


def _wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def measure(name: str, write: Callable[[int], torch.Tensor], new: int, repeats: int) -> Row:
    """``write`` generates so many tokens."""
    rows = write(new).shape[0]  # compiles, captures
    long, ids = seconds(lambda: write(new), repeats)
    short, _ = seconds(lambda: write(SHORT), repeats)
    step = (long - short) / (new - SHORT) * 1e3
    return Row(name, step, rows * new / long, ids[:, PROMPT:].cpu())


def theirs(shape: str, batch: int, model: Any, options: argparse.Namespace) -> Iterator[Row]:
    """transformers' rows, with the model as it was loaded."""
    ids = prompts(shape, batch)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "do_sample": False}
    static = {"cache_implementation": "static"}
    caches = {"dynamic": {}, "static": static | {"disable_compile": True}}
    if options.compiled:
        caches["static compiled"] = static
    for name, cache in caches.items():

        def rival(new: int, cache: dict[str, Any] = cache) -> torch.Tensor:
            return model.generate(**given, max_new_tokens=new, **cache)

        yield measure(f"transformers {name}", rival, options.rival_tokens, 1)


def ours(shape: str, batch: int, model: Any, options: argparse.Namespace) -> Iterator[Row]:
    """whet's rows, with the model on the fast path."""
    ids = prompts(shape, batch)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "do_sample": False}

    def write(new: int) -> torch.Tensor:
        result: torch.Tensor = generate(model, **given, max_new_tokens=new)
        return result

    yield measure("whet", write, options.tokens, 3)
    with model.disable_adapter():
        yield measure("whet, adapter off", write, options.tokens, 2)


def floor_ms(model: Any, batch: int, new: int, bandwidth: float) -> float:
    """Time to read weights, adapter (in the base's type) and half-filled cache once."""
    config = model.config.get_text_config()
    embedding = model.get_input_embeddings().weight
    total = sum(_held(name, p) for name, p in model.named_parameters() if p is not embedding)
    head = model.get_output_embeddings().weight
    total += _held("head", head) if head is embedding else 0
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    places = PROMPT + new / 2
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * 2 * places * batch
    return (total + cache) / bandwidth * 1e3


def _held(name: str, param: torch.Tensor) -> float:
    """Bytes; NF4 has its scales beside it, and the kernels read factors in 16 bits."""
    scales = 1 + 2 / 64 + 8 / (64 * 256) if param.dtype == torch.uint8 else 1.0
    return param.numel() * (2 if "lora_" in name else param.element_size()) * scales


def check(shape: str, base: str) -> str:
    """Tokens of whet and of transformers in fp32 on four layers, prompts of unequal length."""
    model = build(shape, base, torch.float32, layers=4)
    ids = prompts(shape, 3)
    mask = torch.ones_like(ids)
    mask[0, :50] = mask[1, :111] = 0
    given = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 64, "do_sample": False}
    alone = given | {"input_ids": ids[2:], "attention_mask": mask[2:]}
    expected = [model.generate(**one) for one in (given, alone)]
    report = apply_fast_path(model, torch.float32)
    found = [generate(model, **one) for one in (given, alone)]
    same = [f"{(f == e).float().mean():.4f}" for f, e in zip(found, expected, strict=True)]
    graph = program_of(model).decoding.graph is not None  # type: ignore[union-attr]
    return f"{shape} {base} fp32, 4 layers: share of equal tokens {same}, graph {graph}, {report}"


def profile(program: DecoderProgram, batch: int) -> str:
    """Kernels of one step by time."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    decoding = program.decoding
    assert decoding is not None
    tokens = torch.full((batch,), 5, device=DEVICE)
    decoding.lengths_B.fill_(PROMPT)
    with torch.no_grad():
        decoding.step(program, tokens)
        torch.cuda.synchronize()
        with profiler(activities=[ProfilerActivity.CUDA]) as recorded:
            decoding.step(program, tokens)
            torch.cuda.synchronize()
    found = sorted(recorded.key_averages(), key=lambda one: -one.device_time_total)
    total = sum(one.device_time_total for one in found)
    lines = [f"step: {sum(one.count for one in found)} kernels, {total / 1e3:.3f} ms in kernels"]
    lines += [f"  {one.count:5d}x {one.device_time_total:9.1f} us  {one.key[:90]}" for one in found[:16]]
    return "\n".join(lines)


def table(title: str, rows: list[Row], floor: float) -> str:
    """Markdown. ``x`` is beside transformers' dynamic cache; ``same`` the share of tokens equal to whet's."""
    plain = next((row for row in rows if row.name == "transformers dynamic"), None)
    whet = next(row for row in rows if row.name == "whet")
    lines = [f"## {title} (floor {floor:.3f} ms)", "", "| | ms/step | over floor | tokens/s | x | same |"]
    lines.append("|---|---|---|---|---|---|")
    for row in rows:
        times = f"{plain.step_ms / row.step_ms:.1f}" if plain else ""
        new = min(row.ids.shape[1], whet.ids.shape[1])
        same = (row.ids[:, :new] == whet.ids[:, :new]).float().mean()
        lines.append(
            f"| {row.name} | {row.step_ms:.3f} | {row.step_ms / floor:.2f} "
            f"| {row.tokens_per_second:.0f} | {times} | {same:.2f} |"
        )
    return "\n".join(lines) + "\n"


def run(options: argparse.Namespace) -> Iterator[str]:
    """Pieces of the report."""
    bandwidth = measure_ceilings(DEVICE, options.dtype).copy
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else platform.processor()
    yield f"# Decoding on {name}: torch {torch.__version__}, transformers {transformers.__version__}\n"
    yield f"Copy bandwidth {bandwidth / 1e9:.0f} GB/s; prompts of {PROMPT} tokens, {options.tokens} new.\n"
    if not options.unchecked:
        for base in options.bases:
            yield check(options.shapes[0], base) + "\n"
    for shape in options.shapes:
        for base in options.bases:
            model = build(shape, base, options.dtype)
            results: dict[int, list[Row]] = {}
            adapter_in(model, options.dtype)
            if not options.alone:
                results = {batch: list(theirs(shape, batch, model, options)) for batch in options.batches}
            adapter_in(model, torch.float32)
            report = apply_fast_path(model, options.dtype)
            for batch in options.batches:
                rows = results.get(batch, []) + list(ours(shape, batch, model, options))
                floor = floor_ms(model, batch, options.tokens, bandwidth)
                yield table(f"{shape} {base} batch {batch}", rows, floor) + f"\n{report}\n"
                program = program_of(model)
                if options.profile and DEVICE.type == "cuda" and program is not None:
                    generate(model, input_ids=prompts(shape, batch), max_new_tokens=4)
                    yield f"```\n{profile(program, batch)}\n```\n"
            del model
            gc.collect()
            torch.cuda.empty_cache()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shapes", nargs="+", default=["0.6b", "8b"], choices=sorted(SHAPES))
    parser.add_argument("--bases", nargs="+", default=["bf16", "nf4"], choices=["bf16", "nf4", "fp8"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--tokens", type=int, default=256, help="new ones of whet's generations")
    parser.add_argument(
        "--rival-tokens", type=int, default=72, help="new tokens of transformers' generations"
    )
    parser.add_argument("--compiled", action="store_true", help="also the static cache under torch.compile")
    parser.add_argument("--alone", action="store_true", help="without transformers")
    parser.add_argument("--unchecked", action="store_true", help="without comparing tokens first")
    parser.add_argument("--profile", action="store_true", help="kernels of one step")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.dtype = torch.bfloat16
    pieces = []
    for piece in run(options):
        print(piece, flush=True)
        pieces.append(piece)
    if options.out is not None:
        options.out.write_text("\n".join(pieces), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
