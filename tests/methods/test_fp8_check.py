"""The finding on an FP8 base before training: its numbers are plain models', and too far is a warning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_models import build_tiny_model
from torch.nn import functional as F

from whet.engine.methods.sft.fp8_check import MOST_DIVERGENCE, describe, fp8_finding
from whet.engine.models.adapters import add_adapter
from whet.engine.models.fast_path import apply_fast_path
from whet.engine.models.fast_path.comparison import Comparison
from whet.engine.models.fp8 import Fp8Linear
from whet.engine.models.loading import ModelHandle, Precision, load_model
from whet.engine.recipe import AdapterSection

SUPERVISED = 4
"""The first labels of each row carry no loss."""


def rows() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for length in (24, 9, 40):
        ids = torch.randint(7, 390, (length,), generator=generator)
        labels = ids.clone()
        labels[:SUPERVISED] = -100
        made.append({"input_ids": ids.numpy(), "labels": labels.numpy()})
    return made


def adapted(path: Path, fp8: frozenset[str] = frozenset()) -> ModelHandle:
    handle = load_model(path, Precision(base_precision="fp8"))
    handle.model = add_adapter(handle.model, AdapterSection(), seed=0)
    apply_fast_path(handle.model, handle.dtype, fp8=fp8)
    return handle


def test_the_numbers_are_those_of_plain_models(tmp_path: Path) -> None:
    """On transformers, one row at a time: losses of both, and the divergence of their predictions."""
    path = build_tiny_model(tmp_path / "model", "qwen2", wide=True)
    exact = load_model(path, Precision()).model
    rounded = load_model(path, Precision(base_precision="fp8")).model
    total = torch.zeros(3)
    count = 0
    with torch.no_grad():
        for row in rows():
            ids, labels = torch.tensor(row["input_ids"]), torch.tensor(row["labels"])
            places = (labels[1:] >= 0).nonzero()[:, 0]
            log_p, log_q = (
                model(ids[None]).logits[0, :-1][places].log_softmax(-1) for model in (exact, rounded)
            )
            losses = [F.nll_loss(each, labels[1:][places], reduction="sum") for each in (log_q, log_p)]
            total += torch.stack([*losses, (log_p.exp() * (log_p - log_q)).sum()])
            count += len(places)
    finding = fp8_finding(adapted(path), rows())
    loss, loss_16_bit, divergence = (total / count).tolist()
    evidence = finding.evidence
    assert evidence["loss"] == pytest.approx(loss, rel=1e-4)
    assert evidence["loss_16_bit"] == pytest.approx(loss_16_bit, rel=1e-4)
    assert evidence["divergence_nats"] == pytest.approx(divergence, rel=1e-2)
    assert len(evidence["layer_errors"]) == 2 and all(0.01 < e < 0.2 for e in evidence["layer_errors"])
    assert f"{count:,} supervised tokens" in finding.title


def test_weights_that_fp8_holds_exactly_differ_by_nothing(tmp_path: Path) -> None:
    path = build_tiny_model(tmp_path / "model")
    rounded = load_model(path, Precision(base_precision="fp8")).model
    tensors = load_file(path / "model.safetensors")
    for name, part in rounded.named_modules():
        if isinstance(part, Fp8Linear):
            tensors[f"{name}.weight"] = part.dense(torch.float32)
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    evidence = fp8_finding(adapted(path), rows()).evidence
    assert max(evidence["layer_errors"]) < 1e-4 and evidence["divergence_nats"] < 1e-6
    assert evidence["loss"] == evidence["loss_16_bit"]


def test_products_in_fp8_add_their_own_error(tmp_path: Path) -> None:
    path = build_tiny_model(tmp_path / "model", wide=True)
    weights_only = fp8_finding(adapted(path), rows()).evidence
    both = fp8_finding(adapted(path, frozenset({"Fp8Linear"})), rows()).evidence
    assert both["loss_16_bit"] == weights_only["loss_16_bit"]
    assert all(b > w for b, w in zip(both["layer_errors"], weights_only["layer_errors"], strict=True))


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    handle = adapted(build_tiny_model(tmp_path / "model"))
    before = {name: value.clone() for name, value in handle.model.state_dict().items()}
    handle.model.train()
    state = torch.get_rng_state()
    first, second = fp8_finding(handle, rows()), fp8_finding(handle, rows())
    assert first == second and handle.model.training
    assert torch.equal(state, torch.get_rng_state())
    after = handle.model.state_dict()
    assert all(torch.equal(before[name].float(), after[name].float()) for name in before)


@pytest.mark.parametrize(
    ("changes", "severity"),
    [({}, "note"), ({"divergence": 2 * MOST_DIVERGENCE}, "warning"), ({"loss": 2.02}, "warning")],
)
def test_too_far_is_a_warning_with_a_way_out(changes: dict[str, float], severity: str) -> None:
    numbers: dict[str, Any] = {"divergence": 0.001, "loss": 2.001, "loss_16_bit": 2.0, "hidden": 0.02}
    finding = describe(Comparison(layers=[0.02, 0.03], tokens=99, **numbers | changes))
    assert finding.severity == severity and finding.evidence["worst_layer"] == 1
    assert (finding.fix is not None and finding.fix.patch == {"model.precision": "auto"}) == (
        severity == "warning"
    )
