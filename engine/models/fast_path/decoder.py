"""The decoder of a causal model, on the fast path wherever that computes the same.

The instance gets a subclass of its own class, as torch's ``fully_shard`` does it: modules, names, weights and
everything saved stay what they were, and generation with a cache runs transformers' own code.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPast, MoeModelOutputWithPast

from .packed import pack_padded
from .program import DecoderProgram
from .subclass import computes_alike

PLAIN_OUTPUTS = ("output_hidden_states", "output_attentions", "output_router_logits")
"""Arguments that ask for what only transformers' own decoder returns."""


class FastDecoder:
    """Mixed in before a transformers decoder; ``program`` runs packed rows."""

    program: DecoderProgram

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the decoder's own; whole padded rows without a cache go through the fast path."""
        plain = (
            input_ids is None
            or past_key_values is not None
            or inputs_embeds is not None
            or position_ids is not None
            or use_cache
            or (use_cache is None and not torch.is_grad_enabled())
            or (attention_mask is not None and attention_mask.dim() != 2)
            or any(kwargs.get(name) for name in PLAIN_OUTPUTS)
        )
        if (
            plain
            or input_ids is None
            or not computes_alike(self.program, input_ids.device.type, "apply_fast_path")
        ):
            return super().forward(  # type: ignore[misc]
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                inputs_embeds=inputs_embeds,
                use_cache=use_cache,
                **kwargs,
            )
        packed, places = pack_padded(input_ids, attention_mask)
        with torch.autocast(input_ids.device.type, enabled=False):  # types are the program's own
            hidden_TD = self.program.hidden_states(packed)
        rows, width = input_ids.shape
        flat = hidden_TD.new_zeros(rows * width, hidden_TD.shape[1]).index_copy(0, places, hidden_TD)
        output = MoeModelOutputWithPast if any(self.program.settings.sparse) else BaseModelOutputWithPast
        return output(last_hidden_state=flat.view(rows, width, -1))
