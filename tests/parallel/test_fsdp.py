"""Weights held in shares by two processes over gloo: losses, checkpoints, adapters are one's (fp32, bf16)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from support.ranks import drive
from support.tiny_models import build_tiny_model
from support.tiny_runs import tiny_recipe, write_chat_rows
from transformers import AutoModelForCausalLM

from whet.engine.errors import WhetError
from whet.engine.methods.flat_optimizer import FlatAdamW, plain_state
from whet.engine.methods.optimizers import usable_optimizer
from whet.engine.parallel.fsdp import casts_gathered, count_bytes_as_numbers, shard, share_optimizer
from whet.engine.parallel.rank_memory import trained_width
from whet.engine.plan import make_plan

STEPS, CLOSE = 6, 1e-5
SHARES = {"ranks": 2, "strategy": "fsdp"}
ONE, TWO = [{"ranks": 1}], [SHARES]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, model: Path) -> dict[str, Any]:
    """What each run saw; one process pays for all imports."""
    folder = tmp_path_factory.mktemp("shares")
    # 22 rows in steps of four: an epoch's last step has one micro-batch, which only one process has.
    rows, held_out = write_chat_rows(folder / "rows.jsonl", 22), write_chat_rows(folder / "held_out.jsonl", 5)

    def recipe(**sections: Any) -> dict[str, Any]:
        changed: dict[str, Any] = {
            "data": {"eval": str(held_out)},
            "eval": {"every": 3, "batch_size": 2},
            "training": {"max_steps": STEPS, "save_every": 2, "gradient_checkpointing": True},
        }
        return tiny_recipe(model, rows, **changed | sections).model_dump(mode="json")

    # The head is of those weights that stay gathered between passes, the layers are not.
    qlora = recipe(
        model={"precision": "nf4"},
        adapter={"dropout": 0.0, "modules_to_save": ["lm_head"]},
        sampling={"prompts": ["Why?", "How?"], "max_new_tokens": 2},
    )
    # Nothing is cast where it is gathered: autocast does it.
    half = recipe(
        model={"precision": "nf4"},
        adapter={"dropout": 0.0, "modules_to_save": ["lm_head"]},
        training={"max_steps": STEPS, "precision": "bf16"},
    )
    lora, whole = recipe(adapter={"dropout": 0.0}), recipe(adapter={"kind": "none"})
    # Asked between the two prompts of step 3, whose second one nobody answers then; it ends after step 4.
    left_answering = {**SHARES, "stop_sampling": 3}
    return drive(
        folder,
        {
            "qlora, one": (qlora, ONE),
            "qlora, two": (qlora, TWO),
            "qlora, two, two, one": (qlora, [{**SHARES, "stop": 2}, left_answering, *ONE]),
            "half, one": (half, ONE),
            "half, two": (half, TWO),
            "lora, one": (lora, ONE),
            "lora, one, two, one": (lora, [{"ranks": 1, "stop": 2}, {**SHARES, "stop": 4}, *ONE]),
            "whole, one": (whole, ONE),
            "whole, two": (whole, TWO),
        },
    )


def assert_alike(one: dict[str, Any], two: dict[str, Any], close: float = CLOSE) -> None:
    """Every step's loss and gradient norm, the counts, and held-out losses."""
    assert [step[3:] for step in one["steps"]] == [step[3:] for step in two["steps"]]
    pairs = [(a[1:3], b[1:3]) for a, b in zip(one["steps"], two["steps"], strict=True)]
    pairs += [([a[1]], [b[1]]) for a, b in zip(one["evals"], two["evals"], strict=True)]
    assert len(pairs) == STEPS + 3
    for mine, others in pairs:
        assert mine == pytest.approx(others, rel=close)


@pytest.mark.parametrize("kind", ["qlora", "whole"])
def test_shares_have_the_losses_of_one_process(runs: dict[str, Any], kind: str) -> None:
    assert_alike(runs[f"{kind}, one"], runs[f"{kind}, two"])


def test_shares_beside_packed_weights_have_them_in_bf16_too(runs: dict[str, Any]) -> None:
    one, two = ([step[1] for step in runs[f"half, {ranks}"]["steps"]] for ranks in ("one", "two"))
    assert len(one) == STEPS and one == pytest.approx(two, rel=5e-3)
    assert one != pytest.approx([step[1] for step in runs["qlora, one"]["steps"]], rel=1e-5)


def test_every_process_answers_and_one_is_heard(runs: dict[str, Any]) -> None:
    assert runs["qlora, two"]["samples"] == runs["qlora, one"]["samples"] == 6


def test_the_run_says_why_it_is_not_on_the_fast_path(runs: dict[str, Any]) -> None:
    assert any("strategy fsdp" in text for text in runs["qlora, two"]["said"])


