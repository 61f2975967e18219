"""Encoders on the fast path compute what transformers and PEFT compute, forward and backward."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.fast_encoders import adapted, padded_rows, weighed
from support.tiny_embedders import save_transformer

from whet.engine.models.fast_path.encoders import (
    apply_fast_encoder,
    base_encoder,
    encoder_program_of,
    pack_documents,
)
from whet.engine.models.fast_path.encoders.module import FastEncoder
from whet.engine.models.fast_path.encoders.program import EncoderProgram

NAMES = ("bert", "xlm-r", "roberta", "modernbert")
DROPS: dict[str, Any] = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.15}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("encoders")
    return {name: save_transformer(root / name, name) for name in NAMES}


def fast(folder: Path, **more: Any) -> Any:
    model = adapted(folder, **more)
    report = apply_fast_encoder(model, more.get("dtype", torch.float32))
    assert report.complete and str(report) == "attention 3/3, mlp 3/3"
    return model


def program(model: Any) -> EncoderProgram:
    found = encoder_program_of(model)
    assert found is not None
    return found


def assert_alike(ours: tuple[Any, Any], theirs: tuple[Any, Any], tolerance: float = 1e-5) -> None:
    assert relative(ours[0], theirs[0]) < tolerance
    assert ours[1].keys() == theirs[1].keys() and ours[1]
    for name, gradient in theirs[1].items():
        assert relative(ours[1][name], gradient) < tolerance, name


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("name", NAMES)
def test_hidden_states_and_gradients_are_transformers(folders: dict[str, Path], name: str) -> None:
    plain, ours = adapted(folders[name]), fast(folders[name])
    inputs = padded_rows(plain.config.pad_token_id)
    theirs = weighed(plain, inputs)
    assert_alike(weighed(ours, inputs), theirs)
    ours.get_base_model().gradient_checkpointing_enable()
    assert program(ours).recomputes()
    assert_alike(weighed(ours, inputs), theirs)


@pytest.mark.parametrize("name", NAMES)
def test_padding_in_front_and_adapters_switched_off(folders: dict[str, Path], name: str) -> None:
    plain, ours = adapted(folders[name]).eval(), fast(folders[name]).eval()
    inputs = padded_rows(plain.config.pad_token_id, (30, 4, 11))
    with torch.no_grad():
        alone = [ours(input_ids=inputs["input_ids"][i : i + 1, :n]).last_hidden_state[0]
                 for i, n in enumerate((30, 4, 11))]  # fmt: skip
        turned = {key: value.flip(1) for key, value in inputs.items()}
        turned["input_ids"] = torch.stack(
            [torch.cat([row[n:], row[:n]]) for row, n in zip(inputs["input_ids"], (30, 4, 11), strict=True)]
        )
        behind = ours(**turned).last_hidden_state
        for row, hidden in enumerate(alone):
            torch.testing.assert_close(behind[row, 30 - len(hidden) :], hidden, atol=1e-5, rtol=1e-5)
        with plain.disable_adapter(), ours.disable_adapter():
            off, own = (m(**inputs).last_hidden_state[0] for m in (plain, ours))
        torch.testing.assert_close(own, off, atol=1e-5, rtol=1e-5)
        assert relative(alone[0], off) > 1e-2


def test_token_types_reach_the_embeddings(folders: dict[str, Path]) -> None:
    plain, ours = adapted(folders["bert"]), fast(folders["bert"])
    inputs = padded_rows(plain.config.pad_token_id)
    inputs["token_type_ids"] = (torch.arange(80)[None] > 3).long() * inputs["attention_mask"]
    theirs = weighed(plain, inputs)
    assert_alike(weighed(ours, inputs), theirs)
    del inputs["token_type_ids"]
    assert relative(weighed(ours, inputs)[0], theirs[0]) > 1e-2


def test_dropout_of_the_adapter_is_drawn_once(folders: dict[str, Path]) -> None:
    ours = fast(folders["bert"], dropout=0.3)
    inputs = padded_rows(0)
    torch.manual_seed(5)
    first = weighed(ours, inputs)
    ours.get_base_model().gradient_checkpointing_enable()
    torch.manual_seed(5)
    assert_alike(weighed(ours, inputs), first, 1e-6)  # the mask is drawn once, not again on the way back
    assert relative(weighed(ours, inputs)[0], first[0]) > 1e-3


# --- dropout of the configuration


def test_dropped_passes_have_the_gradients_of_what_they_computed(folders: dict[str, Path]) -> None:
    model = fast(folders["bert"], dtype=torch.float64, **DROPS)
    inputs = padded_rows(0, (20, 7, 12))

    def total() -> torch.Tensor:
        torch.manual_seed(3)
        hidden = model(**inputs).last_hidden_state * inputs["attention_mask"][..., None]
        return (hidden * torch.linspace(-1, 1, hidden.numel(), dtype=hidden.dtype).view_as(hidden)).sum()

    total().backward()
    step, generator = 1e-6, torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.grad is None or ".layer.1." not in name:
                continue
            way = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(way, alpha=step)
            above = total()
            parameter.add_(way, alpha=-2 * step)
            slope = (above - total()) / (2 * step)
            parameter.add_(way, alpha=step)
            assert float(slope) == pytest.approx(float((parameter.grad * way).sum()), rel=1e-5, abs=1e-6)


def test_dropout_spreads_as_transformers_and_is_off_in_evaluation(folders: dict[str, Path]) -> None:
    plain, ours = adapted(folders["bert"], **DROPS), fast(folders["bert"], **DROPS)
    inputs = padded_rows(0, (20, 7))
    seen = inputs["attention_mask"].bool()
    torch.manual_seed(0)
    with torch.no_grad():
        drawn = [torch.stack([m(**inputs).last_hidden_state[seen] for _ in range(80)]) for m in (ours, plain)]
        (mean, wanted), (spread, usual) = zip(*((d.mean(0), d.std(0)) for d in drawn), strict=True)
        noise = float(usual.mean()) / 80**0.5
        assert float((mean - wanted).abs().mean()) < 1.5 * noise
        assert float(spread.mean()) == pytest.approx(float(usual.mean()), rel=0.05)
        calm = [m.eval()(**inputs).last_hidden_state[seen] for m in (ours, plain)]
    torch.testing.assert_close(calm[0], calm[1], atol=1e-5, rtol=1e-5)


# --- what it is put on


def test_the_model_stays_what_it_was(folders: dict[str, Path], tmp_path: Path) -> None:
    plain, ours = adapted(folders["bert"]), fast(folders["bert"])
    inner = base_encoder(ours)
    assert isinstance(inner, FastEncoder) and str(type(inner)) == str(type(base_encoder(plain)))
    assert [n for n, _ in ours.named_modules()] == [n for n, _ in plain.named_modules()]
    for model, folder in ((plain, tmp_path / "plain"), (ours, tmp_path / "ours")):
        model.save_pretrained(folder)
    files = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("plain", "ours")]
    assert files[0] == files[1]
    pooled = [m.eval()(**padded_rows(0)).pooler_output for m in (ours, plain)]
    torch.testing.assert_close(pooled[0], pooled[1], atol=1e-5, rtol=1e-5)


def test_a_model_that_changed_runs_plain_and_says_so(folders: dict[str, Path]) -> None:
    ours = fast(folders["bert"])
    merged = ours.merge_and_unload()
    with pytest.warns(UserWarning, match="changed since"):
        hidden = merged(**padded_rows(0)).last_hidden_state
    again = apply_fast_encoder(merged.requires_grad_(False), torch.float32)
    assert again.complete
    torch.testing.assert_close(merged(**padded_rows(0)).last_hidden_state[0, :19], hidden[0, :19],
                               atol=1e-5, rtol=1e-5)  # fmt: skip


def test_what_stays_plain_has_a_reason(folders: dict[str, Path]) -> None:
    from transformers import AutoModel, DistilBertConfig, DistilBertModel, MPNetConfig, MPNetModel

    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    for model, reason in (
        (AutoModel.from_pretrained(folders["bert"], dtype=torch.float32), "train"),
        (adapted(folders["bert"], hidden_act="relu"), "activation 'relu'"),
        (adapted(folders["modernbert"], mlp_dropout=0.1), "mlp_dropout=0.1"),
        (DistilBertModel(DistilBertConfig(dim=32, hidden_dim=48, n_heads=2, n_layers=1)), "distilbert is no"),
        (MPNetModel(MPNetConfig(vocab_size=50, **sizes)), "a learned bias"),
    ):
        before = type(base_encoder(model))
        report = apply_fast_encoder(model, torch.float32)
        assert not report.complete and reason in str(report)
        assert type(base_encoder(model)) is before


def test_under_a_head_and_without_an_adapter(folders: dict[str, Path]) -> None:
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    plain = AutoModelForSequenceClassification.from_pretrained(folders["bert"], num_labels=3).eval()
    ours = copy.deepcopy(plain).requires_grad_(False)
    assert apply_fast_encoder(ours, torch.float32).complete
    inputs = padded_rows(0)
    with torch.no_grad():
        torch.testing.assert_close(ours(**inputs).logits, plain(**inputs).logits, atol=1e-5, rtol=1e-5)


# --- packing


def test_filling_stands_behind_the_texts() -> None:
    lengths = np.array([3, 5, 2])
    packed = pack_documents(np.arange(10), lengths, multiple=16, documents=8, filler=99)
    assert packed.input_ids_T.tolist() == [*range(10), *[99] * 6]
    assert packed.offsets.tolist() == [0, 3, 8, 10, 15, 16, 16, 16, 16]
    assert packed.positions_T.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 0, 1, 2, 3, 4, 0]
    assert (packed.documents, packed.longest) == (8, 128)
    exact = pack_documents(np.arange(10), lengths)
    assert exact.offsets.tolist() == [0, 3, 8, 10] and (exact.documents, exact.longest) == (3, 5)
