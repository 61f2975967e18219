"""A vision-language model ready to train: the model, its image processor, an adapter on the chosen layers."""

from __future__ import annotations

import math
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageTextToText

from ...data.chat_templates.renderer import strip_generation_tags
from ...data.image_store import folder_encoder
from ...data.image_text import ConversationEncoder
from ...data.tokenization import template_source
from ...errors import WhetError
from ...models.adapters import add_adapter, hold_trained_in_fp32
from ...models.end_tokens import add_end_tokens
from ...models.loading import LoadSettings, ModelHandle, load_model
from ...plan import Plan
from ...recipe import AdapterSection, VisionSection
from .inputs import ImageInputs
from .layers import Switches, chosen_layers, named_layers, part_of

UNROUNDED = tuple(
    rf"(.*\.)?{name}" for name in ("vision_tower", "vision_model", "visual", "multi_modal_projector")
)
"""They stay in 16 bits: they are a small part of the model, and what they lose every token sees."""
LAYER = re.compile(r"\.layers\.(\d+)\.")
PROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
    "chat_template.jinja",
)


@dataclass
class Seeing:
    """A loaded model with what prepares its images and texts."""

    handle: ModelHandle
    encoder: ConversationEncoder
    inputs: ImageInputs
    more_ends: bool = False
    """The plan's end tokens changed the model's generation settings."""


def load_seeing(
    path: Path, settings: LoadSettings, *, trust_remote_code: bool = False, template: str | None = None
) -> Seeing:
    """Model and image processor of a local directory; nothing adapted.

    Args:
        path: the directory.
        settings: device, compute type and how the base weights are held.
        trust_remote_code: run Python code that came with the model; only by a person's explicit choice.
        template: name or text of the chat template in force; None is the model's own.

    Raises:
        WhetError: ``vision.*``, and those of :func:`whet.engine.models.loading.load_model`.
    """
    encoder = folder_encoder(path, template)
    inputs = ImageInputs.of(encoder.images, load_image_processor(path))
    handle = load_model(
        path,
        settings,
        template=None if template is None else strip_generation_tags(template_source(template, None) or ""),
        trust_remote_code=trust_remote_code,
        auto=AutoModelForImageTextToText,
        unrounded=UNROUNDED,
    )
    return Seeing(handle, encoder, inputs)


def load_image_processor(path: Path) -> Any:
    """transformers' image processor of a folder, on Pillow: the same pixels on every machine.

    Raises:
        WhetError: ``vision.files``.
    """
    try:
        return AutoImageProcessor.from_pretrained(path, local_files_only=True, backend="pil")
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise WhetError(
            "vision.files",
            f"The image processor of {path} cannot be loaded: {str(error).strip().splitlines()[0]}",
            "Check that the folder holds preprocessor_config.json, as the model's own does.",
        ) from error


def load_planned(plan: Plan, path: Path, trust_remote_code: bool = False) -> Seeing:
    """The model of a plan with a fresh adapter, or with all weights that train in fp32."""
    recipe = plan.recipe
    assert isinstance(recipe.method, VisionSection)
    seeing = load_seeing(
        path, plan.resolved, trust_remote_code=trust_remote_code, template=plan.data_recipe().data.template
    )
    handle = seeing.handle
    seeing.more_ends = add_end_tokens(handle.model, handle.tokenizer, recipe.model.end_tokens)
    if recipe.adapter.kind == "none":
        train_parts(handle.model, recipe.method)
        hold_trained_in_fp32(handle.model)
        return seeing
    name = recipe.model.name
    base = str(path) if Path(name).exists() else name
    handle.model = adapt(
        handle.model,
        recipe.adapter,
        recipe.method,
        recipe.training.seed,
        base=base,
        revision=recipe.model.revision,
    )
    return seeing


def adapt(
    model: Any,
    section: AdapterSection,
    switches: Switches,
    seed: int,
    *,
    base: str = "",
    revision: str | None = None,
) -> Any:
    """Put a fresh adapter on the layers that the switches choose, of those that ``section`` names.

    Raises:
        WhetError: ``adapter.*``.
    """
    layers = chosen_layers(linear_layers(model), switches, named_layers(section))
    chosen = section.model_copy(update={"target_modules": layers})
    return add_adapter(model, chosen, seed, name=base, revision=revision)


def linear_layers(model: Any) -> list[str]:
    """Paths of all linear layers on the way to the answer, quantised ones too.

    LLaVA takes the features of the encoder's last layer but one: nothing reads the last.
    """
    config, last = model.config, math.inf
    read = config.vision_feature_layer if config.model_type == "llava" else None
    if isinstance(read, int) and read < 0:
        last = config.vision_config.num_hidden_layers + read

    def is_read(path: str) -> bool:
        found = LAYER.search(path)
        return found is None or part_of(path) == "language" or int(found[1]) <= last

    found = [path for path, part in model.named_modules() if isinstance(part, nn.Linear)]
    return [path for path in found if is_read(path)]


def train_parts(model: nn.Module, switches: Switches) -> None:
    """Let all weights of the chosen parts train, and no others."""
    trains = {"vision": switches.finetune_vision_layers, "language": switches.finetune_language_layers}
    for path, param in model.named_parameters():
        param.requires_grad = trains[part_of(path)] and param.is_floating_point()


def copy_processor(base: Path, folder: Path) -> None:
    """The files that prepare images, beside what was trained: AutoProcessor then loads from there."""
    for name in PROCESSOR_FILES:
        if (base / name).is_file() and not (folder / name).exists():
            shutil.copyfile(base / name, folder / name)


def in_pixels_type(batch: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Pixels in the type that the model computes in."""
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in batch.items()}
