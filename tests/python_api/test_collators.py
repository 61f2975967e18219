"""A collator that masks by id is told apart from one that masks by attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, DataCollatorForLanguageModeling, DataCollatorForSeq2Seq

from whet.engine.python_api.collators import collator_findings


@pytest.fixture
def tokenizer(tiny_llama: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_llama)


@pytest.mark.parametrize(("pad", "ids"), [("<|pad|>", []), ("<|turn_end|>", ["D07"])])
def test_padding_by_the_end_of_turn(tokenizer: Any, pad: str, ids: list[str]) -> None:
    tokenizer.pad_token = pad
    found = collator_findings(DataCollatorForLanguageModeling(tokenizer, mlm=False), tokenizer)
    assert [finding.id for finding in found] == ids
    assert collator_findings(DataCollatorForSeq2Seq(tokenizer), tokenizer) == []
    assert collator_findings(None, tokenizer) == []


def test_a_tokenizer_without_padding_is_left_alone(tokenizer: Any) -> None:
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    tokenizer.pad_token = None
    assert collator_findings(collator, tokenizer) == []


def test_the_trainer_says_it(tiny_llama: Path, tokenizer: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from whet.engine.python_api.notes import WhetNote
    from whet.engine.python_api.trl_classes import SFTConfig, SFTTrainer

    tokenizer.pad_token = "<|turn_end|>"
    with pytest.warns(WhetNote, match="D07: .* masks <.turn_end.> as padding"):
        SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(tiny_llama),
            args=SFTConfig(output_dir=str(tmp_path), use_cpu=True),
            data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
            train_dataset=[{"text": "The model reads rows."}] * 4,
            processing_class=tokenizer,
        )
