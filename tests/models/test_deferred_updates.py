"""LoRA updates that the gated unit adds: loss and gradients as with riding or separate updates."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support.fast_models import gradients, packed_loss, random_rows, with_random_adapter
from support.tiny_families import build

from whet.engine.models.fast_path import apply_fast_path, mlp_half, program_of
from whet.engine.models.fast_path.comparison import fused_projections
from whet.kernels.glu_low_rank import glu_low_rank_backward
from whet.kernels.spec import relative_error

Found = tuple[float, dict[str, torch.Tensor]]


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> list[frozenset[str]]:
    """The names of the updates that each backward pass over a gated unit was given."""
    seen: list[frozenset[str]] = []

    def noted(*tensors: Any, **options: Any) -> Any:
        seen.append(frozenset(options) - {"h_TF"})
        return glu_low_rank_backward(*tensors, **options)

    monkeypatch.setattr(mlp_half, "glu_low_rank_backward", noted)
    return seen


def run(model: Any, *, rides: bool, keep: bool = True) -> Found:
    """Loss and gradients; ``rides`` False holds the update out of the products, as FP8 bases do."""
    model = copy.deepcopy(model)
    apply_fast_path(model, torch.float32)
    program = program_of(model)
    assert program is not None
    program.set_keep([keep] * len(program.layers), [keep] * len(program.layers))
    for layer in program.layers:
        for projection in fused_projections(layer):
            projection.stack.base.rides = rides
    torch.manual_seed(3)
    loss = packed_loss(model, random_rows(model.config.vocab_size))
    loss.backward()
    return float(loss.detach()), gradients(model)


def assert_same(found: Found, wanted: Found) -> None:
    assert found[0] == pytest.approx(wanted[0], rel=1e-6)
    assert found[1].keys() == wanted[1].keys()
    assert all(relative_error(found[1][key], wanted[1][key]) < 1e-4 for key in wanted[1])


@pytest.mark.parametrize("name", ["llama", "phi3", "gemma2"])
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_added_by_the_gated_unit(
    name: str, keep: bool, dropout: float, added: list[frozenset[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = with_random_adapter(build(name), lora_dropout=dropout)
    after_dropout = set() if dropout else {"dh_update"}
    riding = run(model, rides=True, keep=keep)
    assert set(added) == {frozenset(after_dropout)}
    added.clear()
    assert_same(run(model, rides=False, keep=keep), riding)
    assert set(added) == {frozenset(after_dropout | {"gate_update", "up_update"})}
    added.clear()
    monkeypatch.setattr(mlp_half, "MOST_RANK", 3)
    assert_same(run(model, rides=False, keep=keep), riding)
    assert set(added) == {frozenset()}


def test_an_adapter_on_gate_alone(added: list[frozenset[str]]) -> None:
    model = with_random_adapter(build("llama"))
    for path, part in model.named_modules():
        if path.endswith(("up_proj", "down_proj")):
            part.enable_adapters(False)
    riding = run(model, rides=True)
    added.clear()
    assert_same(run(model, rides=False), riding)
    assert set(added) == {frozenset({"gate_update"})}
