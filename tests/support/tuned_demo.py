"""The demo model after a short LoRA training on its own rows, merged; and its greedy answers on both sides.

from support.tuned_demo import answers_of_llama_cpp, answers_of_transformers, held_out_prompts, tuned_demo
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from whet.engine.demo import HELDOUT_FILE, MODEL_DIR, TRAIN_FILE

STEPS, ROWS, LONGEST = 40, 8, 48
Messages = list[dict[str, str]]


@cache
def tuned_demo() -> Path:
    """Trained as `whet demo` does it, for a shorter time: the model answers its questions and stops."""
    import torch
    from peft import LoraConfig, get_peft_model
    from support.exported import folder
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from whet.engine.export.merging import merge

    tokenizer: Any = AutoTokenizer.from_pretrained(MODEL_DIR)
    talks = [json.loads(line)["messages"] for line in TRAIN_FILE.read_text(encoding="utf-8").splitlines()]
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=32, lora_alpha=32, target_modules="all-linear"))
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=3e-3)
    for step in range(STEPS):
        batch = tokenizer.apply_chat_template(
            talks[step * ROWS : (step + 1) * ROWS],
            padding=True,
            return_dict=True,
            return_tensors="pt",
            return_assistant_tokens_mask=True,
        )
        answers = torch.as_tensor(batch["assistant_masks"]).bool()
        labels = batch["input_ids"].masked_fill(~answers, -100)
        loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(str(folder() / "demo-adapter"))
    merge(MODEL_DIR, folder() / "demo-adapter", folder() / "demo-tuned")
    return folder() / "demo-tuned"


def held_out_prompts() -> list[Messages]:
    """Conversations of the demo's held-out rows without their last answer."""
    rows = HELDOUT_FILE.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["messages"][:-1] for line in rows]


def answers_of_transformers(model_dir: Path, prompts: list[Messages]) -> list[str]:
    """Greedy answers in float32, without special tokens."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model_dir)
    model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    found = []
    for messages in prompts:
        ids = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        with torch.no_grad():
            out = model.generate(**ids, max_new_tokens=LONGEST, do_sample=False)
        found.append(tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
    return found


def answers_of_llama_cpp(gguf: Path, prompts: list[Messages]) -> list[str]:
    """The same of llama-cpp-python's chat completion, as its users call it; in a process of its own."""
    request = json.dumps({"gguf": str(gguf), "prompts": prompts})
    command = [sys.executable, "-P", __file__]
    done = subprocess.run(command, input=request, capture_output=True, text=True)
    assert done.returncode == 0, f"llama.cpp ended with {done.returncode}: {done.stderr[-2000:]}"
    answers: list[str] = json.loads(done.stdout)
    return answers


def main(request: dict[str, Any]) -> list[str]:
    import llama_cpp

    llama: Any = llama_cpp.Llama(request["gguf"], n_ctx=512, n_threads=1, verbose=False)
    options: dict[str, Any] = {"temperature": 0.0, "max_tokens": LONGEST, "repeat_penalty": 1.0}
    return [
        llama.create_chat_completion(messages, **options)["choices"][0]["message"]["content"]
        for messages in request["prompts"]
    ]


if __name__ == "__main__":
    print(json.dumps(main(json.load(sys.stdin))))
