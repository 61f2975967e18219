"""The planned peak of reinforcement learning beside what an H200's allocator held."""

from __future__ import annotations

from pathlib import Path

from support.plan_inputs import gpu, machine, model_facts, recipe, report, split

from whet.engine.data.inspection import Lengths
from whet.engine.fitting import fit
from whet.engine.resolve import resolve

QWEN_06B = {
    "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
    "max_position_embeddings": 40960, "tie_word_embeddings": False, "dtype": "bfloat16",
}  # fmt: skip
MEASURED = 38644970496
"""Bytes, of benchmarks/methods.py's case grpo: 64 answers of 256 tokens in a micro-batch."""
BELOW, ABOVE = 0.03, 0.40
"""Memory is planned for a micro-batch of the longest prompts, a mean one has three quarters of its tokens."""


def test_the_planned_peak_is_above_the_measured_one(tmp_path: Path) -> None:
    lengths = Lengths(p50=435, p95=635, p99=656, max=668)
    prompts = report(split(rows=320, token_rows=320, tokens=139_081, length=lengths))
    method = {"kind": "grpo", "rewards": ["exact_answer"], "max_completion_length": 256}
    wanted = recipe(
        method=method, model__max_length=1024, adapter__dropout=0.0, adapter__rank=16,
        training__batch_size=64, training__gradient_accumulation=1, training__optimizer="adamw",
        training__gradient_checkpointing="off",
    )  # fmt: skip
    facts, on = model_facts(tmp_path / "0.6b", QWEN_06B), machine(gpu(139.8))
    resolved, _ = resolve(wanted, facts, on, prompts, 320)
    _, memory, _ = fit(wanted, resolved, facts, prompts, on)
    assert (1 - BELOW) * MEASURED <= memory.allocated <= (1 + ABOVE) * MEASURED
