"""The rows of the benchmark: what is trained, which stacks run it, and what is aimed at. Light: no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

STACKS = ("whet", "hf", "liger", "unsloth", "st")
"""Ours; transformers with PEFT and TRL; the same with Liger's kernels; Unsloth; sentence-transformers."""
PRECISIONS = ("bf16", "fp8", "nf4", "fp32")
"""Of the frozen base."""
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK = ALPHA = 16
SEED = 3407
GIB = 2**30

Prepared = tuple[Any, Any]
"""Model with its adapter, and tokenizer."""


class MissingError(Exception):
    """What a stack cannot do here, in words for the table."""


@dataclass(frozen=True)
class Job:
    """One stack's run, in a process of its own.

    Args:
        stack: of :data:`STACKS`.
        model: of :data:`models.SHAPES`.
        precision: of :data:`PRECISIONS`.
        batch, accumulation: as a script asks for them; whet may regroup.
        length: tokens of a row, or of the longest.
        lengths: ``fixed`` or ``chat``.
        checkpointing: recompute activations. Unsloth's is its own kind; whet's planner decides for itself.
        steps: optimizer steps.
        warm: of these, how many come before the measured ones.
        cap: whet only: GiB that training may take, the rest being withheld from the allocator; 0 is the least
            that the planner knows, None what the device has.
        cap_of: whet only: the peak of the stack with this label in the same call is the cap.
        products: whet only: what a quantised base is multiplied in, ``16bit`` or ``fp8``, or ``auto``.
        ends: whet only: how embedding and output head are held: ``16bit``, ``int8`` or ``nf4``.
        fresh: compile everything anew, as on a machine that has never run the stack.
        trainer: whet only: ``sft`` is the Python API's, ``run`` that of ``whet train``.
        folder: of the checkpoint.
        device: ``cuda`` or ``cpu``.
        task: ``sft``, or ``embedding`` for pairs of texts under in-batch negatives.
    """

    stack: str
    model: str
    precision: str = "bf16"
    batch: int = 2
    accumulation: int = 4
    length: int = 2048
    lengths: str = "fixed"
    checkpointing: bool = True
    steps: int = 8
    warm: int = 4
    cap: float | None = None
    cap_of: str | None = None
    products: str = "auto"
    ends: str = "16bit"
    fresh: bool = False
    trainer: str = "sft"
    folder: str = ""
    device: str = "cuda"
    task: str = "sft"


@dataclass
class Result:
    """What a run measured; ``error`` instead where it did not come to an end.

    Args:
        rate: tokens (or pairs) a second, median over the measured steps.
        mean_rate: theirs over their seconds, stragglers included.
        step: median seconds.
        peak, reserved, load_peak: GiB of the allocator, in training, and while loading.
        load: seconds until the model and its adapter were there.
        eighth: seconds from the process's start to the end of the eighth optimizer step.
        losses: of every step.
        note: how it ran.
        predicted_peak, predicted_step: the planner's, GiB and seconds.
        missing: the error is that the stack, or what the job asks of it, is not there.
    """

    rate: float = 0.0
    mean_rate: float = 0.0
    step: float = 0.0
    peak: float = 0.0
    reserved: float = 0.0
    load_peak: float = 0.0
    load: float = 0.0
    eighth: float | None = None
    losses: list[float] = field(default_factory=list)
    note: str = ""
    predicted_peak: float | None = None
    predicted_step: float | None = None
    device: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    error: str = ""
    missing: bool = False


Results = Mapping[str, Result]


@dataclass(frozen=True)
class Target:
    """``value(of) / value(over)``, or ``value(of)`` alone, against a bound.

    Args:
        value: ``rate``, ``peak`` or ``eighth``.
        of: label of the run.
        bound: at least this for rates, at most this for the others.
        over: labels of the runs it is compared with; the best of them counts. Empty: ``bound`` is absolute.
    """

    value: str
    of: str
    bound: float
    over: tuple[str, ...] = ()

    def check(self, results: Results, rate: str, unit: str = "tokens") -> str:
        """One line: what is aimed at, what was measured, met or not.

        Args:
            rate: the field of results that stands for ``rate``.
            unit: what is counted.
        """
        name = rate if self.value == "rate" else self.value
        missing = [label for label in (self.of, *self.over) if label not in results or results[label].error]
        aim = self._aim(unit)
        if self.of in missing or (self.over and set(self.over) <= set(missing)):
            return f"{aim}: not measured ({', '.join(missing)})"
        best: Callable[..., float] = max if self.value == "rate" else min
        found = getattr(results[self.of], name)
        others = [getattr(results[label], name) for label in self.over if label not in missing]
        if not found or not all(others):  # no time of a step that was not run, no memory without a GPU
            return f"{aim}: not measured"
        value = found / best(others) if others else found
        met = value >= self.bound if self.value == "rate" else value <= self.bound
        without = f", without {', '.join(missing)}" if missing else ""
        return f"{aim}: {value:.2f}, {'met' if met else 'not met'}{without}"

    def _aim(self, unit: str) -> str:
        names = {"rate": f"{unit}/s", "peak": "peak memory", "eighth": "process start to 8th step"}
        words = "at least" if self.value == "rate" else "at most"
        if not self.over:
            return f"{names[self.value]} of {self.of} {words} {self.bound:g} GiB"
        over = self.over[0] if len(self.over) == 1 else f"the best of {', '.join(self.over)}"
        return f"{names[self.value]} of {self.of} {words} {self.bound:g}× that of {over}"


