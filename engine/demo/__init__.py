"""The model and data set that ship with whet, small enough to fine-tune in a minute without a GPU."""

from pathlib import Path

_HERE = Path(__file__).resolve().parent

MODEL_DIR = _HERE / "model"
"""A Llama of 2.75 million parameters in bf16 with its tokenizer and chat template."""

TRAIN_FILE = _HERE / "data" / "train.jsonl"
"""Chat rows (`{"messages": [...]}`) about fine-tuning, and replayed rows of what the model knows."""

HELDOUT_FILE = _HERE / "data" / "heldout.jsonl"
"""The same facts under questions that are not in `TRAIN_FILE`."""

__all__ = ["HELDOUT_FILE", "MODEL_DIR", "TRAIN_FILE"]
