"""Tiny random vision-language models of each family, with tokenizer, template and image processor; pictures.

    from support.tiny_vision import SEEING, build_seeing, colour, colour_rows

Templates have the forms found in the wild: contents as lists only (LLaVA), texts or lists, system messages.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from tokenizers import AddedToken, Tokenizer

from .tiny_models import BOS, EOS, PAD, TURN_END, write_tokenizer

TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.08,
}
TOWER: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "initializer_range": 0.2}
LAYERS: dict[str, Any] = TOWER | {"num_hidden_layers": 2, "num_attention_heads": 2}
SIDE = 28

TURNS = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}PLACE{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
    "<|turn_end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
LISTS = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}"
    "{% endif %}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ 'PLACE\n' }}{% endfor %}{% for content in message['content'] | "
    "selectattr('type', 'equalto', 'text') %}{{ content['text'] + '<|turn_end|> ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


@dataclass(frozen=True)
class SeeingFamily:
    """What is built for one family."""

    tokens: tuple[str, ...]
    """Special tokens of images; the first is the image token, which the template writes unless told."""
    config: Callable[[dict[str, int]], dict[str, Any]]
    model_type: str
    image: tuple[str, dict[str, Any]]
    """Class of the image processor below ``transformers.models`` and its settings."""
    place: str | None = None
    template: str = TURNS
    processor: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] = field(default_factory=dict)


def _nested(
    text_type: str, vision: dict[str, Any], **more: Any
) -> Callable[[dict[str, int]], dict[str, Any]]:
    def made(ids: dict[str, int]) -> dict[str, Any]:
        names = {"bos_token_id": ids[BOS], "eos_token_id": ids[EOS], "pad_token_id": ids[PAD]}
        text = TEXT | {"model_type": text_type, "vocab_size": ids["rows"]} | names
        extra = {
            key: ids.get(value, value) if isinstance(value, str) else value
            for key, value in more.items()
            if key != "text"
        }
        return {"text_config": text | more.get("text", {}), "vision_config": vision, **extra}

    return made


CLIP = ("clip.image_processing_pil_clip:CLIPImageProcessorPil",
        {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}})  # fmt: skip
PIXTRAL = ("pixtral.image_processing_pil_pixtral:PixtralImageProcessorPil",
           {"size": {"longest_edge": 64}, "patch_size": {"height": 8, "width": 8}})  # fmt: skip
QWEN = "qwen2_vl.image_processing_pil_qwen2_vl:Qwen2VLImageProcessorPil"
QWEN_TOKENS = ("<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>")
QWEN_IDS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
QWEN_PLACE = "<|vision_start|><|image_pad|><|vision_end|>"
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}

SEEING: dict[str, SeeingFamily] = {
    "llava": SeeingFamily(
        ("<image>",),
        _nested(
            "llama",
            LAYERS | {"model_type": "clip_vision_model", "image_size": SIDE, "patch_size": 14},
            image_token_index="<image>",
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
        ),
        "llava",
        CLIP,
        template=LISTS,
        processor={"processor_class": "LlavaProcessor", "patch_size": 14, "num_additional_image_tokens": 1,
                   "vision_feature_select_strategy": "default", "image_token": "<image>"},
    ),
    "pixtral": SeeingFamily(
        ("[IMG]", "[IMG_BREAK]", "[IMG_END]"),
        _nested(
            "mistral",
            LAYERS | {"model_type": "pixtral", "image_size": 64, "patch_size": 8, "head_dim": 16},
            image_token_index="[IMG]",
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        ),
        "llava",
        PIXTRAL,
        processor={"processor_class": "PixtralProcessor", "patch_size": 8},
    ),
    "mistral3": SeeingFamily(
        ("[IMG]", "[IMG_BREAK]", "[IMG_END]"),
        _nested(
            "mistral",
            LAYERS | {"model_type": "pixtral", "image_size": 64, "patch_size": 8, "head_dim": 16},
            image_token_index="[IMG]",
            spatial_merge_size=2,
        ),
        "mistral3",
        PIXTRAL,
        processor={"processor_class": "PixtralProcessor", "patch_size": 8, "spatial_merge_size": 2},
    ),
    "qwen2_5_vl": SeeingFamily(
        QWEN_TOKENS,
        _nested(
            "qwen2_5_vl_text",
            TOWER | {"depth": 2, "num_heads": 2, "out_hidden_size": 64, "patch_size": 14, "window_size": 56,
                     "fullatt_block_indexes": [1]},
            text={"rope_parameters": MROPE},
            **QWEN_IDS,
        ),
        "qwen2_5_vl",
        (QWEN, {"size": {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16}}),
        place=QWEN_PLACE,
        processor={"processor_class": "Qwen2_5_VLProcessor"},
    ),
    "qwen3_vl": SeeingFamily(
        QWEN_TOKENS,
        _nested(
            "qwen3_vl_text",
            TOWER | {"depth": 2, "num_heads": 2, "out_hidden_size": 64, "patch_size": 16,
                     "deepstack_visual_indexes": [0], "num_position_embeddings": 64},
            text={"rope_parameters": MROPE, "head_dim": 16},
            **QWEN_IDS,
        ),
        "qwen3_vl",
        (QWEN, {"size": {"shortest_edge": 32 * 32, "longest_edge": 32 * 32 * 16}, "patch_size": 16}),
        place=QWEN_PLACE,
        processor={"processor_class": "Qwen3VLProcessor"},
    ),
    "gemma3": SeeingFamily(
        ("<image_soft_token>", "<start_of_image>", "<end_of_image>"),
        _nested(
            "gemma3_text",
            LAYERS | {"model_type": "siglip_vision_model", "image_size": SIDE, "patch_size": 14,
                      "vision_use_head": False},
            image_token_index="<image_soft_token>",
            boi_token_index="<start_of_image>",
            eoi_token_index="<end_of_image>",
            mm_tokens_per_image=4,
            text={"head_dim": 16, "query_pre_attn_scalar": 16},
        ),
        "gemma3",
        ("gemma3.image_processing_pil_gemma3:Gemma3ImageProcessorPil",
         {"size": {"height": SIDE, "width": SIDE}}),
        place="<start_of_image>",
        processor={"processor_class": "Gemma3Processor", "image_seq_length": 4},
    ),
    "mllama": SeeingFamily(
        ("<|image|>", "<|python_tag|>"),
        _nested(
            "mllama_text_model",
            TOWER | {"model_type": "mllama_vision_model", "num_hidden_layers": 2, "num_global_layers": 1,
                     "attention_heads": 2, "image_size": SIDE, "patch_size": 14, "max_num_tiles": 4,
                     "intermediate_layers_indices": [0, 1], "vision_output_dim": 96,
                     "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1],
                                                 [4, 1]]},
            image_token_index="<|image|>",
            text={"cross_attention_layers": [1]},
        ),
        "mllama",
        ("mllama.image_processing_pil_mllama:MllamaImageProcessorPil",
         {"size": {"height": SIDE, "width": SIDE}, "max_image_tiles": 4}),
        processor={"processor_class": "MllamaProcessor"},
    ),
}  # fmt: skip


def build_seeing(path: Path | str, name: str, seed: int = 0, **changes: Any) -> Path:
    """Write model, tokenizer and processor files of one family; returns ``path``."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

    path, family = Path(path), SEEING[name]
    path.mkdir(parents=True, exist_ok=True)
    ids = _tokenizer(path, family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = CONFIG_MAPPING[family.model_type](**family.config(ids) | changes)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim <= 1 or not parameter.any():  # gates, Gemma's projection: off their zeros
                    parameter.add_(0.2 * torch.randn_like(parameter))
    model.generation_config.eos_token_id = [ids[TURN_END], ids[EOS]]
    model.generation_config.pad_token_id = ids[PAD]
    model.save_pretrained(path)
    image_processor(name).save_pretrained(path)
    (path / "processor_config.json").write_text(json.dumps(family.processor), encoding="utf-8")
    return path


def image_processor(name: str) -> Any:
    """transformers' own, with the family's settings."""
    from importlib import import_module

    place, settings = SEEING[name].image
    module, kind = place.split(":")
    return getattr(import_module(f"transformers.models.{module}"), kind)(**settings)


def _tokenizer(path: Path, family: SeeingFamily) -> dict[str, int]:
    ids = write_tokenizer(path)
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in family.tokens])
    tokenizer.save(str(path / "tokenizer.json"))
    file = path / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings["chat_template"] = family.template.replace("PLACE", family.place or family.tokens[0])
    if family.model_type == "gemma3":
        names = ("image_token", "boi_token", "eoi_token")
        settings["extra_special_tokens"] = dict(zip(names, family.tokens, strict=True))
    file.write_text(json.dumps(settings), encoding="utf-8")
    vocabulary = tokenizer.get_vocab()
    more = {token: vocabulary[token] for token in family.tokens}
    return {**ids, **more, "rows": tokenizer.get_vocab_size()}


def colour(name: str, size: tuple[int, int] = (28, 28)) -> Image.Image:
    """A picture of one colour."""
    return Image.new("RGB", size, name)


def colour_rows(folder: Path, count: int = 16, seed: int = 0) -> Path:
    """The same question about red and blue pictures: only what is seen tells the answer."""
    draw = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "colours.jsonl"
    with open(file, "w", encoding="utf-8") as out:
        for number in range(count):
            red = number % 2 == 0
            shade = draw.randint(180, 255)
            picture = Image.new("RGB", (28, 28), (shade, 0, 0) if red else (0, 0, shade))
            picture.save(folder / f"{number}.png")
            user = [{"type": "image", "image": f"{number}.png"}, {"type": "text", "text": "Which one?"}]
            turns = [
                {"role": "user", "content": user},
                {"role": "assistant", "content": "red" if red else "blue"},
            ]
            out.write(json.dumps({"messages": turns}) + "\n")
    return file
