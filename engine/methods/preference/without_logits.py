"""CPO's and ORPO's forward pass by the head that TRL gives to DPO: no logits of whole batches."""

from __future__ import annotations

from typing import Any

import torch
from trl.trainer.utils import add_fused_lm_head

from ...data.masking import IGNORE
from ...models.fast_path import causal_model


class WithoutLogits:
    """Goes before one of the two trainers among a class's bases.

    Of the mean logits that they note down, those of the answers' tokens count, as DPO has it.
    """

    sparing = True
    """Off: the trainer's own way, for a model that TRL's head is not made for."""
    learns_prompts = False
    """The chosen conversation's own loss counts its prompt too."""

    def put_head(self, model: Any) -> None:
        """Let the model answer for log-probabilities; after the base class's constructor."""
        add_fused_lm_head(causal_model(model), outputs=("log_probs", "mean_logits"))

    def takes_means(self) -> bool:
        """Answers are compared by their mean log-probability a token, not by the sum."""
        return True

    def rows_of(self, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Ids, attention mask and answers' mask (2B, T) of a batch by TRL's collator, chosen ones first."""
        own: Any = self
        filler = own.processing_class.pad_token_id
        both = own.concatenated_inputs(batch, padding_value=filler, device=own.args.device)
        ids, attended = both["concatenated_input_ids"], both["concatenated_attention_mask"]
        return ids, attended, both["concatenated_labels"] != IGNORE

    def concatenated_forward(self, model: Any, batch: dict[str, Any]) -> Any:
        """Log-probabilities and mean logits of chosen and rejected answers, and the chosen ones' own loss."""
        own: Any = self
        if not self.sparing:
            plain: Any = super()
            return plain.concatenated_forward(model, batch)
        ids, attended, answered = self.rows_of(batch)
        learnt = attended if self.learns_prompts else answered
        more = {"output_router_logits": True} if own.aux_loss_enabled else {}
        found = model(
            input_ids=ids,
            attention_mask=attended,
            labels=ids.masked_fill(learnt == 0, IGNORE),
            fused_lm_head=True,
            **more,
        )
        answers = answered[:, 1:]
        logps = (found.log_probs * answers).sum(1)
        if self.takes_means():
            logps = logps / answers.sum(1)
        half = len(ids) // 2
        loss = -found.log_probs[:half].sum() / learnt[:half, 1:].sum()
        parts = (logps[:half], logps[half:], found.mean_logits[:half], found.mean_logits[half:], loss)
        return (*parts, found.aux_loss) if own.aux_loss_enabled else parts


class OddsWithoutLogits(WithoutLogits):
    """ORPO's."""

    learns_prompts = True


class ContrastWithoutLogits(WithoutLogits):
    """CPO's and SimPO's."""

    def takes_means(self) -> bool:
        """SimPO does, and CPO's form of IPO."""
        own: Any = self
        return own.loss_type in ("simpo", "ipo")
