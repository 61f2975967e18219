"""Weights in shares on two GPUs over NCCL: 16-bit LoRA, QLoRA and all weights, with the losses of one GPU.

Run by hand: `PYTHONPATH=src:tests python -P -m pytest -q -m gpu tests/gpu/test_gpu_shares.py`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.ranks import drive
from support.tiny_models import build_tiny_model
from support.tiny_runs import tiny_recipe, write_chat_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(600),  # of all runs together, which the first test waits for
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]
SHARES = {"ranks": 2, "strategy": "fsdp"}
CLOSE = 5e-3
"""Of bf16 sums in another order."""
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"training": {"precision": "bf16"}},
    "qlora": {"training": {"precision": "bf16"}, "model": {"precision": "nf4"}},
    "whole": {"training": {"precision": "bf16", "learning_rate": 1e-3}, "adapter": {"kind": "none"}},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("shares")
    # Rows of 256 numbers, which bitsandbytes' kernels want.
    model = build_tiny_model(folder / "llama", wide=True)
    rows, held_out = write_chat_rows(folder / "rows.jsonl", 22), write_chat_rows(folder / "held_out.jsonl", 5)
    wanted: dict[str, Any] = {}
    for kind, sections in KINDS.items():
        common: dict[str, Any] = {
            "data": {"eval": str(held_out)},
            "eval": {"every": 3},
            "adapter": {"dropout": 0.0},
            "hardware": {"gpus": 1},
        }
        recipe = tiny_recipe(model, rows, **common | sections).model_dump(mode="json")
        wanted[f"{kind}, one"] = (recipe, [{"ranks": 1}])
        wanted[f"{kind}, two"] = (recipe, [SHARES])
        stopped = [SHARES | {"stop": 2}, SHARES | {"stop": 4}, {"ranks": 1}]
        wanted[f"{kind}, two, two, one"] = (recipe, stopped)
    return drive(folder, wanted, seconds=540)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("how", ["two", "two, two, one"])
def test_shares_have_the_losses_of_one_gpu(runs: dict[str, Any], kind: str, how: str) -> None:
    one, other = runs[f"{kind}, one"], runs[f"{kind}, {how}"]
    for part in ("steps", "evals"):
        losses = [[event[1] for event in run[part]] for run in (one, other)]
        assert len(losses[0]) == len(losses[1]) > 0
        assert losses[0] == pytest.approx(losses[1], rel=CLOSE)
