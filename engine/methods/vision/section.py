"""Recipe section of vision-language models. Light: no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, ValidationInfo, model_validator

from ...export.other_models import no_gguf_of_seeing
from ...recipe_rules import is_new
from ..section import RowMethod

if TYPE_CHECKING:
    from ...recipe import AdapterSection, DataSection, ExportSection, ModelSection


class VisionSection(RowMethod):
    """Conversations with images: what the assistant says of them is learnt."""

    kind: Literal["vision"] = "vision"
    image_min: int = Field(
        300, ge=1, description="Images whose shorter side has fewer pixels are enlarged to it."
    )
    image_max: int = Field(
        1000,
        ge=1,
        description="Images whose longer side has more pixels are made smaller; the sides' ratio stays.",
    )
    finetune_vision_layers: bool = Field(
        True, description="Train the image encoder and the projector behind it."
    )
    finetune_language_layers: bool = Field(True, description="Train the language model.")
    finetune_attention_modules: bool = Field(True, description="Adapt the attention layers of what trains.")
    finetune_mlp_modules: bool = Field(
        True, description="Adapt the MLPs of what trains, the projector's layers among them."
    )

    supervise: ClassVar[Literal["responses", "all"]] = "responses"

    @model_validator(mode="after")
    def _trains_something(self, info: ValidationInfo) -> VisionSection:
        """Refuse switches that leave nothing to train, and sizes that no image can have."""
        if not is_new(info):
            return self
        if not (self.finetune_vision_layers or self.finetune_language_layers):
            raise ValueError(
                "method.finetune_vision_layers and method.finetune_language_layers are both false: nothing "
                "would train."
            )
        if not (self.finetune_attention_modules or self.finetune_mlp_modules):
            raise ValueError(
                "method.finetune_attention_modules and method.finetune_mlp_modules are both false: nothing "
                "would train."
            )
        if self.image_min > self.image_max:
            raise ValueError(f"method.image_min={self.image_min} is above method.image_max={self.image_max}.")
        return self

    def check_recipe(
        self, model: ModelSection, adapter: AdapterSection, export: ExportSection, data: DataSection
    ) -> None:
        """Refuse what is not made of models that see images. Raises ValueError, naming the settings."""
        asked = [one for one in ("gguf", "adapter_gguf", "merged_4bit", "fp8") if getattr(export, one)]
        if asked:
            refusal = no_gguf_of_seeing()
            raise ValueError(f"export.{asked[0]} with method.kind=vision: {refusal.message} {refusal.hint}")
        if model.precision == "fp8" or model.products == "fp8":
            raise ValueError("method.kind=vision does not train on FP8 weights. Use model.precision=nf4.")
        if "int8" in (model.embedding_precision, model.head_precision) or "nf4" in (
            model.embedding_precision,
            model.head_precision,
        ):
            raise ValueError(
                "method.kind=vision holds embedding and head in 16 bits. Leave model.embedding_precision and "
                "model.head_precision out."
            )
        if adapter.kind == "none" and not (self.finetune_attention_modules and self.finetune_mlp_modules):
            raise ValueError(
                "method.finetune_attention_modules and method.finetune_mlp_modules choose layers for an "
                "adapter; adapter.kind=none trains all weights of what trains."
            )
        if data.format not in ("auto", "messages"):
            raise ValueError(f"data.format={data.format} has no images. Leave it out, or use messages.")
