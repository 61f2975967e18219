"""Scripts on a machine of several GPUs: alone on one of them, and a process each under torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.tiny_models import build_tiny_model
from support.tiny_runs import write_chat_rows

from whet.engine import FastLanguageModel, SFTConfig, SFTTrainer
from whet.engine.python_api.loading import load_settings
from whet.engine.python_api.notes import WhetNote
from whet.engine.python_api.one_gpu import stay_on_one_gpu

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "support" / "plain_script.py"
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)


def placed(device: str) -> tuple[Any, list[str]]:
    model = SimpleNamespace()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        stay_on_one_gpu(model, device)
    return vars(model).get("hf_device_map"), [str(one.message) for one in caught]


def test_a_model_says_where_it_stays(two_gpus: None) -> None:
    where, said = placed("cuda:0")
    assert where == {"": "cuda"}
    assert "2 GPUs are visible" in said[0] and "torchrun --nproc-per-node 2" in said[0]


def test_another_gpu_than_the_trainers_is_pointed_out(two_gpus: None) -> None:
    where, said = placed("cuda:1")
    assert where == {"": "cuda:1"}
    assert "CUDA_VISIBLE_DEVICES=1" in said[0]


def test_a_launcher_has_shared_out_the_gpus(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for rank, device in (("0", "cuda:0"), ("1", "cuda:1"), ("3", "cuda:1")):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert placed(device) == (None, [])
        assert load_settings("16bit", torch.float16, None).device == device


def test_rank_minus_one_is_no_launcher(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "-1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert load_settings("16bit", torch.float16, None).device == "cuda:0"
    assert placed("cuda:0")[0] == {"": "cuda"}


def test_elsewhere_nothing_is_said(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert placed("cpu") == (None, [])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert placed("cuda:0") == (None, [])


def test_no_trainer_copies_it(two_gpus: None, tiny_llama: Path, tmp_path: Path) -> None:
    """transformers would train on both by ``nn.DataParallel``, which TRL refuses."""
    rows = write_chat_rows(tmp_path / "rows.jsonl", 4)

    def trainer(model: Any) -> Any:
        args = SFTConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True)
        args._n_gpu = 2  # as where two GPUs are seen
        given = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
        return SFTTrainer(model=model, processing_class=tokenizer, train_dataset=given, args=args)

    model, tokenizer = FastLanguageModel.from_pretrained(str(tiny_llama), load_in_4bit=False)
    model = FastLanguageModel.get_peft_model(model)
    with pytest.raises(ValueError, match="DataParallel"):
        trainer(model)
    with pytest.warns(WhetNote, match="2 GPUs"):
        stay_on_one_gpu(model.get_base_model(), "cuda:0")
    assert trainer(model).args.n_gpu == 1


@pytest.mark.slow  # half a minute and more: `make slow`
@pytest.mark.timeout(450)
def test_torchrun_trains_one_model(tmp_path: Path) -> None:
    """Two processes share each step's rows and have one process's losses."""
    model, rows = build_tiny_model(tmp_path / "llama"), write_chat_rows(tmp_path / "rows.jsonl", 40)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    found: dict[int, list[dict[str, Any]]] = {}
    for ranks, started in ((1, []), (2, launcher)):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, "-P", *started, str(SCRIPT), str(model), str(rows), str(folder)],
            env={
                **{name: value for name, value in os.environ.items() if name not in LAUNCHERS},
                "PYTHONPATH": str(ROOT / "src"),
                "ACCELERATE_USE_CPU": "true",
                "OMP_NUM_THREADS": "1",
                "HF_DATASETS_CACHE": str(tmp_path / "datasets"),
            },
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found[ranks] = [json.loads(path.read_text()) for path in sorted(folder.glob("rank-*.json"))]
    assert [len(reports) for reports in found.values()] == [1, 2]
    alone = found[1][0]["losses"]
    assert len(alone) == 4
    for report in found[2]:
        assert report["losses"] == pytest.approx(alone, rel=1e-5)