@dataclass(frozen=True)
class Row:
    """Jobs that run in one call, the ones that matter most first.

    Args:
        title: for the table.
        base: label of the run that the ratio column divides by.
        jobs: by label.
        targets: what is aimed at.
        rate: the rate that counts: the median where all steps are alike, else the mean.
        note: said under the table.
        unit: what rates count, ``tokens`` or ``pairs``.
        adapter: in words.
    """

    title: str
    base: str
    jobs: Mapping[str, Job]
    targets: tuple[Target, ...] = ()
    rate: str = "rate"
    note: str = ""
    unit: str = "tokens"
    adapter: str = "LoRA of rank 16 on all linear layers"


def _rivals(common: Job, *labels: str) -> dict[str, Job]:
    """The usual runs of the rivals by their labels."""
    every = {
        "hf": replace(common, stack="hf"),
        "liger": replace(common, stack="liger"),
        "unsloth": replace(common, stack="unsloth"),
        "unsloth off": replace(common, stack="unsloth", checkpointing=False),
        "unsloth 8x1 off": replace(common, stack="unsloth", checkpointing=False, batch=8, accumulation=1),
    }
    return {label: every[label] for label in labels}


_OFF = ("unsloth off", "unsloth 8x1 off")


def _encoders() -> dict[str, Row]:
    """Encoders under the embedding method: 256 pairs of short texts a step."""
    titles = {"minilm": "MiniLM-L6 shape", "bge-m3": "BGE-M3 shape", "tiny-encoder": "A tiny encoder"}
    wanted = {"minilm": 10.0, "bge-m3": 8.0, "tiny-encoder": 1.0}
    rows: dict[str, Row] = {}
    for model, title in titles.items():
        whet = Job("whet", model, batch=256, accumulation=1, steps=44, warm=20, task="embedding")
        if model == "tiny-encoder":
            whet = replace(whet, precision="fp32", batch=8, steps=6, warm=3)
        rivals = {"st": replace(whet, stack="st")}
        if model != "tiny-encoder":
            rivals["unsloth"] = replace(whet, stack="unsloth")
        each = tuple(rivals)
        rows[model] = Row(
            f"{title}, {whet.batch} pairs a batch of texts of about 12 words, in-batch negatives",
            "st",
            {"whet": whet, **rivals},
            (Target("rate", "whet", wanted[model], each), Target("peak", "whet", 0.5, each)),
            rate="mean_rate",
            note="Pairs over the seconds of all steps after the warm-up. whet reads all texts while its "
            "trainer is made, the others tokenise in every step.",
            unit="pairs",
            adapter="LoRA of rank 32 on all linear layers",
        )
    return rows


def _large() -> dict[str, Row]:
    """8B on a base of 16 bits or FP8, and how soon such a run is at work."""
    big = Job("whet", "8b")
    start = replace(big, fresh=True)
    return {
        "8b-bf16": Row(
            "8B, bf16, 2×4 of 2,048 tokens",
            "unsloth",
            {**_rivals(big, "unsloth"), "whet": big, **_rivals(big, *_OFF, "hf", "liger")},
            (Target("rate", "whet", 1.6, ("unsloth",)), Target("rate", "whet", 1.15, _OFF)),
        ),
        "8b-fp8": Row(
            "8B, FP8 base, beside bf16, 2×4 of 2,048 tokens",
            "unsloth",
            {
                **_rivals(big, "unsloth"),
                "whet": replace(big, precision="fp8"),
                "whet bf16": big,
                **_rivals(big, *_OFF),
            },
            (Target("rate", "whet", 2.3, ("unsloth",)), Target("rate", "whet", 1.6, _OFF)),
        ),
        "8b-start": Row(
            "8B, bf16, process start to the 8th optimizer step, nothing compiled before",
            "unsloth",
            {**_rivals(start, "unsloth"), "whet": start},
            (Target("eighth", "whet", 0.5, ("unsloth",)),),
            note="Triton's and Inductor's caches start empty; the checkpoint is in the page cache for both.",
        ),
    }


