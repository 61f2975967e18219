"""What is trained of each method: shapes, rows, settings, the same for whet and for the plain library. Light.

Weights are random, so speed and memory are measured, not what is learnt.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from media import write_pictures, write_sounds

Rows = list[dict[str, Any]]
RANK = ALPHA = 16
SEED = 3407
DECODER = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TARGETS = {
    "decoder": DECODER,
    "unending": DECODER,
    "seeing": DECODER,
    "encoder": ["query", "key", "value", "dense"],
    "hearing": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
}
"""Kind of model -> layers with an adapter."""
SMALL: dict[str, dict[str, Any]] = {
    "small": {
        "model_type": "qwen3",
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "vocab_size": 512,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
}
SMALL_ENCODERS: dict[str, dict[str, Any]] = {
    "small-encoder": {
        "model_type": "bert",
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "vocab_size": 2048,
        "max_position_embeddings": 512,
    }
}
"""What a CPU trains in seconds."""


@dataclass(frozen=True)
class Case:
    """One method.

    Args:
        plain: the library that stands beside whet, as the table names it.
        rows: makes so many; a row of a chat has ``words`` words.
        method: the recipe's section.
        family: of :data:`TARGETS`, the kind of model.
        batch: rows of an optimizer step, all at once; answers where rows are prompts.
        words: about as many in each text, on a CPU and on a GPU.
        unit: what a row is called.
        larger: settings of ``method`` that a GPU has instead.
        files: writes what the rows name into their folder.
        fewer: optimizer steps on a GPU, and how many of them are not counted, where each takes long.
    """

    plain: str
    rows: Callable[[int, int], Rows]
    method: dict[str, Any]
    family: str
    batch: tuple[int, int]
    words: tuple[int, int]
    unit: str
    larger: dict[str, Any] = field(default_factory=dict)
    files: Callable[[Rows, Path], None] | None = None
    fewer: tuple[int, int] | None = None

    def settings(self, gpu: bool) -> dict[str, Any]:
        """The recipe's section on that device."""
        return self.method | (self.larger if gpu else {})


