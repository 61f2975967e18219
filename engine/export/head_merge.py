"""Merge an adapter and its head into a plain folder that transformers' pipeline loads, proven by its outputs.

Such models are small: PEFT's own merge, whole, in float32. Needs torch.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from transformers import AutoConfig, AutoTokenizer

from ..models.capped_attention import attention_of
from ..models.own_files import LOCAL, WEIGHTS
from .base_weights import BaseWeights
from .distances import furthest
from .files import new_folder
from .merge_report import MergeReport
from .merging import REPORT, check_place, copy_tokenizer, target_dtype
from .probe_corpus import probe_texts
from .task_heads import TASKS
from .verdict import Proof, Verdict, conclude

TEXTS = 16
TOKENS = 128
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""How far an output may be from the trained model's, as a share of the largest: what rounding each weight
once to that type leaves, with room."""


def merge_head(base_dir: Path, adapter_dir: Path, out_dir: Path, task: str) -> tuple[MergeReport, Verdict]:
    """Write base, adapter and head as one model, and compare its outputs on texts with the trained model's.

    Args:
        base_dir: the model the adapter was trained on.
        adapter_dir: PEFT's folder; its config.json names the classes, without one there is one score.
        out_dir: appears whole at the end; replaced only if an earlier merge wrote it.
        task: PEFT's name of it.

    Raises:
        WhetError: ``export.exists``, ``export.disk_full``, ``merge.*``.
    """
    started = time.monotonic()
    check_place(out_dir)
    target = target_dtype(BaseWeights(base_dir), "auto")
    auto: Any = getattr(transformers, f"AutoModel{TASKS[task]}")
    named = (adapter_dir / "config.json").is_file()
    config = (
        AutoConfig.from_pretrained(adapter_dir, **LOCAL)
        if named
        else AutoConfig.from_pretrained(base_dir, num_labels=1, **LOCAL)
    )
    options: dict[str, Any] = {"dtype": torch.float32, **WEIGHTS, **attention_of(base_dir)}
    base = auto.from_pretrained(base_dir, config=config, ignore_mismatched_sizes=True, **options)
    trained = PeftModel.from_pretrained(base, str(adapter_dir)).eval()
    tokenizer = AutoTokenizer.from_pretrained(adapter_dir, **LOCAL)
    trained.config.pad_token_id = tokenizer.pad_token_id
    wanted = _outputs(trained, tokenizer)
    changed = sum(1 for name in trained.state_dict() if "lora_A" in name or "modules_to_save" in name)
    merged: Any = trained.merge_and_unload()
    report = MergeReport(str(out_dir), str(target).removeprefix("torch."), changed, len(merged.state_dict()))
    with new_folder(out_dir) as partial:
        merged.to(target).save_pretrained(partial)
        copy_tokenizer(base_dir, adapter_dir, partial)
        report.bytes = sum(file.stat().st_size for file in partial.glob("*.safetensors"))
        (partial / REPORT).write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    proof = _compare(wanted, _outputs(auto.from_pretrained(out_dir, **options).eval(), tokenizer), target)
    return report, conclude(proof, out_dir, "merged", started)


def _outputs(model: Any, tokenizer: Any) -> list[torch.Tensor]:
    with torch.no_grad():
        return [
            model(**tokenizer(text, truncation=True, max_length=TOKENS, return_tensors="pt")).logits.float()
            for text in probe_texts()[:TEXTS]
        ]


def _compare(wanted: list[torch.Tensor], found: list[torch.Tensor], target: torch.dtype) -> Proof:
    largest = max(float(one.abs().max()) for one in wanted)
    away = furthest(wanted, found)
    share = away / max(largest, 1e-12)
    right = share <= TOLERANCE[target]
    return Proof(
        name="merge",
        status="pass" if right else "fail",
        summary=f"Outputs of the merged model are at most {share:.1e} of the largest away from base with "
        f"adapter, on {len(wanted)} texts.",
        evidence={"largest_output": largest, "largest_difference": away, "allowed_share": TOLERANCE[target]},
        fix="" if right else "Keep base and adapter, and report this.",
    )
