"""An adapter of stacked experts is merged into whatever way the checkpoint holds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from support.gguf_logits import kl, llama_log_probs, log_softmax
from support.respelling import fuse_experts, rewrite
from support.tiny_adapters import adapter_logits, folder_logits, train_at_random
from support.tiny_models import FamilyName, build_tiny_model

from whet.engine.errors import WhetError
from whet.engine.export.gguf.convert import convert
from whet.engine.export.merging import merge
from whet.engine.models.families import family_of

IDS = torch.arange(3, 43).reshape(2, 20)


def adapted(folder: Path, family: FamilyName, **config: Any) -> tuple[Path, Path]:
    """A base, and an adapter of the targets whet takes for the family: attention and experts."""
    base = build_tiny_model(folder / "base", family)
    targets = {"target_modules": list(family_of(family).target_modules)}
    return base, train_at_random(base, folder / "adapter", **{**targets, **config})


@pytest.mark.parametrize("fused", [False, True], ids=["single", "fused"])
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_merged_logits_are_the_adapters(tmp_path: Path, family: FamilyName, fused: bool) -> None:
    base, adapter = adapted(tmp_path, family)
    expected = adapter_logits(base, adapter, IDS)
    plain = folder_logits(base, IDS)
    if fused:
        rewrite(base, fuse_experts)
    in_blocks = 20 * 64 * 7  # seven rows of an expert at a time
    report = merge(base, adapter, tmp_path / "merged", dtype="float32", memory=in_blocks)
    merged = folder_logits(tmp_path / "merged", IDS)
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=2e-5)
    assert (expected - plain).abs().max() > 0.05
    # Two layers of four projections of attention, and four experts of three matrices or two parameters.
    assert report.changed == 2 * (4 + (2 if fused else 12))


@pytest.mark.parametrize("config", [{"use_rslora": True}, {"target_modules": ["down_proj"]}])
def test_other_settings(tmp_path: Path, config: dict[str, Any]) -> None:
    base, adapter = adapted(tmp_path, "qwen3_moe", **config)
    merge(base, adapter, tmp_path / "merged", dtype="float32")
    expected = adapter_logits(base, adapter, IDS)
    torch.testing.assert_close(folder_logits(tmp_path / "merged", IDS), expected, rtol=1e-4, atol=2e-5)


def test_the_gguf_computes_what_the_adapter_does(tmp_path: Path) -> None:
    base, adapter = adapted(tmp_path, "mixtral")
    merge(base, adapter, tmp_path / "merged", dtype="float32")
    gguf = convert(tmp_path / "merged", tmp_path / "model.gguf", "f32")
    expected = log_softmax(adapter_logits(base, adapter, IDS[:1])[0].numpy())
    assert kl(expected, llama_log_probs(gguf, IDS[0].tolist())) < 1e-9


def test_a_parameter_that_is_a_layers_weight(tmp_path: Path) -> None:
    base, adapter = adapted(tmp_path, "qwen3_moe", target_modules=[], target_parameters=["gate.weight"])
    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        assert any(".gate." in name for name in file.keys())  # noqa: SIM118
    merge(base, adapter, tmp_path / "merged", dtype="float32")
    expected = adapter_logits(base, adapter, IDS)
    torch.testing.assert_close(folder_logits(tmp_path / "merged", IDS), expected, rtol=1e-4, atol=2e-5)


def test_another_base_is_refused(tmp_path: Path) -> None:
    _, adapter = adapted(tmp_path, "qwen3_moe")
    other = build_tiny_model(tmp_path / "other", "qwen3_moe", moe_intermediate_size=48)
    with pytest.raises(WhetError, match="do not fit") as error:
        merge(other, adapter, tmp_path / "merged")
    assert error.value.code == "merge.unmatched"