def _texts(count: int, words: int, seed: int) -> list[str]:
    """Of random words, from half as many as ``words`` to half as many again."""
    draw = random.Random(seed)
    return [
        " ".join(f"w{draw.randrange(2000)}" for _ in range(draw.randint(words // 2, words + words // 2)))
        for _ in range(count)
    ]


def pairs(count: int, words: int) -> Rows:
    """Anchors with their positives."""
    both = zip(_texts(count, words, 1), _texts(count, words, 2), strict=True)
    return [{"anchor": one, "positive": other} for one, other in both]


def classes(count: int, words: int) -> Rows:
    """Texts of three classes."""
    return [{"text": text, "label": "abc"[n % 3]} for n, text in enumerate(_texts(count, words, 1))]


def tags(count: int, words: int) -> Rows:
    """Words with a tag each."""
    split = [text.split() for text in _texts(count, words, 1)]
    return [{"tokens": one, "tags": [("O", "B-X", "I-X")[len(word) % 3] for word in one]} for one in split]


def ranked(count: int, words: int) -> Rows:
    """Queries with a document and how well it fits."""
    return [
        {"query": row["anchor"], "document": row["positive"], "score": float(n % 2)}
        for n, row in enumerate(pairs(count, words))
    ]


def chats(count: int, words: int) -> Rows:
    """A question and its answer."""
    return [
        {
            "messages": [
                {"role": "user", "content": row["anchor"]},
                {"role": "assistant", "content": row["positive"]},
            ]
        }
        for row in pairs(count, words)
    ]


def compared(count: int, words: int) -> Rows:
    """A prompt with two answers."""
    worse = _texts(count, words, 3)
    return [
        {"prompt": row["anchor"], "chosen": row["positive"], "rejected": other}
        for row, other in zip(pairs(count, words), worse, strict=True)
    ]


def prompts(count: int, words: int) -> Rows:
    """What is answered several times."""
    return [{"prompt": text} for text in _texts(count, words, 1)]


def sounds(count: int, words: int) -> Rows:
    """Recordings with what is said in them."""
    return [{"audio": f"{n}.wav", "text": text} for n, text in enumerate(_texts(count, words, 1))]


def pictures(count: int, words: int) -> Rows:
    """A picture, a question and its answer."""
    return [
        {"image": f"{n}.png", "prompt": row["anchor"], "completion": row["positive"]}
        for n, row in enumerate(pairs(count, words))
    ]


def spoken(count: int, words: int) -> Rows:
    """Texts with the codes of their sound, two frames a word, counted from code 0."""
    draw = random.Random(4)
    size = MARKS["codebook_size"]

    def codes(frames: int) -> list[int]:
        return [place * size + draw.randrange(size) for _ in range(frames) for place in range(PLACES)]

    return [{"text": text, "codes": codes(2 * len(text.split()))} for text in _texts(count, words, 1)]


PLACES = 7
"""Codes of a frame."""
MARKS: dict[str, Any] = {
    "text_end": 300,
    "human_start": 301,
    "human_end": 302,
    "ai_start": 303,
    "ai_end": 304,
    "speech_start": 305,
    "speech_end": 306,
    "codes_start": 310,
    "codebook_size": 16,
    "drop_repeats": False,
}
"""Behind the tokens of bytes, and within the smallest vocabulary."""
LANGUAGE = "en"
REWARD = f"{Path(__file__).with_name('reward.py')}:even"
GRPO = {
    "kind": "grpo",
    "rewards": [REWARD],
    "num_generations": 4,
    "max_completion_length": 32,
    "samples": 0,
}
LONGER = {"num_generations": 8, "max_completion_length": 256}
VISION = {"kind": "vision", "image_min": 1, "image_max": 1000, "finetune_vision_layers": False}
CASES: dict[str, Case] = {
    "sft": Case("TRL", chats, {"kind": "sft"}, "decoder", (4, 8), (16, 80), "rows"),
    "embedding": Case(
        "sentence-transformers", pairs, {"kind": "embedding"}, "encoder", (16, 128), (24, 32), "pairs"
    ),
    "classification": Case(
        "transformers", classes, {"kind": "classification"}, "encoder", (16, 64), (32, 96), "texts"
    ),
    "token_classification": Case(
        "transformers", tags, {"kind": "token_classification"}, "encoder", (16, 64), (32, 96), "texts"
    ),
    "reranker": Case(
        "sentence-transformers", ranked, {"kind": "reranker"}, "encoder", (16, 64), (24, 64), "pairs"
    ),
    "preference": Case("TRL", compared, {"kind": "preference"}, "decoder", (2, 4), (16, 80), "pairs"),
    "reward": Case("TRL", compared, {"kind": "reward"}, "decoder", (2, 4), (16, 80), "pairs"),
    "grpo": Case("TRL", prompts, GRPO, "unending", (8, 32), (16, 80), "answers", LONGER, fewer=(4, 2)),
    "speech": Case(
        "transformers",
        sounds,
        {"kind": "speech", "language": LANGUAGE},
        "hearing",
        (4, 16),
        (8, 24),
        "recordings",
        files=write_sounds,
    ),
    "tts": Case(
        "TRL",
        spoken,
        {"kind": "tts", "layout": "orpheus", "orpheus": MARKS},
        "decoder",
        (4, 8),
        (8, 32),
        "rows",
    ),
    "vision": Case("TRL", pictures, VISION, "seeing", (4, 8), (10, 24), "rows", files=write_pictures),
}


def name_of(device: str, measured: Collection[str], day: str) -> str:
    """Of the files of results: of one day those of some methods come after those of all."""
    some = [] if len(measured) == len(CASES) else measured
    return "-".join(["methods", "cpu" if device == "cpu" else "gpu", *some, day])


@dataclass(frozen=True)
class Job:
    """One side of one case, in a process of its own.

    Args:
        side: ``whet`` or ``plain``.
        case: of :data:`CASES`.
        model: its name, and ``folder`` where it lies.
        rows: file of rows.
        steps: optimizer steps, of which ``warm`` are not counted.
        threads: of the CPU, on both sides.
    """

    side: str
    case: str
    model: str
    folder: str
    rows: str
    device: str
    batch: int
    length: int
    steps: int
    warm: int
    threads: int

    @property
    def targets(self) -> list[str]:
        """Layers with an adapter."""
        return TARGETS[CASES[self.case].family]

    @property
    def method(self) -> dict[str, Any]:
        """The recipe's section."""
        return CASES[self.case].settings(self.device == "cuda")


@dataclass
class Measured:
    """What a side measured; ``error`` instead where it did not come to an end.

    Args:
        rate: rows a second, median over the counted steps.
        step: median seconds.
        peak: bytes of the GPU's allocator in training; None on a CPU.
        planned: bytes that whet's planner expected of the allocator.
        planned_step: seconds that it expected of a step; None where it predicts none.
        fused: the fast path's own report; empty where nothing said one.
        losses: first and last.
        rewards: means of the first and the last answers; empty where nothing is rewarded.
    """

    rate: float = 0.0
    step: float = 0.0
    peak: int | None = None
    planned: int | None = None
    planned_step: float | None = None
    fused: str = ""
    losses: list[float] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    device: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    error: str = ""
