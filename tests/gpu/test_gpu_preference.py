"""Preference training and reward models on a GPU: answers' log-probabilities in 16 bits, runs that learn.

Run by hand: `PYTHONPATH=src:tests python -P -m pytest -q -m gpu tests/gpu/test_gpu_preference.py`.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.comparisons import pairs, ratings, recipe, steps
from support.fast_models import gradients, with_random_adapter
from support.live_runs import attempt
from support.tiny_families import build
from support.tiny_models import build_tiny_model
from support.tiny_runs import create_run
from trl.trainer.utils import add_fused_lm_head

from whet.engine.methods.fast_head import METRICS, put_fast_head
from whet.engine.methods.preference.job import PreferenceTraining
from whet.engine.methods.reward.job import RewardTraining
from whet.engine.models.fast_path import apply_fast_path, causal_model
from whet.engine.recipe_files import patched
from whet.kernels.spec import relative_error

pytestmark = pytest.mark.gpu
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LENGTHS = (61, 17, 40, 9)


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 128, (len(LENGTHS), max(LENGTHS)), generator=generator)
    places = torch.arange(max(LENGTHS))
    lengths = torch.tensor(LENGTHS)[:, None]
    labels = ids.where((places < lengths) & (places >= lengths // 2), -100)
    found = {"input_ids": ids, "attention_mask": (places < lengths).long(), "labels": labels}
    return {name: tensor.to(DEVICE) for name, tensor in found.items()}


def answered(model: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    found = model(**batch(), use_cache=False, fused_lm_head=True)
    (found.log_probs * torch.linspace(-1, 1, len(LENGTHS), device=DEVICE)[:, None]).sum().backward()
    return found, gradients(model)


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "granite"])
def test_answers_in_16_bits_are_as_exact_as_those_of_trl(family: str) -> None:
    exact = with_random_adapter(build(family)).to(DEVICE)
    plain = copy.deepcopy(exact)
    plain.get_base_model().to(torch.bfloat16)
    for name, parameter in plain.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    fast = copy.deepcopy(plain)
    apply_fast_path(fast, torch.bfloat16)
    for model in (exact, plain, fast):
        add_fused_lm_head(causal_model(model), outputs=METRICS)
    head = put_fast_head(fast, METRICS)
    truth, slopes = answered(exact)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        theirs, their_slopes = answered(plain)
    ours, our_slopes = answered(fast)
    for name in ("log_probs", "entropy", "mean_logits"):
        errors = [relative_error(getattr(one, name), getattr(truth, name)) for one in (ours, theirs)]
        assert errors[0] < 2 * errors[1] + 1e-3, (name, errors)
    worst = [
        max(relative_error(found[name], slope) for name, slope in slopes.items())
        for found in (our_slopes, their_slopes)
    ]
    assert worst[0] < 2 * worst[1] + 1e-2, worst
    with torch.no_grad(), exact.disable_adapter():
        base = exact(**batch(), use_cache=False, fused_lm_head=True).log_probs
    assert relative_error(head.reference_log_probs(), base) < 0.05


@pytest.mark.parametrize("precision", ["auto", "fp16", "nf4"])
@pytest.mark.parametrize("loss", ["dpo", "kto", "orpo", "reward"])
def test_runs_learn(loss: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    model = build_tiny_model(tmp_path / "llama")
    method = {"kind": "reward"} if loss == "reward" else {"kind": "preference", "loss": loss}
    wanted = recipe(model, tmp_path, ratings() if loss == "kto" else pairs(), method=method)
    patch: dict[str, object] = {"training.max_steps": 16, "training.optimizer": "adamw_8bit"}
    patch |= {"training.precision": "fp16"} if precision == "fp16" else {"model.precision": precision}
    run = create_run(patched(wanted, patch))
    kind = RewardTraining if loss == "reward" else PreferenceTraining
    assert attempt(run, method=kind) == "finished"
    seen = [step.loss for step in steps(run)]
    assert len(seen) == 16 and sum(seen[-4:]) < 0.9 * sum(seen[:4])
