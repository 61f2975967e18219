"""Models that people commonly fine-tune: the part of their config.json that decides size, memory and speed.

Data only, for models that are not on this machine; of one that is, its own files count. Parameters are those
that the weight files hold, and a test holds them against the shapes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .facts import ModelFacts, read_model_facts
from .families import Family, family_of


@dataclass(frozen=True)
class KnownModel:
    """One published model.

    Args:
        name: hub id.
        parameters: in the weight files, a tied head counted once.
        licence: the hub's word for it.
        config: of config.json, what sizes follow from.
        chat: has a chat template and was trained to answer; else a base model.
        gated: the hub asks for a login and an accepted licence.
    """

    name: str
    parameters: int
    licence: str
    config: Mapping[str, Any]
    chat: bool = True
    gated: bool = False

    @property
    def family(self) -> Family:
        return family_of(str(self.config["model_type"]))


def known_facts(known: KnownModel, folder: Path) -> ModelFacts:
    """Facts by the code that reads a downloaded model; its config.json is written below ``folder``."""
    place = folder / known.name.replace("/", "--")
    place.mkdir(parents=True, exist_ok=True)
    (place / "config.json").write_text(json.dumps(known.config), encoding="utf-8")
    facts = read_model_facts(place, known.name)
    return facts.model_copy(update={"has_chat_template": known.chat, "has_tokenizer_json": True})


def known_model(name: str) -> KnownModel | None:
    """The model of this hub id, in any case of letters; None where it is not in the table."""
    return next((known for known in KNOWN if known.name.lower() == name.lower()), None)


def _shape(
    model_type: str, width: int, layers: int, heads: tuple[int, int], mlp: int, vocabulary: int, context: int,
    *, head: int | None = None, tied: bool = True, **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """A config.json's sizes; ``heads`` are those of queries and of keys."""
    return {
        "model_type": model_type,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "intermediate_size": mlp,
        "vocab_size": vocabulary,
        "max_position_embeddings": context,
        "tie_word_embeddings": tied,
        "dtype": "bfloat16",
        **({"head_dim": head} if head else {}),
        **more,
    }


def _qwen3(width: int, layers: int, heads: int, mlp: int, context: int, tied: bool = True) -> dict[str, Any]:
    return _shape("qwen3", width, layers, (heads, 8), mlp, 151936, context, head=128, tied=tied)


def _gemma3(width: int, layers: int, heads: int, mlp: int) -> dict[str, Any]:
    shape = _shape("gemma3_text", width, layers, (heads, 1), mlp, 262144, 32768, head=256)
    return shape | {"sliding_window": 512, "hidden_activation": "gelu_pytorch_tanh"}


_LLAMA_1B = _shape("llama", 2048, 16, (32, 8), 8192, 128256, 131072, head=64)
_LLAMA_3B = _shape("llama", 3072, 28, (24, 8), 8192, 128256, 131072, head=128)
_LLAMA_8B = _shape("llama", 4096, 32, (32, 8), 14336, 128256, 131072, tied=False)
_QWEN25_05B = _shape("qwen2", 896, 24, (14, 2), 4864, 151936, 32768)
_QWEN25_15B = _shape("qwen2", 1536, 28, (12, 2), 8960, 151936, 32768)
_QWEN25_7B = _shape("qwen2", 3584, 28, (28, 4), 18944, 152064, 32768, tied=False)
_SMOL_135M = _shape("llama", 576, 30, (9, 3), 1536, 49152, 8192)
_SMOL_360M = _shape("llama", 960, 32, (15, 5), 2560, 49152, 8192)
_SMOL_17B = _shape("llama", 2048, 24, (32, 32), 8192, 49152, 8192)
_SMOL3_3B = _shape("smollm3", 2048, 36, (16, 4), 11008, 128256, 65536)
_MISTRAL_7B = _shape("mistral", 4096, 32, (32, 8), 14336, 32768, 32768, tied=False)
_PHI4_MINI = _shape(
    "phi3", 3072, 32, (24, 8), 8192, 200064, 131072, partial_rotary_factor=0.75,
    rope_scaling={"type": "longrope"}, original_max_position_embeddings=4096, sliding_window=262144,
)  # fmt: skip
_GEMMA3_4B = {
    "model_type": "gemma3",
    "dtype": "bfloat16",
    "text_config": _shape("gemma3_text", 2560, 34, (8, 4), 10240, 262208, 131072, head=256)
    | {"sliding_window": 1024},
}

