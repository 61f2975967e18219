"""Frozen weights expanded for products with LoRA: what stands in the workspace changes no number."""

from __future__ import annotations

import pytest
import torch

from whet.kernels import lora_base


@pytest.mark.parametrize("group_bytes", [0, 600, 1 << 20])
def test_large_layers_take_turns_in_the_workspace(group_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is expanded together, the product and its input's gradient are the same."""
    monkeypatch.setattr(lora_base, "GROUP_BYTES", group_bytes)
    torch.manual_seed(0)
    outputs, inputs, rank, most = (5, 3, 8), 12, 8, []
    weights = [torch.randn(each, inputs, dtype=torch.float64) for each in outputs]

    def workspace(rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
        most.append(rows)
        return torch.full((rows, columns), torch.nan, dtype=dtype)

    parts = [(len(weight), lambda out_NK, weight=weight: out_NK.copy_(weight)) for weight in weights]
    base = lora_base.ExpandedBase(parts, inputs, workspace)
    sb_NR, bias_N = torch.randn(16, rank, dtype=torch.float64), torch.randn(16, dtype=torch.float64)
    x_TX, dy_TN = (torch.randn(7, size, dtype=torch.float64) for size in (inputs + rank, 16))
    wide_NX = torch.cat([torch.cat(weights), sb_NR], dim=1)
    torch.testing.assert_close(base.forward(x_TX, sb_NR, bias_N, None), x_TX @ wide_NX.T + bias_N)
    torch.testing.assert_close(base.backward(dy_TN, sb_NR), dy_TN @ wide_NX)
    torch.testing.assert_close(base.backward(dy_TN, None), dy_TN @ torch.cat(weights))
    assert max(most) == {0: 8, 600: 8, 1 << 20: 16}[group_bytes]
