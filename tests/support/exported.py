"""Trained things to export, made once a process: a tiny model that learnt a few conversations, an adapter."""

from __future__ import annotations

import atexit
import tempfile
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

from support.tiny_models import build_tiny_model

from whet.engine.export.gguf.convert import convert
from whet.engine.export.merging import merge
from whet.engine.export.smoke import Baseline, reference_of

TALKS = [
    [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    for question, answer in [
        ("What is a rank?", "The size of the update."),
        ("What is a loss?", "A measure of surprise."),
        ("Who are you?", "A small model."),
        ("What is a token?", "A piece of text."),
    ]
]
TARGETS = ["q_proj", "v_proj", "up_proj", "down_proj"]


@cache
def folder() -> Path:
    """A folder of this process, removed at its end."""
    made = tempfile.TemporaryDirectory(prefix="whet-exported-")
    atexit.register(made.cleanup)
    return Path(made.name)


@cache
def learnt_model() -> Path:
    """A whole model that knows TALKS by heart: it stops by itself, and its distributions are sharp."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = build_tiny_model(folder() / "learnt", wide=True)
    tokenizer: Any = AutoTokenizer.from_pretrained(path)
    model: Any = AutoModelForCausalLM.from_pretrained(path)
    rows = [tokenizer.apply_chat_template(talk, return_dict=False) for talk in TALKS]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(40):
        loss = sum(model(input_ids=(ids := torch.tensor([row])), labels=ids).loss for row in rows) / len(rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.to(torch.bfloat16).save_pretrained(path)
    return path


@cache
def learnt_rows() -> list[dict[str, Any]]:
    """TALKS as training saw them: messages, input_ids, labels of the answers through their end token."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(learnt_model())
    rows = []
    for talk in TALKS:
        ids = tokenizer.apply_chat_template(talk, return_dict=False)
        prompt = tokenizer.apply_chat_template(talk[:1], add_generation_prompt=True, return_dict=False)
        end = ids.index(tokenizer.convert_tokens_to_ids("<|turn_end|>"), len(prompt)) + 1
        labels = [-100] * len(prompt) + ids[len(prompt) : end] + [-100] * (len(ids) - end)
        rows.append({"messages": talk, "input_ids": ids, "labels": labels})
    return rows


@cache
def baseline() -> Baseline:
    """The learnt model as transformers computes it."""
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(reference_of(learnt_model(), learnt_rows()))


@cache
def healthy_gguf() -> Path:
    """The learnt model in f16."""
    return convert(learnt_model(), folder() / "learnt-f16.gguf", "f16")


@cache
def small_base() -> Path:
    return build_tiny_model(folder() / "base")


@cache
def adapter(seed: int = 1, size: float = 0.03) -> Path:
    """A LoRA adapter of the small base that moves it visibly; another seed is another training."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(small_base(), dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, init_lora_weights=False)
    tuned = get_peft_model(model, config)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, param in tuned.named_parameters():
            if "lora_" in name:
                param.copy_(torch.randn(param.shape, generator=draw) * (size if "lora_B" in name else 0.1))
    out = folder() / f"adapter-{seed}-{size}"
    tuned.save_pretrained(str(out))
    return out


def merged(out: Path, seed: int = 1, shard_bytes: int = 2 << 30) -> Path:
    """Base and adapter merged into ``out``."""
    merge(small_base(), adapter(seed), out, shard_bytes=shard_bytes)
    return out
