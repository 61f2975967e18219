"""The recipe's prompts, answered by a model that sees: an image stands in a prompt as in Markdown.

sampling:
  prompts: ["![](photos/cat.jpg) What is this?", "What can you see?"]
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from transformers import GenerationConfig

from ...data.image_text import ConversationEncoder
from ...data.images import find_picture, read_picture
from ...data.messages import Message
from ...data.named_files import is_file, named_path
from ...data.rows import RowError
from ...errors import WhetError
from ...recipe import Recipe, SamplingSection, VisionSection
from ...runs.context import RunContext
from ...runs.events import PhaseEvent, SampleEvent
from ..random_numbers import preserved_rng
from .inputs import padded
from .loading import Seeing, in_pixels_type

IMAGE = re.compile(r"!\[[^\]]*\]\(([^)]+)\)\s*")


def parts_of(prompt: str) -> tuple[list[dict[str, Any]], list[str]]:
    """A prompt as parts of a turn, and the paths of its images."""
    parts: list[dict[str, Any]] = []
    pieces = IMAGE.split(prompt)
    for number, piece in enumerate(pieces):
        if number % 2:
            parts.append({"type": "image"})
        elif piece.strip():
            parts.append({"type": "text", "text": piece.strip()})
    return parts, pieces[1::2]


@dataclass(frozen=True)
class Asked:
    """A prompt with its images."""

    prompt: str
    ids: list[int]
    images: list[Image]


def read_prompts(recipe: Recipe, encoder: ConversationEncoder) -> list[Asked]:
    """The recipe's prompts, their images read: before the first step, so that none is missing later.

    A relative path is looked for where the worker runs, then beside the training rows.

    Raises:
        WhetError: ``sampling.image``.
    """
    method, source = recipe.method, recipe.data.train
    assert isinstance(method, VisionSection)
    sides = (method.image_min, method.image_max)
    beside = Path(source if isinstance(source, str) else source[0]).expanduser().parent
    found = []
    for prompt in recipe.sampling.prompts:
        parts, paths = parts_of(prompt)
        messages: list[Message] = [{"role": "user", "content": parts if paths else prompt}]
        if recipe.data.system:
            messages.insert(0, {"role": "system", "content": recipe.data.system})
        try:
            given = [named_path(path, "image") for path in paths]
            places = [path if is_file(path) else beside / path for path in given]
            images = [read_picture(find_picture(str(place), None), *sides) for place in places]
            ids = encoder.prompt(messages, [image.size for image in images])
        except RowError as error:
            raise WhetError(
                "sampling.image",
                f"The prompt {prompt!r} cannot be asked: {error.reason}.",
                "Name an image that exists: ![](path) in sampling.prompts.",
            ) from error
        found.append(Asked(prompt, ids, images))
    return found


def sample_events(context: RunContext, seeing: Seeing, asked: list[Asked], step: int) -> None:
    """Answer prompts, where there are any, and say what came."""
    recipe = context.recipe
    if not asked:
        return
    context.emit(PhaseEvent(phase="sample", detail=f"step {step}"))
    for one in asked:
        with preserved_rng(seeing.handle.device):
            torch.manual_seed(recipe.training.seed)
            text, stopped = generate(seeing, one.ids, one.images, recipe.sampling)
        context.emit(SampleEvent(step=step, prompt=one.prompt, answer=text, stopped=stopped))


def stop_ids(seeing: Seeing) -> list[int]:
    """Tokens that end an answer: generation_config's, the tokenizer's eos, and the template's end of turn."""
    tokenizer = seeing.handle.tokenizer
    configured = seeing.handle.model.generation_config.eos_token_id
    found = list(configured) if isinstance(configured, list | tuple) else [configured]
    end = seeing.encoder.renderer.end_of_turn
    found += [tokenizer.eos_token_id, seeing.encoder.rows.tokenizer.token_to_id(end) if end else None]
    return sorted({int(token) for token in found if token is not None})


def generate(
    seeing: Seeing, ids: list[int], images: list[Image], section: SamplingSection
) -> tuple[str, bool]:
    """What the model writes to a prompt, and whether it ended by itself."""
    handle = seeing.handle
    model, tokenizer = handle.model, handle.tokenizer
    stops = stop_ids(seeing)
    settings = GenerationConfig(
        max_new_tokens=section.max_new_tokens,
        do_sample=section.temperature > 0,
        temperature=section.temperature or 1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=stops,
        pad_token_id=handle.pad_id,
    )
    batch = padded([ids], [ids], handle.pad_id)
    del batch["labels"]
    batch = {name: value[:, : len(ids)] for name, value in batch.items()}
    batch |= seeing.inputs([images], batch["input_ids"])
    batch = {name: value.to(handle.device) for name, value in in_pixels_type(batch, handle.dtype).items()}
    training = model.training
    model.eval()
    try:
        with (
            torch.no_grad(),
            torch.autocast(handle.device.type, handle.dtype, enabled=handle.dtype != torch.float32),
        ):
            output = model.generate(**batch, generation_config=settings, use_cache=True)
    finally:
        model.train(training)
    written = output[0, len(ids) :].tolist()
    text = str(tokenizer.decode(written, skip_special_tokens=True)).strip()
    return text, bool(written) and written[-1] in stops
