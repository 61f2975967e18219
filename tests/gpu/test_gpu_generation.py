"""Generation through the captured step on the device: transformers' tokens, again and again in one graph.

Run by hand: `PYTHONPATH=src:tests python -P -m pytest -q -m gpu tests/gpu/test_gpu_generation.py`.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.tiny_families import build
from support.tiny_models import build_tiny_model

from whet.engine.models.fast_path import apply_fast_path, bind_generate, program_of
from whet.engine.models.loading import Precision, load_model

pytestmark = pytest.mark.gpu

FAMILIES = ("llama", "llama-biased", "mistral", "qwen2-window", "qwen3", "gemma2", "gemma3", "phi3-partial")
LENGTHS = (19, 5, 11)
LINEAR = r".*\.(q|k|v|o|gate|up|down|qkv|gate_up)_proj"


def on_device(model: Any) -> Any:
    return model.to("cuda")


def with_adapter(model: Any) -> Any:
    wrapped = get_peft_model(model, LoraConfig(r=4, lora_alpha=6, target_modules=LINEAR))
    generator = torch.Generator("cuda").manual_seed(1)
    with torch.no_grad():
        for path, param in wrapped.named_parameters():
            if "lora_B" in path:
                param.copy_(0.3 * torch.randn(param.shape, generator=generator, device="cuda"))
    wrapped.generation_config.eos_token_id = None
    return wrapped.eval()


def write(model: Any, rows: int, **options: Any) -> torch.Tensor:
    """New tokens for so many of the prompts; no token twice, so that every choice counts."""
    generator = torch.Generator("cuda").manual_seed(2)
    ids = torch.randint(3, 128, (len(LENGTHS), max(LENGTHS)), generator=generator, device="cuda")
    mask = torch.stack([(torch.arange(max(LENGTHS)) >= max(LENGTHS) - n).long() for n in LENGTHS]).cuda()
    given = {"input_ids": ids[:rows], "attention_mask": mask[:rows], "max_new_tokens": 24, "pad_token_id": 0}
    found: torch.Tensor = model.generate(**given | {"do_sample": False, "no_repeat_ngram_size": 1} | options)
    return found[:, max(LENGTHS) :]


@pytest.fixture(autouse=True)
def full_precision() -> Any:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def compare(plain: Any, fast: Any) -> None:
    """One row and several, adapter on and off, trained factors, seeds; the graph is captured once a size."""
    for rows in (1, 3):
        for _ in range(2):
            assert torch.equal(write(fast, rows), write(plain, rows))
        program = program_of(fast)
        assert program is not None and program.decoding is not None
        graph = program.decoding.graph
        assert graph is not None
        for model in (plain, fast):
            with torch.no_grad():
                for path, param in model.named_parameters():
                    if "lora_B" in path:
                        param.mul_(-1)
        assert torch.equal(write(fast, rows), write(plain, rows))
        found = []
        for model in (plain, fast):
            torch.manual_seed(3)
            found.append(write(model, rows, do_sample=True, temperature=1.2, top_k=20))
        assert torch.equal(*found)
        assert program.decoding.graph is graph
        with plain.disable_adapter(), fast.disable_adapter():
            assert torch.equal(write(fast, rows), write(plain, rows))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_captured_step_writes_what_transformers_writes(name: str) -> None:
    plain = with_adapter(on_device(build(name)))
    # SDPA leaves out the softcap of Gemma 2's scores in those versions of transformers that offer it for it.
    plain.get_base_model().set_attn_implementation("eager")
    fast = bind_generate(copy.deepcopy(plain))
    assert apply_fast_path(fast, torch.float32).complete
    compare(plain, fast)


@pytest.mark.parametrize("base", ["nf4", "fp8"])
def test_quantised_bases_in_fp32(base: str, tmp_path: Any) -> None:
    """Steps multiply weights as they are held, prompts expanded ones (FP8 without its units)."""
    precision = Precision(device="cuda:0", base_precision=base)
    plain = with_adapter(load_model(build_tiny_model(tmp_path / "model", wide=True), precision).model)
    fast = bind_generate(copy.deepcopy(plain))
    assert apply_fast_path(fast, torch.float32, fp8=()).complete
    compare(plain, fast)


def test_a_run_in_16_bits_stays_close() -> None:
    """Logits of ten steps in bf16 beside fp32 ones of the same tokens, no farther than transformers' own."""
    exact = with_adapter(on_device(build("qwen3")))
    plain = with_adapter(on_device(build("qwen3", torch.bfloat16)))
    fast = copy.deepcopy(plain)
    apply_fast_path(fast, torch.bfloat16)
    program = program_of(fast)
    assert program is not None
    from whet.engine.models.fast_path import pack_rows
    from whet.engine.models.fast_path.decoding import Decoding

    row = torch.randint(3, 128, (16,), generator=torch.Generator().manual_seed(4)).tolist()
    with torch.no_grad():
        program.refresh()
        decoding = Decoding(program, 1, 64)
        logits = [decoding.prefill(program, pack_rows([row[:6]]).to(torch.device("cuda"))).clone()]
        for token in row[6:]:
            logits.append(decoding.step(program, torch.tensor([token], device="cuda")).clone())
        ids = torch.tensor([row], device="cuda")
        truth, own = (model(ids, use_cache=False).logits[0, 5:].float() for model in (exact, plain))
    assert decoding.graph is not None
    ours, theirs = (float((found - truth).norm() / truth.norm()) for found in (torch.cat(logits), own))
    assert ours < 1.5 * theirs