def test_two_processes_resume_bit_for_bit_and_one_goes_on_with_the_curve(runs: dict[str, Any]) -> None:
    whole, resumed = runs["qlora, two"], runs["qlora, two, two, one"]
    assert whole["steps"][:4] == resumed["steps"][:4]
    assert_alike(whole, resumed)


def test_a_run_goes_from_one_process_to_two_and_back(runs: dict[str, Any]) -> None:
    """From the flat optimizer, which has the one group that decays, to torch's and back."""
    assert_alike(runs["lora, one"], runs["lora, one, two, one"])


def test_the_adapter_is_whole_and_any_peft_loads_it(runs: dict[str, Any], model: Path) -> None:
    folders = [Path(runs[f"qlora, {ranks}"]["export"]) / "adapter" for ranks in ("one", "two")]
    one, two = (load_file(folder / "adapter_model.safetensors") for folder in folders)
    assert {name: t.shape for name, t in one.items()} == {name: t.shape for name, t in two.items()}
    assert any("lm_head" in name for name in two)
    torch.testing.assert_close(one, two, rtol=0, atol=2e-5)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), folders[1])
    taken = loaded.state_dict()["base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight"]
    assert torch.equal(taken, two["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"])


def test_whole_weights_are_written_whole(runs: dict[str, Any]) -> None:
    folders = [Path(runs[f"whole, {ranks}"]["export"]) / "model" for ranks in ("one", "two")]
    one, two = (load_file(folder / "model.safetensors") for folder in folders)
    torch.testing.assert_close(one, two, rtol=0, atol=2e-5)
    configs = [AutoModelForCausalLM.from_pretrained(folder).config for folder in folders]
    assert configs[0].architectures == configs[1].architectures


def test_bytes_of_four_bit_weights_count_as_numbers_without_changing() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    linear = bitsandbytes.nn.Linear4bit(64, 32, bias=False, quant_type="nf4", compute_dtype=torch.bfloat16)
    linear.to("cpu")
    before, bits = linear.weight.data.clone(), torch.randn(3, 64, dtype=torch.bfloat16, requires_grad=True)
    product = linear(bits)
    count_bytes_as_numbers(torch.nn.Sequential(linear))
    assert linear.weight.dtype == linear.quant_storage == torch.float32
    assert linear.weight.shape == (before.numel() // 4, 1)
    assert torch.equal(linear.weight.data.view(torch.uint8).flatten(), before.flatten())
    assert torch.equal(linear(bits), product)


def test_nothing_is_cast_beside_packed_weights() -> None:
    """Their bytes would be; what trains is cast by autocast then."""
    assert casts_gathered("bf16", "bf16")
    assert not casts_gathered("nf4", "bf16")
    assert not casts_gathered("fp32", "fp32")


def test_the_plan_knows_what_is_cast(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    plain = make_plan(tiny_recipe(model, write_chat_rows(tmp_path / "rows.jsonl", 4))).resolved
    for base, computing in (("bf16", "bf16"), ("nf4", "bf16"), ("nf4", "fp32"), ("fp32", "bf16")):
        resolved = plain.model_copy(update={"base_precision": base, "compute_dtype": computing})
        assert trained_width(resolved) == (2 if casts_gathered(base, computing) else 4)


@pytest.mark.parametrize("bits", [8, 32])
def test_a_state_of_the_fast_path_is_one_of_plain_adamw(bits: int) -> None:
    torch.manual_seed(0)
    weights = torch.nn.Parameter(torch.randn(64, 128))
    other = torch.nn.Parameter(weights.detach().clone())
    flat, plain = FlatAdamW([weights], lr=1e-3, bits=bits), torch.optim.AdamW([other], lr=1e-3)
    for _ in range(2):
        weights.grad = torch.randn(64, 128)
        flat.step()
    state = flat.state_dict()
    moments = plain_state(state["state"][0])
    shared = share_optimizer({**state, "state": {0: moments}}, plain.param_groups)
    plain.load_state_dict(shared)
    wanted = flat.buffers[0].moments(flat.buffers[0].slots[0])
    for name, moment in zip(("exp_avg", "exp_avg_sq"), wanted, strict=True):
        kept = plain.state[plain.param_groups[0]["params"][0]][name]
        assert kept.shape == (64, 128) and kept.abs().max() > 0
        if isinstance(moment, torch.Tensor):
            assert torch.equal(kept.flatten(), moment)


def test_fp16_and_8_bit_states_are_refused_or_replaced() -> None:
    with pytest.raises(WhetError, match="fp16"):
        shard(torch.nn.Linear(2, 2), torch.device("cpu"), torch.float16, casts=True)
    name, finding = usable_optimizer("adamw_8bit", torch.device("cpu"), in_shares=True)
    assert name == "adamw" and finding is not None and "FSDP" in str(finding.evidence["reason"])
