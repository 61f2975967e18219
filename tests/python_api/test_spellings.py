"""Every spelling of older generations: renamed, set aside with a note, or refused by name."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch

from whet.engine import SFTConfig
from whet.engine.errors import WhetError
from whet.engine.python_api.notes import WhetNote
from whet.engine.python_api.spellings import CONFIG_WITHOUT_EFFECT, config_from_trainer

NO_GPU = not torch.cuda.is_available()


def config(**given: Any) -> SFTConfig:
    return SFTConfig("out", **given)


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        ({"max_seq_length": 77}, "max_length", 77),
        ({"evaluation_strategy": "epoch"}, "eval_strategy", "epoch"),
        ({"warmup_ratio": 0.25}, "warmup_steps", 0.25),
        ({"warmup_ratio": 0.0}, "warmup_steps", 0.0),
        ({"group_by_length": True}, "train_sampling_strategy", "group_by_length"),
        ({"no_cuda": True}, "use_cpu", True),
        ({"per_gpu_train_batch_size": 3}, "per_device_train_batch_size", 3),
        ({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha", 5.0),
        ({"dataset_num_proc": 2}, "dataset_num_proc", 2),
        ({"embedding_learning_rate": 5e-6}, "embedding_learning_rate", 5e-6),
        ({"gradient_checkpointing": False}, "gradient_checkpointing", False),
        ({}, "logging_nan_inf_filter", False),
    ],
)
def test_is_translated(given: dict[str, Any], field: str, value: object) -> None:
    assert getattr(config(**given), field) == value


@pytest.mark.parametrize("name", [*CONFIG_WITHOUT_EFFECT])
def test_is_set_aside_and_said(name: str) -> None:
    with pytest.warns(WhetNote, match=name):
        config(**{name: "anything"})


def test_unsafe_weights_are_not_written() -> None:
    with pytest.warns(WhetNote, match="safetensors"):
        config(save_safetensors=False)


def test_explicit_warmup_steps_win_over_a_ratio() -> None:
    with pytest.warns(WhetNote, match="warmup_ratio"):
        assert config(warmup_ratio=0.1, warmup_steps=7).warmup_steps == 7


@pytest.mark.parametrize("name", ["push_to_hub_token", "hub_token"])
def test_tokens_in_code_are_refused(name: str) -> None:
    with pytest.raises(WhetError, match="HF_TOKEN") as refused:
        config(**{name: "hf_secret"})
    assert refused.value.code == "python_api.token"
    assert "hf_secret" not in str(refused.value)


def test_the_environments_own_token_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    assert config(hub_token="hf_mine").hub_token is None


def test_two_spellings_that_differ_are_an_error() -> None:
    with pytest.raises(WhetError, match="max_length") as refused:
        config(max_seq_length=10, max_length=20)
    assert refused.value.code == "python_api.conflict"


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(WhetError, match="learning_rate") as refused:
        config(learnin_rate=1e-4)
    assert refused.value.code == "python_api.unknown_argument"


@pytest.mark.skipif(not NO_GPU, reason="about machines without a GPU")
def test_half_precision_follows_the_hardware() -> None:
    assert not config().bf16
    assert not config().fp16
    for name in ("bf16", "fp16"):
        with pytest.warns(WhetNote, match="fp32"):
            asked = config(**{name: True})
        assert (asked.bf16, asked.fp16) == (False, False)


def test_8bit_adamw_falls_back_aloud(monkeypatch: pytest.MonkeyPatch) -> None:
    from whet.engine.methods import optimizers

    def fail(device: torch.device) -> None:
        raise RuntimeError("no kernel for this device")

    monkeypatch.setattr(optimizers, "_try_8bit", fail)
    with pytest.warns(WhetNote, match="no kernel for this device"):
        assert config(optim="adamw_8bit").optim == "adamw_torch"


def test_trainer_arguments_move_to_the_configuration() -> None:
    given = {"dataset_text_field": "body", "max_seq_length": 64, "packing": False, "callbacks": []}
    assert config_from_trainer(given, {}) == {
        "dataset_text_field": "body",
        "max_length": 64,
        "packing": False,
    }
    assert given == {"callbacks": []}


def test_trainer_and_configuration_must_agree() -> None:
    with pytest.raises(WhetError, match="max_length"):
        config_from_trainer({"max_seq_length": 64}, {"max_length": 32})
    assert config_from_trainer({"max_seq_length": 64}, {"max_length": 64}) == {"max_length": 64}


def test_errors_cross_process_borders_whole() -> None:
    error = pickle.loads(pickle.dumps(WhetError("a.code", "What failed.", "Do this.")))
    assert error.as_dict() == {"code": "a.code", "message": "What failed.", "hint": "Do this."}
