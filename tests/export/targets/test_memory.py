"""maximum_memory_usage: a share of what is free bounds the blocks of a merge and what the proofs load."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from whet.engine.errors import WhetError
from whet.engine.export import reference_device
from whet.engine.export.reference_device import place
from whet.engine.export.targets import memory
from whet.engine.export.targets.memory import BLOCK_BYTES, block_bytes, block_rows, check_share

ROWS, WIDTH = 100_000, 256
FREE = 800 << 20

MERGE = """
import json, sys
from pathlib import Path
from whet.engine.export.merging import merge
from whet.engine.export.targets import memory

def held():  # the most that was resident, in bytes
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])

memory.host_memory = lambda: (0, int(sys.argv[3]))
folder, share = Path(sys.argv[1]), float(sys.argv[2])
before = held()
merge(folder / "base", folder / "adapter", folder / f"out-{share}", memory=memory.block_bytes(share))
print(held() - before)
"""


@pytest.fixture
def large_embedding(tmp_path: Path) -> Path:
    """A base of one embedding of 51 MB, and an adapter on it."""
    for name in ("base", "adapter"):
        (tmp_path / name).mkdir()
    embedding = torch.randn(ROWS, WIDTH).bfloat16()
    save_file({"model.embed_tokens.weight": embedding}, tmp_path / "base" / "model.safetensors")
    (tmp_path / "base" / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": ROWS}))
    stem = "base_model.model.model.embed_tokens.lora_embedding"
    factors = {f"{stem}_A": torch.randn(4, ROWS), f"{stem}_B": torch.randn(WIDTH, 4)}
    save_file(factors, tmp_path / "adapter" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    return tmp_path


def peak(folder: Path, share: float) -> int:
    """Bytes that a merge in a fresh process adds to what is resident."""
    words = [sys.executable, "-P", "-c", MERGE, str(folder), str(share), str(FREE)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_a_smaller_share_holds_less(large_embedding: Path) -> None:
    whole, blocks = peak(large_embedding, 0.9), peak(large_embedding, 0.02)
    assert whole - blocks > 100 << 20
    assert blocks < 0.02 * FREE + (60 << 20)
    same = [(large_embedding / f"out-{share}" / "model.safetensors").read_bytes() for share in (0.9, 0.02)]
    assert same[0] == same[1]


def test_a_block_is_a_share_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "host_memory", lambda: (8 << 30, 1 << 30))
    assert block_bytes(0.5) == 512 << 20 and block_bytes(0.25) == 256 << 20
    assert block_bytes() == 768 << 20
    monkeypatch.setattr(memory, "host_memory", lambda: (64 << 30, 60 << 30))
    assert block_bytes(0.5) == BLOCK_BYTES
    assert block_rows((1000, 256), 20 * 256 * 30) == 30 and block_rows((1000, 256), 1) == 1


@pytest.mark.parametrize("share", [0.0, -0.1, 0.951, 1, 75])
def test_what_is_no_share_is_refused(share: float) -> None:
    with pytest.raises(WhetError, match="maximum_memory_usage") as refusal:
        check_share(share)
    assert refusal.value.code == "export.memory_share" and "0.75" in (refusal.value.hint or "")


def test_proofs_compute_in_what_the_share_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(reference_device, "host_memory", lambda: (4000 << 20, 1000 << 20))
    weights = 500 << 20  # of 1000 free
    assert place(weights, 0.75)[1] is torch.float32
    assert place(weights, 0.5)[1] is torch.bfloat16
