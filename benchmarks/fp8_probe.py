"""What an FP8 base and reduced ends cost and save on this GPU: 8B's shapes, a few layers, random weights.

PYTHONPATH=src python -P benchmarks/fp8_probe.py [LAYERS]

Prints a line a way of holding the base: peak while loading, bytes held, forward and backward of a step with
and without recomputing; then the FP8 model beside its checkpoint, and both ends in 16, 8 and 4 bits.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from whet.engine.export.base_weights import BaseWeights
from whet.engine.methods.sft.fp8_check import describe
from whet.engine.models.adapters import add_adapter
from whet.engine.models.fast_path import DecoderProgram, apply_fast_path, causal_model, pack_rows, program_of
from whet.engine.models.fast_path.comparison import compare_with_16_bit, fused_projections
from whet.engine.models.fast_path.projections import fp8_classes
from whet.engine.models.loading import Precision, load_model
from whet.engine.recipe import AdapterSection
from whet.kernels.lora_base import Fp8Base

DEVICE = torch.device("cuda")
TOKENS, LENGTH = 8192, 2048
GIB = 2**30
SHAPE: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}


def checkpoint(folder: Path, layers: int) -> None:
    """Random bf16 weights and a tokenizer of three tokens."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with DEVICE:
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, **SHAPE))
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 2}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="b", pad_token="c").save_pretrained(folder)


def batch() -> tuple[Any, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, SHAPE["vocab_size"], (TOKENS,), generator=generator)
    packed = pack_rows(list(ids.view(-1, LENGTH).numpy())).to(DEVICE)
    places = torch.arange(TOKENS - 1)
    places = places[(places + 1) % LENGTH != 0]
    return packed, places.to(DEVICE), ids[places + 1].to(DEVICE)


def loaded(folder: Path, precision: str, ends: str = "16bit", *, four_bits: bool = False) -> tuple[Any, str]:
    """The model on the fast path, and what loading cost."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    handle = load_model(folder, Precision("cuda:0", "bf16", precision, ends, ends))
    torch.cuda.synchronize()
    seconds, peak, held = (
        time.perf_counter() - began,
        torch.cuda.max_memory_allocated(),
        torch.cuda.memory_allocated(),
    )
    model = add_adapter(handle.model, AdapterSection(), seed=0)
    report = apply_fast_path(model, torch.bfloat16, fp8=fp8_classes(DEVICE, four_bits=four_bits))
    said = f"load {seconds:5.1f} s, peak {peak / GIB:5.2f} GiB, held {held / GIB:5.2f} GiB; {report}"
    return model, said


def milliseconds(step: Callable[[], object], repeats: int = 10) -> float:
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(repeats):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / repeats * 1e3


def timing(program: DecoderProgram, data: tuple[Any, torch.Tensor, torch.Tensor]) -> str:
    """Decoder alone and with the loss, keeping everything and recomputing everything."""
    packed, places, labels = data
    said = []
    for keep in (True, False):
        program.set_keep([keep] * len(program.layers), [keep] * len(program.layers))
        decoder = milliseconds(lambda: program.hidden_states(packed).sum().backward())
        torch.cuda.reset_peak_memory_stats()
        whole = milliseconds(lambda: program.loss(packed, places, labels).backward())
        peak = torch.cuda.max_memory_allocated() / GIB
        what = "keep" if keep else "recompute"
        said.append(f"{what}: decoder {decoder:.1f} ms, step {whole:.1f} ms, peak {peak:.2f} GiB")
    return "; ".join(said)


def beside_checkpoint(folder: Path, model: Any, data: tuple[Any, torch.Tensor, torch.Tensor]) -> None:
    """The comparison before a run, with both ways of summing."""
    weights, program = BaseWeights(folder), program_of(model)
    assert program is not None
    names = {part: path.removesuffix(".base_layer") for path, part in causal_model(model).named_modules()}
    bases = [p.stack.base for layer in program.layers for p in fused_projections(layer)]
    for fast in (True, False):
        for base in bases:
            if isinstance(base, Fp8Base):
                base.fast_accumulation = fast
        began = time.perf_counter()
        found = compare_with_16_bit(program, lambda part: weights.tensor(f"{names[part]}.weight"), *data)
        seconds = time.perf_counter() - began
        print(f"fast accumulation {fast}: {seconds:.1f} s")
        print(json.dumps(describe(found).model_dump(exclude_none=True)))


def main() -> None:
    layers = int(sys.argv[1]) if len(sys.argv) > 1 else 4
    folder, data = Path(tempfile.mkdtemp()), batch()
    checkpoint(folder, layers)
    torch.cuda.empty_cache()
    for precision, four_bits in (("bf16", False), ("fp8", False), ("nf4", False), ("nf4", True)):
        model, said = loaded(folder, precision, four_bits=four_bits)
        program = program_of(model)
        assert program is not None
        print(f"{precision}{' multiplied in FP8' if four_bits else ''}: {said}")
        print(f"  {timing(program, data)}", flush=True)
        if precision == "fp8":
            beside_checkpoint(folder, model, data)
        del model, program
    for ends in ("16bit", "int8", "nf4"):
        reduced(folder, ends, data)


def reduced(folder: Path, ends: str, data: tuple[Any, torch.Tensor, torch.Tensor]) -> None:
    model, said = loaded(folder, "nf4", ends)
    program = program_of(model)
    assert program is not None
    lookup = milliseconds(lambda: program.embed(data[0].input_ids_T))
    loss = program.loss(*data).item() / len(data[1])
    print(f"nf4, ends {ends}: {said}")
    print(f"  lookup {lookup:.3f} ms, loss {loss:.4f}; {timing(program, data)}", flush=True)


if __name__ == "__main__":
    main()
