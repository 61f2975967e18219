"""A script on a machine of two GPUs: alone it trains on one, under torchrun on both, with the same losses.

Run by hand: `PYTHONPATH=src:tests python -P -m pytest -q -m gpu tests/gpu/test_gpu_scripts.py`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_models import build_tiny_model
from support.tiny_runs import write_chat_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(400),
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]
SCRIPT = Path(__file__).parents[1] / "support" / "plain_script.py"
LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
CLOSE = 5e-3
"""Of bf16 sums in another order."""


def test_a_script_trains_on_one_gpu_or_on_all(tmp_path: Path) -> None:
    model, rows = (
        build_tiny_model(tmp_path / "llama", wide=True),
        write_chat_rows(tmp_path / "rows.jsonl", 40),
    )
    started: list[tuple[Path, subprocess.Popen[str]]] = []
    for name, launcher in (("one", []), ("two", LAUNCHER)):
        folder = tmp_path / name
        folder.mkdir()
        command = [sys.executable, "-P", *launcher, str(SCRIPT), str(model), str(rows), str(folder)]
        started.append((folder, subprocess.Popen(command, stderr=subprocess.PIPE, text=True)))
    found: list[list[dict[str, Any]]] = []
    for folder, process in started:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said[-3000:]
        found.append([json.loads(path.read_text()) for path in sorted(folder.glob("rank-*.json"))])
    (alone,), shared = found
    assert alone["gpus"] == 1 and len(alone["losses"]) == 4
    assert [report["weights"] for report in shared] == ["cuda:0", "cuda:1"]
    for report in shared:
        assert report["losses"] == pytest.approx(alone["losses"], rel=CLOSE)
