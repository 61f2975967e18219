"""Tiny models with random weights for tests: real configs, real safetensors, a real byte-level BPE tokenizer.

    from support.tiny_models import build_tiny_model
    path = build_tiny_model(tmp_path / "model", "qwen2")

Everything is deterministic: the same arguments give the same bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

FamilyName = Literal[
    "llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3_text", "phi3",
    "smollm3", "granite",
]  # fmt: skip

TEXT = Path(__file__).with_name("tiny_text.txt")

SPECIALS = [
    "<|begin|>",
    "<|endoftext|>",
    "<|pad|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|turn_end|>",
]
BOS, EOS, PAD, TURN_END = "<|begin|>", "<|endoftext|>", "<|pad|>", "<|turn_end|>"

# No generation tags: as most models in the wild ship it.
CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{{- '<|' + message['role'] + '|>\\n' + message['content'] + '<|turn_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- endif %}"
)

# Llama-3's split: the pre-tokenizer of most byte-level BPE models; Qwen2 differs in one digit at a time.
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")


MOE = {"num_experts_per_tok": 2, "norm_topk_prob": True, "moe_intermediate_size": 32}
WINDOW = 16
GEMMA_HEADS = {"head_dim": 24, "query_pre_attn_scalar": 24, "sliding_window": WINDOW}

FAMILY_SETTINGS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": MOE | {"num_experts": 4},
    "gemma": {"head_dim": 24},
    "gemma2": GEMMA_HEADS | {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
    "gemma3_text": GEMMA_HEADS | {"num_hidden_layers": 7},
    "phi3": {"original_max_position_embeddings": 512},
    "smollm3": {"num_hidden_layers": 5},
    "granite": {
        "embedding_multiplier": 12.0,
        "residual_multiplier": 0.22,
        "attention_multiplier": 0.03,
        "logits_scaling": 0.5,
    },
}
"""What a family's class needs beyond the common sizes; depths that show each kind of layer."""


def build_tiny_model(
    path: Path | str,
    family: FamilyName = "llama",
    *,
    vocab: int = 400,
    tied: bool = False,
    seed: int = 0,
    wide: bool = False,
    dtype: str = "float32",
    chat: bool = True,
    **changes: Any,
) -> Path:
    """Write a two-layer causal language model and its tokenizer; returns ``path``.

    Norm weights and biases of the families beyond the first four are moved off their ones and zeros, so that
    a forgotten one is seen.

    Args:
        path: folder to create.
        family: model architecture.
        vocab: most entries of the tokenizer, special tokens included; the embedding has as many rows.
        tied: the output head shares the embedding.
        seed: of the random weights.
        wide: hidden and intermediate size 256 (k-quants need rows that divide by 256) instead of 64 and 128.
        dtype: of the weights, e.g. ``float32`` or ``bfloat16``.
        chat: write a chat template.
        changes: other values of the configuration.
    """
    import torch
    from transformers import AutoModelForCausalLM

    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    ids = write_tokenizer(path, family, vocab=vocab, chat=chat)
    config = _config(family, rows=ids["rows"], ids=ids, tied=tied, wide=wide, changes=changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
        if family in FAMILY_SETTINGS or changes:
            _move_vectors(model)
    model.generation_config.eos_token_id = [ids[TURN_END], ids[EOS]]
    model.generation_config.bos_token_id = ids[BOS]
    model.generation_config.pad_token_id = ids[PAD]
    model.save_pretrained(path)
    return path


def _move_vectors(model: Any) -> None:
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))


def _config(
    family: FamilyName, rows: int, ids: dict[str, int], tied: bool, wide: bool, changes: dict[str, Any]
) -> Any:
    from transformers import CONFIG_MAPPING

    hidden, intermediate, heads, kv_heads = (256, 512, 4, 2) if wide else (64, 128, 4, 2)
    settings: dict[str, Any] = {
        "vocab_size": rows,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "max_position_embeddings": 512,
        "tie_word_embeddings": tied,
        "bos_token_id": ids[BOS],
        "eos_token_id": ids[EOS],
        "pad_token_id": ids[PAD],
        "initializer_range": 0.08,
    }
    if family in ("qwen2", "phi3", "granite", "smollm3"):
        del settings["head_dim"]
    if family == "mistral":
        settings["sliding_window"] = None
    return CONFIG_MAPPING[family](**settings | FAMILY_SETTINGS.get(family, {}) | changes)


def write_tokenizer(
    path: Path, family: FamilyName = "llama", *, vocab: int = 400, chat: bool = True
) -> dict[str, int]:
    """Train a byte-level BPE on the committed text and write the tokenizer files; token -> id, and ``rows``.

    Llama and Mistral add BOS in front of plain text, the Qwens have no BOS of their own in encoding.
    """
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
        processors,
        trainers,
    )

    split = QWEN2_SPLIT if family.startswith("qwen") else LLAMA3_SPLIT
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab - len(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.read_text(encoding="utf-8").splitlines(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    vocabulary = tokenizer.get_vocab()
    ids = {token: vocabulary[token] for token in SPECIALS}
    adds_bos = not family.startswith("qwen")
    byte_level = processors.ByteLevel(trim_offsets=False)
    tokenizer.post_processor = (
        processors.Sequence(
            [
                byte_level,
                processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, ids[BOS])]),
            ]
        )
        if adds_bos
        else byte_level
    )
    tokenizer.save(str(path / "tokenizer.json"))
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "add_bos_token": adds_bos,
        "model_max_length": 512,
        "clean_up_tokenization_spaces": False,
    }
    if chat:
        settings["chat_template"] = CHAT_TEMPLATE
    (path / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return {**ids, "rows": tokenizer.get_vocab_size()}
