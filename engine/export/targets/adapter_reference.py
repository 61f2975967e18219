"""What PEFT computes with an adapter, a process of its own. Needs torch.

Request: base and adapter (folders), work (folder), texts, rows, positions, share. Writes ``sequences.json``,
``trained.npy`` and ``base.npy`` (float32 log-probabilities [positions, vocabulary]) into ``work``. Run by
adapter_proof.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from peft import PeftModel
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from ...models.capped_attention import attention_of
from ...models.own_files import WEIGHTS
from ..distributions import log_probabilities, pick_sequences
from ..gguf.native import Progress
from ..reference_device import place


def main(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Answers with the type it computed in."""
    transformers_logging.disable_progress_bar()
    base, work = Path(request["base"]), Path(request["work"])
    weights = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    device, dtype = place(2 * weights, request["share"])
    sequences = pick_sequences(request, base)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, **WEIGHTS, **attention_of(base))
    tuned: Any = PeftModel.from_pretrained(model, request["adapter"]).eval().to(device)
    np.save(work / "trained.npy", log_probabilities(tuned, sequences).numpy())
    progress(1, 2)
    with tuned.disable_adapter():
        np.save(work / "base.npy", log_probabilities(tuned, sequences).numpy())
    progress(2, 2)
    (work / "sequences.json").write_text(json.dumps(sequences), encoding="utf-8")
    return {"computed_in": str(dtype).removeprefix("torch.")}
