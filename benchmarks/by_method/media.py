"""Sounds and pictures of noise, as files beside the rows that name them. Light."""

from __future__ import annotations

import random
import wave
from pathlib import Path
from typing import Any

RATE = 16000
"""Samples a second."""


def write_sounds(rows: list[dict[str, Any]], folder: Path) -> None:
    """A second to nearly three of noise a row: within the smallest model's window."""
    draw = random.Random(5)
    for row in rows:
        with wave.open(str(folder / row["audio"]), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE)
            file.writeframes(draw.randbytes(2 * draw.randint(RATE, 14 * RATE // 5)))


def write_pictures(rows: list[dict[str, Any]], folder: Path) -> None:
    """Of 160 x 120 pixels."""
    from PIL import Image

    for number, row in enumerate(rows):
        Image.effect_noise((160, 120), 60 + number % 100).convert("RGB").save(folder / row["image"])
