"""A script for another tool runs with its import lines changed, whatever the order of imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FLOW = Path(__file__).with_name("sft_flow.txt")
ROOT = Path(__file__).parents[2]
IMPORTS = {
    "from unsloth import FastLanguageModel": "from whet.engine import FastLanguageModel",
    "from unsloth.chat_templates import": "from whet.engine.chat_templates import",
    "from trl import SFTTrainer, SFTConfig": "from whet.engine import SFTTrainer, SFTConfig",
}
REPORT = """
import json
report = {
    "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    "row": trainer.train_dataset[0],
    "bos": tokenizer.bos_token_id,
    "training": model.training,
}
open("report.json", "w").write(json.dumps(report))
"""
LIBRARIES_FIRST = "import datasets, trl, peft, transformers, torch\n"


def run_flow(folder: Path, model: Path, data: Path, before: str = "") -> dict:
    script = FLOW.read_text(encoding="utf-8")
    for theirs, ours in IMPORTS.items():
        assert theirs in script
        script = script.replace(theirs, ours)
    script = before + script.replace("MODEL", str(model)).replace("DATA", str(data)) + REPORT
    (folder / "script.py").write_text(script, encoding="utf-8")
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "src"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "HF_DATASETS_CACHE": str(folder / "datasets"),
    }
    done = subprocess.run(
        [sys.executable, "-P", "script.py"], cwd=folder, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def flow(
    tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, sharegpt_file: Path
) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("flow")
    return folder, run_flow(folder, tiny_llama, sharegpt_file)


def test_the_script_learns_the_answers(flow: tuple[Path, dict]) -> None:
    losses = flow[1]["losses"]
    assert len(losses) == 12
    assert losses[-1] < 0.6 * losses[0]


def test_only_the_answer_is_supervised_and_there_is_one_bos(flow: tuple[Path, dict]) -> None:
    folder, report = flow
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "lora")
    row = report["row"]
    supervised = [token for token in row["labels"] if token != -100]
    assert tokenizer.decode(supervised) == f"It is the number 0.{tokenizer.eos_token}"
    assert row["input_ids"].count(report["bos"]) == 1
    assert report["training"] is False


def test_the_order_of_imports_changes_nothing(
    flow: tuple[Path, dict], tmp_path: Path, tiny_llama: Path, sharegpt_file: Path
) -> None:
    other = run_flow(tmp_path, tiny_llama, sharegpt_file, before=LIBRARIES_FIRST)
    assert other["losses"] == flow[1]["losses"]


def test_the_merged_model_is_the_adapter_on_its_16_bit_base(
    flow: tuple[Path, dict], tiny_llama: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, _ = flow
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged", dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(folder / "merged")("What is number 7?", return_tensors="pt").input_ids
    with torch.no_grad():
        before = base(ids).logits
        adapted = PeftModel.from_pretrained(base, folder / "lora").eval()
        expected = adapted(ids).logits
        difference = (merged(ids).logits - expected).abs().max()
    assert difference < 0.05 * (before - expected).abs().max()
