"""A tiny random Whisper with its feature extractor and tokenizer, and recordings of tones for its words."""

from __future__ import annotations

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np

RATE = 16000
NAMES = ("endoftext", "startoftranscript", "en", "de", "transcribe", "translate", "notimestamps")
MARKS = [f"<|{name}|>" for name in NAMES]
PITCHES = (300.0, 2400.0)


def build_tiny_whisper(path: Path, *, english_only: bool = False, seed: int = 0) -> Path:
    """One encoder and two decoder layers of width 48, a window of one second, 16 mel bands."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import (
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
        WhisperTokenizer,
    )

    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer: Any = WhisperTokenizer(vocab=letters, merges=[], additional_special_tokens=MARKS)
    ids = {mark: int(tokenizer.convert_tokens_to_ids(mark)) for mark in MARKS}
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=1)
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=16,
        d_model=48,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=96,
        decoder_ffn_dim=96,
        max_source_positions=50,
        max_target_positions=32,
        decoder_start_token_id=ids["<|startoftranscript|>"],
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=ids["<|endoftext|>"],
        pad_token_id=ids["<|endoftext|>"],
        begin_suppress_tokens=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = WhisperForConditionalGeneration(config)
        with torch.no_grad():  # of 0.02 no logit could be far from another
            for name, weight in model.named_parameters():
                if weight.ndim > 1 and "positions" not in name:
                    weight.mul_(10.0 if "embed" in name else 3.0)
    settings: Any = model.generation_config
    settings.no_timestamps_token_id = ids["<|notimestamps|>"]
    settings._from_model_config = False  # else transformers makes it anew while loading
    settings.is_multilingual = not english_only
    if not english_only:
        settings.lang_to_id = {mark: ids[mark] for mark in ("<|en|>", "<|de|>")}
        settings.task_to_id = {task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")}
    model.save_pretrained(path)
    WhisperProcessor(extractor, tokenizer).save_pretrained(path)
    return path


def tone(pitch: float, seconds: float = 0.5, rate: int = RATE, phase: float = 0.0) -> np.ndarray:
    """A sine in hertz, float32."""
    time = np.arange(int(seconds * rate)) / rate
    found: np.ndarray = (0.5 * np.sin(2 * np.pi * pitch * time + phase)).astype(np.float32)
    return found


def write_wav(path: Path, samples: np.ndarray, rate: int = RATE) -> Path:
    """16-bit PCM; columns are channels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


def write_words(folder: Path, rows: int = 40, words: tuple[str, str] = ("low", "high")) -> Path:
    """`rows.jsonl`: half of the recordings are a low tone, half a high one, of various lengths and pitches;
    the text is the word for it."""
    draw = np.random.default_rng(0)
    lines = []
    for number in range(rows):
        pitch = PITCHES[number % 2] * draw.uniform(0.85, 1.15)
        write_wav(
            folder / "sounds" / f"{number}.wav",
            tone(pitch, draw.uniform(0.4, 0.9), phase=draw.uniform(0, 6)),
        )
        lines.append(json.dumps({"audio": f"sounds/{number}.wav", "text": words[number % 2]}))
    file = folder / "rows.jsonl"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file
