"""Reward functions as a user would write them, and as they should not be."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


def lengths(completions: list[str], **kwargs: Any) -> list[float]:
    print("a line that is no answer of the protocol")
    sys.stdout.write('{"values": [9]}\n')
    return [len(completion) for completion in completions]


def check_answer(prompts: list[str], completions: list[str], answer: list[str], **kwargs: Any) -> list[float]:
    assert len(prompts) == len(completions) == len(answer)
    return [float(right in completion) for right, completion in zip(answer, completions, strict=True)]


def array(completions: list[str]) -> Any:
    return np.array([len(completion) > 1 for completion in completions])


def sometimes(completions: list[str], level: list[int], **kwargs: Any) -> list[float | None]:
    return [None if one == 0 else 1.0 for one in level]


async def later(completions: list[str], completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    return [float(sum(ids)) for ids in completion_ids]


def roles(completions: list[list[dict[str, str]]], **kwargs: Any) -> list[float]:
    return [float(completion[0]["role"] == "assistant") for completion in completions]


def environment(completions: list[str], **kwargs: Any) -> list[float]:
    names = ("HF_TOKEN", "JUDGE_API_KEY", "PLAIN_SETTING")
    return [float(name in os.environ) for name in names[: len(completions)]]


def divides(completions: list[str], **kwargs: Any) -> list[float]:
    return [1 / len(completion) for completion in completions]


def exits(completions: list[str], **kwargs: Any) -> list[float]:
    sys.exit(0)


def vanishes(completions: list[str], **kwargs: Any) -> list[float]:
    os._exit(3)


def sleeps(completions: list[str], **kwargs: Any) -> list[float]:
    while True:
        try:
            time.sleep(0.01)
        except Exception:
            return [0.0] * len(completions)


def hangs(completions: list[str], pid_file: list[str], **kwargs: Any) -> list[float]:
    """Catches even the interruption, and has a child that would outlive it."""
    child = subprocess.Popen(["sleep", "600"])
    Path(pid_file[0]).write_text(f"{os.getpid()} {child.pid}")
    while True:
        try:
            child.wait()
        except BaseException:
            continue


def hungry(completions: list[str], **kwargs: Any) -> list[float]:
    return [float(len(bytearray(2**33)))] * len(completions)


def short(completions: list[str], **kwargs: Any) -> list[float]:
    return [1.0]


def words(completions: list[str], **kwargs: Any) -> list[Any]:
    return ["good"] * len(completions)


def text(completions: list[str], **kwargs: Any) -> str:
    return "1" * len(completions)


def nothing(completions: list[str], **kwargs: Any) -> None:
    return None


def nan(completions: list[str], **kwargs: Any) -> list[float]:
    return [0.0, float("nan"), 1.0][: len(completions)]


def trainers(completions: list[str], trainer_state: Any, **kwargs: Any) -> list[float]:
    return []


def wants_no_completions(prompts: list[str]) -> list[float]:
    return []


def by_position(completions: list[str], /, **kwargs: Any) -> list[float]:
    return []


NUMBER = 3
