"""A LLaVA of random weights, and TRL's training of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from cases import ALPHA, DECODER, RANK


def make_seeing(folder: Path, text: dict[str, Any], tower: dict[str, Any]) -> None:
    """A LLaVA of such a language model and image encoder, with a tokenizer and what prepares images."""
    from support import tiny_vision

    family, side = tiny_vision.SEEING["llava"], tower["image_size"]

    def larger(ids: dict[str, int]) -> dict[str, Any]:
        made = family.config(ids)
        return made | {"text_config": made["text_config"] | text, "vision_config": tower}

    tiny_vision.SEEING["llava"] = replace(
        family,
        template=tiny_vision.TURNS,
        image=(
            family.image[0],
            {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}},
        ),
        config=larger,
    )
    tiny_vision.build_seeing(folder, "llava")


def trl_trainer(
    model: Any, files: Path, folder: Path, read: list[dict[str, Any]], settings: dict[str, Any]
) -> Any:
    """TRL's, of a model whose files lie in ``files``, on rows whose images lie in ``folder``."""
    from datasets import Dataset
    from datasets import Image as ImageFeature
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from transformers.models.llava.processing_llava import LlavaProcessor
    from trl import SFTConfig, SFTTrainer

    from whet.engine.methods.vision.loading import load_image_processor

    tokenizer = AutoTokenizer.from_pretrained(files)
    processor = LlavaProcessor(
        load_image_processor(files), tokenizer, patch_size=14, num_additional_image_tokens=1,
        vision_feature_select_strategy="default", chat_template=tokenizer.chat_template,
    )  # fmt: skip
    rows = Dataset.from_list(
        [
            {
                "images": [str(folder / row["image"])],
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "completion": [{"role": "assistant", "content": row["completion"]}],
            }
            for row in read
        ]
    ).cast_column("images", [ImageFeature()])
    targets = rf"model\.language_model\..*\.({'|'.join(DECODER)})"
    return SFTTrainer(
        model,
        SFTConfig(**settings, max_length=None, completion_only_loss=True),
        train_dataset=rows,
        processing_class=processor,
        peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets),
    )
