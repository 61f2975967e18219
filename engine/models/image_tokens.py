"""How many tokens an image becomes in each family of vision-language models: arithmetic on sizes, no pixels.
Light.

A chat template writes one placeholder for an image; here is what stands in its place when the model reads it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import WhetError

Kind = Literal["fixed", "rows", "grid", "framed", "cross"]

KINDS: dict[str, Kind] = {
    "llava": "fixed",
    "mistral3": "rows",
    "qwen2_vl": "grid",
    "qwen2_5_vl": "grid",
    "qwen3_vl": "grid",
    "qwen3_vl_moe": "grid",
    "gemma3": "framed",
    "mllama": "cross",
}
"""model_type -> how its images are written: always as many tokens; rows of patches with a break behind each;
merged patches of a grid; always as many between two marks; one token, seen through cross-attention."""
VISION = re.compile(r"(^|\.)(vision_tower|vision_model|visual|multi_modal_projector)(\.|$)")
"""In the path of a module or a weight: it belongs to the image encoder or the projector behind it."""
WITH_CLASS_TOKEN = ("clip", "clip_vision_model")
IMAGE_TOKEN = ("image_token_id", "image_token_index")
LONGEST_RATIO = 200
"""Of an image's sides, for the grid families."""


@dataclass(frozen=True)
class ImageTokens:
    """A family's way to write images, with the sizes of one model.

    Args:
        kind: see :data:`KINDS`.
        placeholder: what the chat template writes for an image.
        filler: the token whose embeddings image features replace.
        filler_id: its id.
        marks: other tokens that stand around or inside an image.
        count: tokens of an image, where that is always the same.
        patch: side of a patch, in pixels.
        merge: side of a square of patches that become one token.
        sides: pixels of the image as the encoder takes it, where that is always the same; of a tile.
        tiles: most tiles of an image.
        bounds: fewest and most pixels of an image in a grid; longest side of one in rows.
        extra: tokens of the encoder beside its patches.
    """

    kind: Kind
    placeholder: str
    filler: str
    filler_id: int
    marks: tuple[str, ...] = ()
    count: int = 1
    patch: int = 14
    merge: int = 1
    sides: tuple[int, int] = (0, 0)
    tiles: int = 1
    bounds: tuple[int, int] = (0, 0)
    extra: int = 0

    @property
    def reserved(self) -> tuple[str, ...]:
        """Tokens that stand for images: no text may hold them, and nothing learns to write them."""
        return tuple(dict.fromkeys((self.placeholder, self.filler, *self.marks)))

    def seen(self, width: int, height: int) -> tuple[int, int]:
        """Pixels (height, width) of the image as the encoder takes it.

        Raises:
            ValueError: an image much longer than wide, which grid families do not take.
        """
        if self.kind == "grid":
            return _grid_size(width, height, self.patch * self.merge, *self.bounds)
        if self.kind == "rows":
            return _row_size(width, height, self.patch * self.merge, self.bounds[1])
        return self.sides

    def text(self, width: int, height: int) -> str:
        """What an image of this size (pixels) is written as. Raises ValueError as :meth:`seen`."""
        if self.kind == "grid":
            down, across = (side // (self.patch * self.merge) for side in self.seen(width, height))
            return self.filler * (down * across)
        if self.kind == "rows":
            down, across = (side // (self.patch * self.merge) for side in self.seen(width, height))
            line, end = self.marks
            whole = (self.filler * across + line) * down
            return whole.removesuffix(line) + end
        if self.kind == "framed":
            begin, end = self.marks
            return f"\n\n{begin}{self.filler * self.count}{end}\n\n"
        return self.filler * self.count

    def patches(self, width: int, height: int) -> int:
        """What the encoder reads of an image of this size, in its own tokens. Raises as :meth:`seen`."""
        down, across = (side // self.patch for side in self.seen(width, height))
        return self.tiles * (down * across + self.extra)


def image_token_id(folder: Path) -> int:
    """Of a model that sees; -1 for any other."""
    return _first(_json(folder / "config.json"), *IMAGE_TOKEN, default=-1)


def read_image_tokens(folder: Path, token_of: Callable[[int], str | None]) -> ImageTokens:
    """Of a model's folder.

    Args:
        folder: with config.json and the image processor's files.
        token_of: a token's text by its id.

    Raises:
        WhetError: ``vision.family`` for a model of another family, or without images; ``vision.files``.
    """
    processor = _json(folder / "processor_config.json")
    image = _json(folder / "preprocessor_config.json") or processor.get("image_processor") or {}
    config = _json(folder / "config.json")
    if not image and config.get("model_type") in KINDS:
        raise WhetError(
            "vision.files",
            f"{folder} has no preprocessor_config.json, so how its images are prepared is not known.",
            "Use a model directory with its processor's files.",
        )
    return image_tokens(config, image, processor, token_of)


def image_tokens(
    config: Mapping[str, Any],
    image: Mapping[str, Any],
    processor: Mapping[str, Any],
    token_of: Callable[[int], str | None],
) -> ImageTokens:
    """From the three configurations of a model: its own, its image processor's and its processor's.

    Raises:
        WhetError: ``vision.family``.
    """
    model_type, tower = str(config.get("model_type", "")), dict(config.get("vision_config") or {})
    kind = KINDS.get(model_type)
    if kind is None or not tower:
        raise WhetError(
            "vision.family",
            f"method.kind=vision does not know how model_type={model_type or None!r} reads images.",
            f"It trains {', '.join(KINDS)} (Llama-Vision, LLaVA, Pixtral, Mistral 3, Qwen-VL, Gemma 3). "
            "For text alone use method.kind=sft.",
        )
    if kind == "fixed" and tower.get("model_type") == "pixtral":
        kind = "rows"
    filler_id = _first(config, *IMAGE_TOKEN, default=-1)
    filler = token_of(filler_id)
    if filler is None:
        raise WhetError(
            "vision.family",
            f"config.json names {filler_id} as the image token, which the tokenizer does not have.",
            "Use the tokenizer that belongs to the model.",
        )
    make = {"fixed": _fixed, "rows": _rows, "grid": _grid, "framed": _framed, "cross": _cross}[kind]
    return ImageTokens(
        kind,
        **({"placeholder": filler} | make(config, tower, image, processor, token_of)),
        filler=filler,
        filler_id=filler_id,
    )


def _fixed(config: Any, tower: Any, image: Any, processor: Any, token_of: Any) -> dict[str, Any]:
    patch = _first(tower, "patch_size", default=14)
    crops = image.get("do_center_crop", tower.get("model_type") in WITH_CLASS_TOKEN)
    sides = _sides(image.get("crop_size" if crops else "size"), _first(tower, "image_size", default=336))
    extra = 1 if tower.get("model_type") in WITH_CLASS_TOKEN else 0
    strategy = config.get("vision_feature_select_strategy", "default")
    count = (sides[0] // patch) * (sides[1] // patch) + extra - (strategy == "default")
    return {"patch": patch, "sides": sides, "count": count, "extra": extra}


def _rows(config: Any, tower: Any, image: Any, processor: Any, token_of: Any) -> dict[str, Any]:
    size = image.get("size") or {}
    return {
        "patch": _first(tower, "patch_size", default=16),
        "merge": _first(config, "spatial_merge_size", default=2 if config["model_type"] == "mistral3" else 1),
        "bounds": (0, int(size.get("longest_edge", 1024))),
        "marks": (
            processor.get("image_break_token", "[IMG_BREAK]"),
            processor.get("image_end_token", "[IMG_END]"),
        ),
    }


def _grid(config: Any, tower: Any, image: Any, processor: Any, token_of: Any) -> dict[str, Any]:
    size = image.get("size") or {}
    least = image.get("min_pixels") or size.get("shortest_edge") or 56 * 56
    most = image.get("max_pixels") or size.get("longest_edge") or 28 * 28 * 1280
    return {
        "patch": _first(image, "patch_size", default=14),
        "merge": _first(image, "merge_size", default=2),
        "bounds": (int(least), int(most)),
    }


def _framed(config: Any, tower: Any, image: Any, processor: Any, token_of: Any) -> dict[str, Any]:
    begin = token_of(_first(config, "boi_token_id", "boi_token_index", default=-1)) or "<start_of_image>"
    end = token_of(_first(config, "eoi_token_id", "eoi_token_index", default=-1)) or "<end_of_image>"
    return {
        "placeholder": begin,
        "marks": (begin, end),
        "count": _first(config, "mm_tokens_per_image", default=256),
        "patch": _first(tower, "patch_size", default=14),
        "sides": _sides(image.get("size"), _first(tower, "image_size", default=896)),
    }


def _cross(config: Any, tower: Any, image: Any, processor: Any, token_of: Any) -> dict[str, Any]:
    return {
        "patch": _first(tower, "patch_size", default=14),
        "sides": _sides(image.get("size"), _first(tower, "image_size", default=448)),
        "tiles": _first(image, "max_image_tiles", default=4),  # smaller images are padded to as many
        "extra": 1,
    }


def _grid_size(width: int, height: int, step: int, least: int, most: int) -> tuple[int, int]:
    """Sides divisible by ``step``, their product within bounds, their ratio about that of the image."""
    if max(width, height) > LONGEST_RATIO * min(width, height):
        raise ValueError(f"its sides are {width} and {height} pixels, more than {LONGEST_RATIO} to 1")
    sides = [round(side / step) * step for side in (height, width)]
    if math.prod(sides) > most:
        shrink = math.sqrt(height * width / most)
        sides = [max(step, math.floor(side / shrink / step) * step) for side in (height, width)]
    elif math.prod(sides) < least:
        grow = math.sqrt(least / (height * width))
        sides = [math.ceil(side * grow / step) * step for side in (height, width)]
    return sides[0], sides[1]


def _row_size(width: int, height: int, step: int, longest: int) -> tuple[int, int]:
    """Sides of at most ``longest`` pixels, rounded up to whole patches."""
    ratio = max(height / longest, width / longest, 1.0)
    down, across = (max(1, math.ceil(math.floor(side / ratio) / step)) for side in (height, width))
    return down * step, across * step


def fitted_size(width: int, height: int, least: int, most: int) -> tuple[int, int]:
    """Width and height for an image whose sides shall have ``least`` to ``most`` pixels, the ratio kept.

    A long narrow image is no longer than ``most``, however short its other side then is.
    """
    scale = min(max(1.0, least / min(width, height)), most / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _sides(size: Any, default: int) -> tuple[int, int]:
    """(height, width) from any of the ways to write it."""
    if isinstance(size, int):
        return size, size
    size = size or {}
    edge = int(size.get("shortest_edge") or default)
    return int(size.get("height") or edge), int(size.get("width") or edge)


def _first(config: Mapping[str, Any], *keys: str, default: int) -> int:
    value = next((config[key] for key in keys if config.get(key) is not None), default)
    return int(value.get("height", default)) if isinstance(value, Mapping) else int(value)


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    value: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return value
