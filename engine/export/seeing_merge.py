"""Merge the adapter of a vision-language model into a plain folder, proven by its answers to pictures.

The names of such models' weights differ between their files and the class that loads them, so the class
writes them: the base is held whole, in the type of its files, and one layer at a time is summed in float32.
Needs torch.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from PIL import Image
from transformers import AutoModelForImageTextToText

from ..errors import WhetError
from ..methods.vision.inputs import padded
from ..methods.vision.loading import Seeing, copy_processor, load_seeing
from ..models.capped_attention import attention_of
from ..models.loading import Precision
from ..models.own_files import WEIGHTS
from .base_weights import BaseWeights
from .distances import furthest
from .files import new_folder
from .merge_report import MergeReport
from .merging import REPORT, check_place, copy_tokenizer, target_dtype
from .verdict import Proof, Verdict, conclude

NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
EXACT_PARAMETERS = 3_000_000_000
"""Models up to this size are held and compared in float32."""
QUESTIONS = ("What is this?", "Describe the picture.", "Which colours are there?")
SIDE = 224
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""How far a logit may be from the trained model's, as a share of the largest: what rounding each weight once
to that type leaves, with room."""


SWALLOWED = 0.5
"""Above this share of what training moved, the merge's rounding is as large as the training."""


def merge_seeing(base_dir: Path, adapter_dir: Path, out_dir: Path) -> tuple[MergeReport, Verdict]:
    """Write base and adapter as one model, and compare its logits on pictures with the trained model's.

    Args:
        base_dir: the model the adapter was trained on.
        adapter_dir: PEFT's folder.
        out_dir: appears whole at the end; replaced only if an earlier merge wrote it.

    Raises:
        WhetError: ``export.exists``, ``export.disk_full``, ``merge.*``, ``model.load``, ``vision.*``.
    """
    started = time.monotonic()
    check_place(out_dir)
    base = BaseWeights(base_dir)
    if base.rounding is not None:
        raise WhetError(
            "merge.quantized",
            f"{base_dir} holds {base.rounding} weights only, which a model that sees is not merged onto.",
            "Name the 16-bit checkpoint it was made from as the base, and merge again.",
        )
    target = target_dtype(base, "auto")
    held = "fp32" if _parameters(base) <= EXACT_PARAMETERS else NAMES[target]
    seeing = load_seeing(base_dir, Precision(compute_dtype=held, base_precision=held))
    trained = PeftModel.from_pretrained(seeing.handle.model, str(adapter_dir)).eval()
    seeing.handle.model = trained
    with trained.disable_adapter():
        before = list(_logits(seeing))
    wanted = list(_logits(seeing))
    changed = _merge_layers(trained)
    merged: Any = trained.unload()  # its layers are summed already
    report = MergeReport(str(out_dir), str(target).removeprefix("torch."), changed, len(merged.state_dict()))
    with new_folder(out_dir) as partial:
        merged.to(target).save_pretrained(partial)
        copy_tokenizer(base_dir, adapter_dir, partial)
        copy_processor(base_dir, partial)
        report.bytes = sum(file.stat().st_size for file in partial.glob("*.safetensors"))
        (partial / REPORT).write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    del merged, trained
    seeing.handle.model = None  # the last that holds the old weights: both do not lie in memory at once
    seeing.handle.model = AutoModelForImageTextToText.from_pretrained(
        out_dir, dtype=getattr(torch, _torch_name(held)), **WEIGHTS, **attention_of(out_dir)
    ).eval()
    proof = compare(wanted, list(_logits(seeing)), before, target)
    return report, conclude(proof, out_dir, "merged", started)


def _merge_layers(model: Any) -> int:
    """Sum each adapted layer in float32, round it once; how many there were."""
    count = 0
    for module in model.modules():
        if isinstance(module, LoraLayer):
            weight: Any = module.get_base_layer().weight
            own = weight.dtype
            weight.data = weight.data.float()
            module.merge()
            weight.data = weight.data.to(own)
            count += 1
    return count


def _logits(seeing: Seeing) -> Iterator[torch.Tensor]:
    """Of the last token of each question about each picture, in float32."""
    model, dtype = seeing.handle.model, next(seeing.handle.model.parameters()).dtype
    for number, question in enumerate(QUESTIONS):
        picture = _picture(number)
        content = [{"type": "image"}, {"type": "text", "text": question}]
        ids = seeing.encoder.prompt([{"role": "user", "content": content}], [picture.size])
        batch = padded([ids], [ids], seeing.handle.pad_id)
        batch = {name: batch[name][:, : len(ids)] for name in ("input_ids", "attention_mask")}
        batch |= seeing.inputs([[picture]], batch["input_ids"])
        batch = {name: v.to(dtype) if v.is_floating_point() else v for name, v in batch.items()}
        with torch.no_grad():
            yield model(**batch, use_cache=False, logits_to_keep=1).logits[0, -1].float()


def _picture(number: int) -> Image.Image:
    """A gradient, turned by a third of a circle of colours each time."""
    bands = [Image.linear_gradient("L").resize((SIDE, SIDE)).rotate(90 * turn) for turn in range(3)]
    return Image.merge("RGB", bands[number % 3 :] + bands[: number % 3])


def compare(
    wanted: list[torch.Tensor], found: list[torch.Tensor], before: list[torch.Tensor], target: torch.dtype
) -> Proof:
    """The proof on logits of the trained and of the merged model.

    Args:
        wanted: of base and adapter.
        found: of the merged folder.
        before: of the base alone.
        target: type of the merged weights.
    """
    largest = max(float(one.abs().max()) for one in wanted)
    away, moved = furthest(wanted, found), furthest(wanted, before)
    share, trained = away / max(largest, 1e-12), moved / max(largest, 1e-12)
    status: Literal["pass", "warn", "fail"] = "pass"
    if not share <= TOLERANCE[target]:  # nor is what is no number
        status = "fail"
    elif not away <= SWALLOWED * moved:
        status = "warn"
    return Proof(
        name="merge",
        status=status,
        summary=f"Logits of the merged model are at most {share:.1e} of the largest away from base with "
        f"adapter, on {len(wanted)} pictures; training moved them by {trained:.1e}.",
        evidence={
            "largest_logit": largest,
            "largest_difference": away,
            "moved": moved,
            "allowed_share": TOLERANCE[target],
        },
        fix=""
        if status == "pass"
        else "Keep base and adapter: rounding takes what training gave."
        if status == "warn"
        else "Keep base and adapter, and report this.",
    )


def _parameters(base: BaseWeights) -> int:
    return sum(torch.Size(base.shape(name)).numel() for name in base.names())


def _torch_name(held: str) -> str:
    return {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[held]
