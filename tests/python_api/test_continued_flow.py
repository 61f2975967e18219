"""A continued-pretraining script runs with its imports changed: it learns, stops early and keeps the best."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from support.tiny_models import TEXT
from transformers import AutoModelForCausalLM

FLOW = Path(__file__).with_name("continued_flow.txt")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> dict[str, Any]:
    """The script's names after it ran."""
    folder, draw = tmp_path_factory.mktemp("flow"), random.Random(0)
    words = TEXT.read_text(encoding="utf-8").split()
    texts = [{"text": " ".join(draw.choices(words, k=draw.randint(4, 20)))} for _ in range(24)]
    data = folder / "texts.jsonl"
    data.write_text("".join(json.dumps(one) + "\n" for one in texts), encoding="utf-8")
    script = FLOW.read_text(encoding="utf-8").replace("from unsloth import", "from whet.engine import")
    script = script.replace("MODEL", str(tiny_llama)).replace("DATA", str(data))
    names: dict[str, Any] = {"folder": folder}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HF_DATASETS_CACHE", str(folder / "datasets"))
        exec(compile(script, str(FLOW), "exec"), names)
    return names


def test_training_stops_when_held_out_loss_rises_and_the_best_weights_are_kept(ran: dict[str, Any]) -> None:
    trainer = ran["trainer"]
    held = {log["step"]: log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log}
    best = min(held, key=lambda step: held[step])
    assert 3 <= best < trainer.state.global_step == best + 6 < 60
    assert trainer.evaluate()["eval_loss"] == pytest.approx(held[best], rel=1e-4)
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses[-1] < losses[0] - 0.5


def test_both_rates_follow_the_schedule(ran: dict[str, Any]) -> None:
    groups = ran["trainer"].optimizer.param_groups
    ends = [group for group in groups if any(p.shape[0] > 256 for p in group["params"])]
    others = [group for group in groups if group not in ends]
    assert sum(len(group["params"]) for group in ends) == 2
    assert all(one["lr"] == pytest.approx(0.1 * others[0]["lr"]) for one in ends)
    assert ran["trainer"].fast is not None


def test_plain_peft_loads_what_was_saved(ran: dict[str, Any], tiny_llama: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    before = base.get_output_embeddings().weight.clone()
    plain = PeftModel.from_pretrained(base, ran["folder"] / "lora").eval()
    saved: list[Any] = [end().weight for end in (base.get_input_embeddings, base.get_output_embeddings)]
    model = ran["model"].get_base_model()
    trained: list[Any] = [end().weight for end in (model.get_input_embeddings, model.get_output_embeddings)]
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(saved, trained, strict=True))
    assert not torch.equal(before, saved[1])
    assert torch.isfinite(plain(torch.tensor([[1, 2, 3]])).logits).all()
