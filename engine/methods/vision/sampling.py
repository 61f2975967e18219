"""The recipe's prompts, answered by a model that sees: an image stands in a prompt as in Markdown.

sampling:
  prompts: ["![](photos/cat.jpg) What is this?", "What can you see?"]
"""

from __future__ import annotations

import re
from typing import Any

import torch
from PIL.Image import Image
from transformers import GenerationConfig

from ...data.images import find_picture, look_at, read_picture
from ...data.messages import Message
from ...data.rows import RowError
from ...errors import WhetError
from ...models.image_tokens import fitted_size
from ...recipe import SamplingSection, VisionSection
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


def sample_events(context: RunContext, seeing: Seeing, step: int) -> None:
    """Answer a recipe's prompts, where it has any, and say what came. Raises WhetError ``sampling.image``."""
    recipe = context.recipe
    assert isinstance(recipe.method, VisionSection)
    if not recipe.sampling.prompts:
        return
    context.emit(PhaseEvent(phase="sample", detail=f"step {step}"))
    sides = (recipe.method.image_min, recipe.method.image_max)
    for prompt in recipe.sampling.prompts:
        with preserved_rng(seeing.handle.device):
            torch.manual_seed(recipe.training.seed)
            text, stopped = answer(seeing, prompt, sides, recipe.sampling, recipe.data.system)
        context.emit(SampleEvent(step=step, prompt=prompt, answer=text, stopped=stopped))


def answer(
    seeing: Seeing, prompt: str, sides: tuple[int, int], section: SamplingSection, system: str | None = None
) -> tuple[str, bool]:
    """What the model writes to a prompt, and whether it ended by itself."""
    parts, paths = parts_of(prompt)
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": parts if paths else prompt})
    try:
        pictures = [find_picture(path, None) for path in paths]
        sizes = [fitted_size(*look_at(picture), *sides) for picture in pictures]
        ids = seeing.encoder.prompt(messages, sizes)
        images = [read_picture(picture, *sides) for picture in pictures]
    except RowError as error:
        raise WhetError(
            "sampling.image",
            f"The prompt {prompt!r} cannot be asked: {error.reason}.",
            "Name an image that exists: ![](path) in sampling.prompts.",
        ) from error
    return generate(seeing, ids, images, section)


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
    """As :func:`answer`, from the ids of a prompt and its images."""
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
