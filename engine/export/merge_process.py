"""How far merged weights are from base and adapter, by transformers and PEFT, a process of its own. Needs
torch.

Request: base, adapter and merged (folders), texts, rows (token ids of held-out rows), positions, share (of
the free memory, that may be taken).
PEFT applies the adapter its own way here, so that a mistake of the merge cannot repeat itself. Run by
merge_proof.py.
"""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModel, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from ..models.capped_attention import attention_of
from ..models.own_files import WEIGHTS
from ..models.sentence_folder import is_embedding_model
from .distributions import divergence, log_probabilities, pick_sequences
from .gguf.native import Progress
from .reference_device import place


def main(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Answers with KL(trained || merged), KL(trained || base) and what rounding costs, in nats over the same
    positions."""
    transformers_logging.disable_progress_bar()
    base, merged = Path(request["base"]), Path(request["merged"])
    device, dtype = place(
        2 * sum(file.stat().st_size for file in merged.glob("*.safetensors")), request["share"]
    )
    sequences = pick_sequences(request, merged)
    auto: Any = AutoModel if is_embedding_model(merged) else AutoModelForCausalLM
    model: Any = auto.from_pretrained(
        base, dtype=dtype, **WEIGHTS, **attention_of(base), **_placed(base, device)
    )
    tuned: Any = PeftModel.from_pretrained(model, request["adapter"]).eval()
    if not _is_quantised(base):
        tuned.to(device)
    trained_TV = log_probabilities(tuned, sequences)
    with tuned.disable_adapter():
        moved = divergence(trained_TV, log_probabilities(tuned, sequences))
    rounded = _is_quantised(base)
    held = _dtype_of(merged)
    rounding = None if rounded else divergence(trained_TV, _merged_here(tuned, held, sequences))
    progress(1, 2)
    del model, tuned
    gc.collect()
    whole: Any = auto.from_pretrained(merged, dtype=dtype, **WEIGHTS, **attention_of(merged))
    differs = divergence(trained_TV, log_probabilities(whole.to(device).eval(), sequences))
    progress(2, 2)
    return {
        **differs,
        "moved": moved["mean"],
        "rounding": rounding and [rounding["mean"], rounding["max"]],
        "positions": len(trained_TV),
        "computed_in": str(dtype).removeprefix("torch."),
        "dtype": str(held).removeprefix("torch."),
        "rounded_base": rounded,
    }


def _merged_here(tuned: Any, held: torch.dtype, sequences: list[list[int]]) -> torch.Tensor:
    """What rounding alone costs: PEFT's own merge, its weights brought to the folder's type and back."""
    whole = tuned.merge_and_unload()
    with torch.no_grad():
        for param in whole.parameters():
            param.copy_(param.to(held))
    return log_probabilities(whole, sequences)


def _dtype_of(folder: Path) -> torch.dtype:
    name = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("dtype", "float32")
    found: torch.dtype = getattr(torch, name)
    return found


def _is_quantised(folder: Path) -> bool:
    return "quantization_config" in json.loads((folder / "config.json").read_text(encoding="utf-8"))


def _placed(base: Path, device: torch.device) -> dict[str, Any]:
    """A rounded checkpoint is placed while it loads; its layers cannot be moved afterwards."""
    return {"device_map": {"": str(device)}} if _is_quantised(base) else {}
