"""Collators that scripts bring along, tried on one row before they are trusted with all."""

from __future__ import annotations

from typing import Any

from transformers import DataCollatorForLanguageModeling

from ..data.masking import IGNORE
from ..findings import Finding, Fix
from ..methods.sampling import end_of_turn_id


def collator_findings(collator: Any, tokenizer: Any) -> list[Finding]:
    """D07 where a collator takes the end of an answer for padding, because both are the same id.

    Args:
        collator: as given to the trainer; only transformers' collator for language modelling is tried, which
            makes labels of its own from ``input_ids`` and masks them by the id of the pad token.
        tokenizer: of the model.
    """
    if not isinstance(collator, DataCollatorForLanguageModeling) or collator.mlm:
        return []
    ends = [id for id in (end_of_turn_id(tokenizer), tokenizer.eos_token_id) if id is not None]
    if not ends or tokenizer.pad_token_id is None:
        return []
    first = next(id for id in range(len(tokenizer)) if id not in ends)
    labels = collator([{"input_ids": [first, ends[0]]}])["labels"][0].tolist()
    if labels[1] != IGNORE:
        return []
    token = tokenizer.convert_ids_to_tokens(ends[0])
    return [
        Finding(
            id="D07",
            severity="warning",
            title=f"{type(collator).__name__} masks {token} as padding: no answer's end is learnt.",
            evidence={"end_id": ends[0], "pad_token_id": tokenizer.pad_token_id, "label": labels[1]},
            fix=Fix(
                text="Leave data_collator out: whet masks by attention, not by id. Else give the tokenizer a "
                "pad_token of its own."
            ),
        )
    ]
