"""The demo's GGUF in llama-cpp-python says, word for word, what the tuned model says in greedy decoding."""

from __future__ import annotations

from pathlib import Path

from support.tuned_demo import (
    answers_of_llama_cpp,
    answers_of_transformers,
    held_out_prompts,
    tuned_demo,
)

from whet.engine.demo import MODEL_DIR
from whet.engine.export.gguf.convert import convert

PROMPTS = 12


def test_the_same_answers_word_for_word(tmp_path: Path) -> None:
    prompts = held_out_prompts()[:PROMPTS]
    gguf = convert(tuned_demo(), tmp_path / "demo-f16.gguf", "f16")
    tuned = answers_of_transformers(tuned_demo(), prompts)
    assert answers_of_llama_cpp(gguf, prompts) == tuned
    assert all(tuned) and len(set(tuned)) > PROMPTS // 2
    assert tuned != answers_of_transformers(MODEL_DIR, prompts)
