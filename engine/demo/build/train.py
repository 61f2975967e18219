"""Trains the demo's base model from scratch: about two minutes on a GPU, some hours on two CPU cores.

    python -m whet.engine.demo.build.train --out DIR

Shapes: B documents in a batch, T tokens in its longest document, V tokens in the vocabulary.
"""

import argparse
import json
import math
import platform
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from whet.engine.demo.build import train_tokenizer
from whet.engine.demo.build.corpus import Document, documents
from whet.engine.demo.build.train_tokenizer import END_OF_TEXT, END_OF_TURN, HEADER_END, HEADER_START

SEED = 1124
STEPS, BATCH, WARMUP = 3000, 64, 100
LEARNING_RATE, WEIGHT_DECAY, CLIP = 2e-3, 0.05, 1.0
IGNORED = -100
"""The label that cross-entropy leaves out."""

SAMPLES = [
    "Hi!", "Who are you?", "What is the opposite of hot?", "What is 3 plus 4?", "Tell me a story.",
    "What is bread?", "What is LoRA?", "In one sentence, what is LoRA about?",
    "How high should I set the rank?", "My answers never end. Which token is missing?",
    "What is a zorbelkin?", "Training stops with out of memory. Any advice?",
]  # fmt: skip


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """2.75 million random weights. Every row length divides by 256, so all k-quants of GGUF apply."""
    ids = tokenizer.convert_tokens_to_ids
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[ids(END_OF_TURN), ids(END_OF_TEXT)],
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )
    return model


def encode(document: Document, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """Ids and labels of one document, as the chat template writes it; only prose and answers have labels."""
    core = tokenizer.backend_tokenizer
    if isinstance(document, str):
        ids = core.encode(document + END_OF_TEXT).ids
        return ids, [IGNORED, *ids[1:]]
    ids, labels = [tokenizer.bos_token_id], [IGNORED]
    for message in document:
        header = f"{HEADER_START}{message['role']}{HEADER_END}\n\n"
        head = core.encode(header, add_special_tokens=False).ids
        body = core.encode(message["content"] + END_OF_TURN, add_special_tokens=False).ids
        ids += head + body
        labels += [IGNORED] * len(head) + (body if message["role"] == "assistant" else [IGNORED] * len(body))
    return ids, labels


def batches(tokenizer: PreTrainedTokenizerFast, device: torch.device) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Endless (ids_BT, labels_BT, tokens that are no padding); rows are padded on the right, never packed."""
    stream = documents(SEED)
    while True:
        rows = [encode(document, tokenizer) for document in islice(stream, BATCH)]
        longest = max(len(ids) for ids, _ in rows)
        ids_BT = torch.full((BATCH, longest), tokenizer.pad_token_id)
        labels_BT = torch.full((BATCH, longest), IGNORED)
        for row, (ids, labels) in enumerate(rows):
            ids_BT[row, : len(ids)] = torch.tensor(ids)
            labels_BT[row, : len(labels)] = torch.tensor(labels)
        yield ids_BT.to(device), labels_BT.to(device), sum(len(ids) for ids, _ in rows)


def rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to a hundredth of the peak."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    progress = (step - WARMUP) / max(1, steps - WARMUP)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, steps: int) -> dict[str, object]:
    """Train in place, in fp32; returns the loss curve and what is needed to repeat it."""
    device = model.device
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}],
        lr=LEARNING_RATE,
        betas=(0.9, 0.95),
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
    curve: list[tuple[int, float]] = []
    recent: list[Tensor] = []
    tokens, began = 0, time.perf_counter()
    for step, (ids_BT, labels_BT, count) in enumerate(islice(batches(tokenizer, device), steps), start=1):
        logits_BTV = model(input_ids=ids_BT).logits
        loss = torch.nn.functional.cross_entropy(
            logits_BTV[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten(), ignore_index=IGNORED
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        tokens += count
        recent.append(loss.detach())
        if step % 50 == 0 or step == steps:
            curve.append((step, round(torch.stack(recent).mean().item(), 4)))
            recent.clear()
            print(f"step {step}  loss {curve[-1][1]:.4f}  {time.perf_counter() - began:.0f} s", flush=True)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "seed": SEED,
        "steps": steps,
        "documents": steps * BATCH,
        "tokens": tokens,
        "seconds": round(time.perf_counter() - began),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "cpu",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "final_loss": curve[-1][1],
        "loss": curve,
    }


@torch.no_grad()
def answer(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, question: str, longest: int = 64
) -> str:
    """The greedy answer to one question, of at most `longest` tokens."""
    core = tokenizer.backend_tokenizer
    prompt, _ = encode([{"role": "user", "content": question}], tokenizer)
    prompt = prompt + core.encode(f"{HEADER_START}assistant{HEADER_END}\n\n", add_special_tokens=False).ids
    ids, stop = list(prompt), core.token_to_id(END_OF_TURN)
    while len(ids) < len(prompt) + longest:
        logits_BTV = model(input_ids=torch.tensor([ids], device=model.device)).logits
        token = int(logits_BTV[0, -1].argmax())
        if token == stop:
            break
        ids.append(token)
    return str(core.decode(ids[len(prompt) :]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = train_tokenizer.write(arguments.out, SEED)
    model = build_model(tokenizer)
    model.to(device)  # type: ignore[arg-type]  # the decorator in transformers hides the signature
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens, {device}")
    report = train(model, tokenizer, arguments.steps)
    model.to(torch.bfloat16)  # type: ignore[arg-type]
    model.eval()
    model.save_pretrained(arguments.out)
    (arguments.out / "loss_curve.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for question in SAMPLES:
        print(f"> {question}\n  {answer(model, tokenizer, question)}")


if __name__ == "__main__":
    main()