APACHE = "apache-2.0"

KNOWN: tuple[KnownModel, ...] = (
    KnownModel("Qwen/Qwen3-0.6B", 596_049_920, APACHE, _qwen3(1024, 28, 16, 3072, 40960)),
    KnownModel("Qwen/Qwen3-0.6B-Base", 596_049_920, APACHE, _qwen3(1024, 28, 16, 3072, 32768), chat=False),
    KnownModel("Qwen/Qwen3-1.7B", 1_720_574_976, APACHE, _qwen3(2048, 28, 16, 6144, 40960)),
    KnownModel("Qwen/Qwen3-1.7B-Base", 1_720_574_976, APACHE, _qwen3(2048, 28, 16, 6144, 32768), chat=False),
    KnownModel("Qwen/Qwen3-4B", 4_022_468_096, APACHE, _qwen3(2560, 36, 32, 9728, 40960)),
    KnownModel("Qwen/Qwen3-4B-Instruct-2507", 4_022_468_096, APACHE, _qwen3(2560, 36, 32, 9728, 262144)),
    KnownModel("Qwen/Qwen3-4B-Base", 4_022_468_096, APACHE, _qwen3(2560, 36, 32, 9728, 32768), chat=False),
    KnownModel("Qwen/Qwen3-8B", 8_190_735_360, APACHE, _qwen3(4096, 36, 32, 12288, 40960, tied=False)),
    KnownModel(
        "Qwen/Qwen3-8B-Base", 8_190_735_360, APACHE, _qwen3(4096, 36, 32, 12288, 32768, False), chat=False
    ),
    KnownModel("Qwen/Qwen2.5-0.5B-Instruct", 494_032_768, APACHE, _QWEN25_05B),
    KnownModel("Qwen/Qwen2.5-1.5B-Instruct", 1_543_714_304, APACHE, _QWEN25_15B),
    KnownModel("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512, APACHE, _QWEN25_7B),
    KnownModel("meta-llama/Llama-3.2-1B-Instruct", 1_235_814_400, "llama3.2", _LLAMA_1B, gated=True),
    KnownModel("meta-llama/Llama-3.2-1B", 1_235_814_400, "llama3.2", _LLAMA_1B, chat=False, gated=True),
    KnownModel("meta-llama/Llama-3.2-3B-Instruct", 3_212_749_824, "llama3.2", _LLAMA_3B, gated=True),
    KnownModel("meta-llama/Llama-3.2-3B", 3_212_749_824, "llama3.2", _LLAMA_3B, chat=False, gated=True),
    KnownModel("meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248, "llama3.1", _LLAMA_8B, gated=True),
    KnownModel("meta-llama/Llama-3.1-8B", 8_030_261_248, "llama3.1", _LLAMA_8B, chat=False, gated=True),
    KnownModel("HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008, APACHE, _SMOL_135M),
    KnownModel("HuggingFaceTB/SmolLM2-360M-Instruct", 361_821_120, APACHE, _SMOL_360M),
    KnownModel("HuggingFaceTB/SmolLM2-1.7B-Instruct", 1_711_376_384, APACHE, _SMOL_17B),
    KnownModel("HuggingFaceTB/SmolLM3-3B", 3_075_098_624, APACHE, _SMOL3_3B),
    KnownModel("google/gemma-3-270m-it", 268_098_176, "gemma", _gemma3(640, 18, 4, 2048), gated=True),
    KnownModel("google/gemma-3-1b-it", 999_885_952, "gemma", _gemma3(1152, 26, 4, 6912), gated=True),
    KnownModel("google/gemma-3-4b-it", 4_300_079_472, "gemma", _GEMMA3_4B, gated=True),
    KnownModel("microsoft/Phi-4-mini-instruct", 3_836_021_760, "mit", _PHI4_MINI),
    KnownModel("mistralai/Mistral-7B-Instruct-v0.3", 7_248_023_552, APACHE, _MISTRAL_7B, gated=True),
)
