"""Rows with thinking and tool calls as a run: it learns to think, to call, and what to say of a result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_models import build_tiny_model
from support.tiny_runs import create_run, events_of, next_attempt, tiny_recipe
from transformers import AutoModelForCausalLM, AutoTokenizer

from whet.engine.methods.sft.job import train
from whet.engine.runs.events import StepEvent

CITIES = {"Rome": 21, "Oslo": 3}


def conversation(city: str) -> list[dict[str, Any]]:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": city}}}
    return [
        {"role": "user", "content": f"{city}?"},
        {"role": "assistant", "reasoning_content": "Look.", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "weather", "content": f"{CITIES[city]} C"},
        {"role": "assistant", "reasoning_content": "Say.", "content": f"It is {CITIES[city]}."},
    ]


def test_a_model_learns_to_call_and_to_use_what_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    model = build_tiny_model(tmp_path / "qwen3", "qwen3", wide=True)
    rows = tmp_path / "rows.jsonl"
    chats = [{"messages": conversation(city)} for city in CITIES for _ in range(4)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in chats), encoding="utf-8")
    recipe = tiny_recipe(
        model,
        rows,
        model={"max_length": 256},
        data={"template": "qwen-3", "reasoning": "each"},
        adapter={"kind": "none"},
        training={
            "max_steps": 40,
            "learning_rate": 3e-3,
            "save_every": 40,
            "batch_size": 4,
            "gradient_accumulation": 1,
        },
    )
    run = create_run(recipe)
    assert run.load_plan().data.report.train.rows == 16  # a row of each answer
    trained = train(next_attempt(run))
    losses = [event.loss for event in events_of(run) if isinstance(event, StepEvent)]
    assert losses[-1] < 0.2 < 3 < losses[0]
    tokenizer = AutoTokenizer.from_pretrained(trained)
    tuned = AutoModelForCausalLM.from_pretrained(trained, dtype=torch.float32)
    for city, degrees in CITIES.items():
        turns = conversation(city)
        call = answer_to(tuned, tokenizer, turns[:1])
        assert call.startswith("<think>\nLook.\n</think>\n\n<tool_call>")
        assert f'{{"name": "weather", "arguments": {{"city": "{city}"}}}}\n</tool_call>' in call
        said = answer_to(tuned, tokenizer, turns[:3])
        assert said.startswith("<think>\nSay.\n</think>") and f"It is {degrees}.<|im_end|>" in said
        assert "tool_call" not in said.partition("<|im_end|>")[0]


def answer_to(model: Any, tokenizer: Any, turns: list[dict[str, Any]]) -> str:
    """As anybody would ask: by the saved template, greedily."""
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
    out = model.generate(input_ids=ids, max_new_tokens=90, do_sample=False)
    text: str = tokenizer.decode(out[0, ids.shape[1] :])
    return text
