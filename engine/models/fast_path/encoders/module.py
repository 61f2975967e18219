"""An encoder's own class with the fast path in front: whatever calls the model gets the fused forward pass.

The instance gets a subclass of its own class: modules, names, weights and what is saved stay what they were.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPoolingAndCrossAttentions

from ..packed import PackedTokens, pack_padded
from ..subclass import computes_alike
from .heads import HeadTexts
from .program import EncoderProgram

PLAIN = ("output_hidden_states", "output_attentions", "encoder_hidden_states", "past_key_values", "use_cache")
"""Arguments that ask for what only transformers' own encoder computes."""


class FastEncoder:
    """Mixed in before a transformers encoder; ``program`` runs packed rows."""

    program: EncoderProgram

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        head_texts: HeadTexts | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the encoder's own; padded rows go through the fast path without their padding.

        Args:
            head_texts: packed texts in place of all else; what comes back is what a head reads of them.
        """
        if head_texts is not None:
            packed, types_T = head_texts.packed, head_texts.types_T
            return self._under_head(head_texts.read(self._hidden_states(packed, types_T)))
        more: dict[str, Any] = {"position_ids": position_ids, "inputs_embeds": inputs_embeds, **kwargs}
        if token_type_ids is not None:
            more["token_type_ids"] = token_type_ids
        plain = (
            input_ids is None
            or any(more.get(name) is not None for name in ("position_ids", "inputs_embeds"))
            or any(more.get(name) for name in PLAIN)
            or kwargs.get("return_dict") is False
            or (attention_mask is not None and attention_mask.dim() != 2)
        )
        if (
            plain
            or input_ids is None
            or not computes_alike(self.program, input_ids.device.type, "apply_fast_encoder")
        ):
            return super().forward(  # type: ignore[misc]
                input_ids=input_ids, attention_mask=attention_mask, **more
            )
        packed, places = pack_padded(input_ids, attention_mask)
        types_T = None if token_type_ids is None else token_type_ids.reshape(-1)[places]
        hidden_TD = self._hidden_states(packed, types_T)
        rows, width = input_ids.shape
        flat = hidden_TD.new_zeros(rows * width, hidden_TD.shape[1]).index_copy(0, places, hidden_TD)
        return self._under_head(flat.view(rows, width, -1))

    def _hidden_states(self, packed: PackedTokens, types_T: torch.Tensor | None) -> torch.Tensor:
        device = packed.input_ids_T.device.type
        with torch.autocast(device, enabled=False):  # types are the program's own
            return self.program.hidden_states(packed, types_T)

    def _under_head(self, hidden_BTD: torch.Tensor) -> Any:
        """As transformers' encoder returns it."""
        pooler = self._modules.get("pooler", False)  # type: ignore[attr-defined]
        if pooler is False:
            return BaseModelOutput(last_hidden_state=hidden_BTD)
        pooled = None if pooler is None else pooler(hidden_BTD)
        return BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=hidden_BTD, pooler_output=pooled
        )