def _large_nf4() -> dict[str, Row]:
    """8B on a base of 4 bits, in spare memory, in little, and with one long sequence."""
    nf4 = Job("whet", "8b", precision="nf4")
    long = replace(nf4, batch=1, accumulation=1, length=32768, steps=6, warm=3)
    return {
        "8b-nf4": Row(
            "8B, nf4, 2×4 of 2,048 tokens, in spare memory and in the rival's",
            "unsloth",
            {
                **_rivals(nf4, "unsloth"),
                "whet": nf4,
                "whet in unsloth's": replace(nf4, cap_of="unsloth"),
                "whet fp8": replace(nf4, products="fp8"),
                "whet fp8 in unsloth's": replace(nf4, products="fp8", cap_of="unsloth"),
                **_rivals(nf4, *_OFF, "hf"),
            },
            (
                Target("rate", "whet", 1.15, _OFF),
                Target("rate", "whet in unsloth's", 1.6, ("unsloth",)),
                Target("peak", "whet in unsloth's", 1.0, ("unsloth",)),
                Target("rate", "whet fp8", 1.15, _OFF),
                Target("rate", "whet fp8 in unsloth's", 1.6, ("unsloth",)),
                Target("peak", "whet fp8 in unsloth's", 1.0, ("unsloth",)),
                Target("rate", "whet", 3.0, ("hf",)),
            ),
            note="whet fp8: model.products=fp8, the same 4-bit weights expanded to FP8 and multiplied there.",
        ),
        "8b-nf4-least": Row(
            "8B, nf4, 2×4 of 2,048 tokens, in the least memory",
            "unsloth",
            {
                **_rivals(nf4, "unsloth"),
                "whet": replace(nf4, cap=0.0),
                "whet int8 ends": replace(nf4, cap=0.0, ends="int8"),
                "whet nf4 ends": replace(nf4, cap=0.0, ends="nf4"),
            },
            (Target("peak", "whet", 5.0), Target("peak", "whet nf4 ends", 5.0)),
            note="The rival keeps embedding and head in 16 bits; so does the first of our runs.",
        ),
        "8b-nf4-32k": Row(
            "8B, nf4, one sequence of 32,768 tokens",
            "unsloth",
            {**_rivals(long, "unsloth"), "whet": replace(long, cap=11.0), "whet spare": long},
            (Target("peak", "whet", 11.0), Target("rate", "whet", 1.2, ("unsloth",))),
        ),
    }


def _small() -> dict[str, Row]:
    """0.6B, whose steps are short enough that launches count."""
    small = Job("whet", "0.6b", steps=24, warm=12)
    chat = replace(small, batch=8, accumulation=1, lengths="chat", steps=60, warm=25)
    nf4 = replace(small, precision="nf4")
    return {
        "0.6b-bf16": Row(
            "0.6B, bf16, 2×4 of 2,048 tokens asked",
            "unsloth",
            {**_rivals(small, "unsloth"), "whet": small, **_rivals(small, *_OFF, "hf", "liger")},
            (
                Target("rate", "whet", 5.0, ("unsloth",)),
                Target("rate", "whet", 1.2, ("unsloth 8x1 off",)),
            ),
        ),
        "0.6b-chat": Row(
            "0.6B, bf16, 8×1 rows of chat-like lengths up to 2,048 tokens",
            "unsloth",
            {**_rivals(chat, "unsloth"), "whet": chat, **_rivals(chat, "unsloth off", "hf")},
            (Target("rate", "whet", 5.0, ("unsloth",)),),
            rate="mean_rate",
            note="Tokens of the rows over the seconds of all steps after the warm-up, in every stack: steps "
            "differ in size, and a shape seen for the first time costs its stack compilation or capture.",
        ),
        "0.6b-nf4": Row(
            "0.6B, nf4, 2×4 of 2,048 tokens asked",
            "unsloth",
            {**_rivals(nf4, "unsloth"), "whet": nf4, **_rivals(nf4, "unsloth off", "hf")},
        ),
    }


def _tiny() -> dict[str, Row]:
    """What runs anywhere."""
    tiny = Job("whet", "tiny", precision="fp32", length=96, steps=6, warm=3)
    return {
        "tiny": Row(
            "A tiny model, 2×4 rows of 96 tokens: that the benchmark works, on any machine",
            "hf",
            {**_rivals(tiny, "hf"), "whet": tiny},
            (Target("rate", "whet", 1.0, ("hf",)),),
        ),
    }


ROWS = {**_large(), **_large_nf4(), **_small(), **_tiny(), **_encoders()}
