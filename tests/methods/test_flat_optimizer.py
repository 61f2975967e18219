"""FlatAdamW beside torch.optim.AdamW and bitsandbytes' AdamW8bit: same steps, interchangeable states."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from whet.engine.errors import WhetError
from whet.engine.methods.flat_optimizer import FlatAdamW
from whet.kernels.spec import relative_error


class Toy(nn.Module):
    """Odd sizes, a tensor large enough for 8-bit states, a bias, an embedding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(11, 70)
        self.up = nn.Linear(70, 90)
        self.down = nn.Linear(90, 3, bias=False)

    def forward(self, tokens_B: torch.Tensor) -> torch.Tensor:
        return self.down(torch.tanh(self.up(self.embed(tokens_B))))


def groups_of(model: nn.Module) -> list[dict[str, Any]]:
    """As the Trainer makes them: with and without decay, by name."""
    named = list(model.named_parameters())
    return [
        {"params": [(n, p) for n, p in named if not n.endswith("bias")], "weight_decay": 0.1},
        {"params": [(n, p) for n, p in named if n.endswith("bias")], "weight_decay": 0.0},
    ]


def backward(model: nn.Module, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 11, (8,), generator=generator)
    target = torch.randn(8, 3, generator=generator, dtype=next(model.parameters()).dtype)
    loss = (model(tokens) - target).square().mean()
    loss.backward()
    return loss.detach()


def pair(**options: Any) -> tuple[nn.Module, FlatAdamW, nn.Module, torch.optim.AdamW]:
    ours, theirs = Toy(), Toy()
    options = {"lr": 1e-2, "betas": (0.9, 0.99), **options}
    return (
        ours,
        FlatAdamW(groups_of(ours), **options),
        theirs,
        torch.optim.AdamW(groups_of(theirs), **options),
    )


def assert_same(ours: nn.Module, theirs: nn.Module, tolerance: float = 1e-6) -> None:
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert relative_error(mine, other) < tolerance, name


def test_hundred_steps_as_torch() -> None:
    """With accumulation, clipping, schedules, a rate of its own, gradients that are None or autograd's."""
    steps = 100
    ours, flat, theirs, plain = pair()
    flat.param_groups[1]["lr"] = plain.param_groups[1]["lr"] = 3e-2
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(each, steps) for each in (flat, plain)]
    for step in range(steps):
        if step % 3:
            flat.zero_grad()
        else:
            ours.zero_grad()  # as the Trainer does; autograd allocates, the optimizer copies
        theirs.zero_grad()
        for micro in range(2):
            backward(ours, 2 * step + micro)
            backward(theirs, 2 * step + micro)
        expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        torch.testing.assert_close(flat.gradient_norm(), expected)
        torch.testing.assert_close(flat.clip_(0.5), expected)
        flat.step()
        plain.step()
        for schedule in schedules:
            schedule.step()
    assert_same(ours, theirs)


def test_everything_is_a_view_of_one_buffer() -> None:
    model = Toy()
    flat = FlatAdamW(groups_of(model))
    flat.zero_grad()
    backward(model, 0)
    (buffer,) = flat.buffers
    for flat_P, tensors in (
        (buffer.parameters_P, list(model.parameters())),
        (buffer.gradients_P, [p.grad for p in model.parameters()]),
    ):
        for tensor in tensors:
            assert tensor is not None
            assert tensor.untyped_storage().data_ptr() == flat_P.untyped_storage().data_ptr()
            assert tensor.storage_offset() % 256 == 0
    squares = sum(p.grad.double().square().sum() for p in model.parameters() if p.grad is not None)
    torch.testing.assert_close(flat.gradient_norm().double(), torch.as_tensor(squares).sqrt())


def test_a_parameter_without_gradient_counts_as_zero() -> None:
    model = Toy()
    flat = FlatAdamW(groups_of(model), lr=0.1)
    flat.zero_grad()
    backward(model, 0)
    model.zero_grad()
    before = [p.detach().clone() for p in model.parameters()]
    flat.step()
    decays = [0.1 if p.ndim > 1 else 0.0 for p in model.parameters()]
    for old, new, decay in zip(before, model.parameters(), decays, strict=True):
        torch.testing.assert_close(new, old * (1 - 0.1 * decay))


def run(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_state_goes_to_torch_and_back() -> None:
    ours, flat, theirs, plain = pair()
    run(ours, flat, range(3))
    run(theirs, plain, range(3))
    saved, expected = flat.state_dict(), plain.state_dict()
    assert saved["state"].keys() == expected["state"].keys()
    for key, state in expected["state"].items():
        assert saved["state"][key].keys() == state.keys()
        for name, value in state.items():
            torch.testing.assert_close(saved["state"][key][name], value)
    # Swap: each goes on from the other's state.
    plain.load_state_dict(through_a_file(saved))
    flat.load_state_dict(through_a_file(expected))
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    run(ours, flat, range(3, 8))
    run(theirs, plain, range(3, 8))
    assert_same(ours, theirs)


@pytest.mark.parametrize("bits", [32, 8])
def test_resume_is_bit_identical(bits: int) -> None:
    through, resumed = Toy(), Toy()
    optimizer = FlatAdamW(groups_of(through), lr=1e-2, bits=bits)
    run(through, optimizer, range(3))
    weights, saved = copy.deepcopy(through.state_dict()), through_a_file(optimizer.state_dict())
    run(through, optimizer, range(3, 6))
    again = FlatAdamW(groups_of(resumed), lr=5.0, bits=bits)
    run(resumed, again, range(7, 8))
    resumed.load_state_dict(weights)
    again.load_state_dict(saved)
    run(resumed, again, range(3, 6))
    for one, other in zip(through.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_loading_an_empty_state_starts_over() -> None:
    model, flat, fresh, _ = pair()
    empty = copy.deepcopy(flat.state_dict())
    assert empty["state"] == {}
    weights = copy.deepcopy(model.state_dict())
    run(model, flat, range(3))
    flat.load_state_dict(empty)
    model.load_state_dict(weights)
    run(model, flat, range(1))
    run(fresh, FlatAdamW(groups_of(fresh), lr=1e-2, betas=(0.9, 0.99)), range(1))
    assert_same(model, fresh, 1e-12)


def test_steps_that_differ_between_parameters_are_kept() -> None:
    ours, flat, theirs, plain = pair()
    run(theirs, plain, range(2))
    state = plain.state_dict()
    state["state"][0]["step"] = torch.tensor(40.0)
    flat.load_state_dict(copy.deepcopy(state))
    plain.load_state_dict(copy.deepcopy(state))
    ours.load_state_dict(theirs.state_dict())
    run(ours, flat, range(2, 4))
    run(theirs, plain, range(2, 4))
    assert_same(ours, theirs)
    assert [int(s["step"]) for s in flat.state_dict()["state"].values()] == [42, 4, 4, 4]


@pytest.mark.parametrize("wide", [False, True])
def test_8bit_states_are_bitsandbytes_own(wide: bool) -> None:
    """Loaded either way, a step from them is the same; small parameters keep fp32 moments in both."""
    optim = pytest.importorskip("bitsandbytes.optim")
    ours, theirs = Toy(), Toy()
    keep = [ours.up.weight] if wide else []
    flat = FlatAdamW(groups_of(ours), lr=1e-2, bits=8, fp32_moments=keep)
    other = optim.AdamW8bit(groups_of(theirs), lr=1e-2)
    run(theirs, other, range(4))
    flat.load_state_dict(through_a_file(other.state_dict()))
    ours.load_state_dict(theirs.state_dict())
    if not wide:
        state = theirs.up.weight
        codes = flat.buffers[0].moments_8bit[0].codes
        assert torch.equal(codes[: state.numel()], other.state[state]["state1"].flatten())
    run(ours, flat, range(4, 5))
    run(theirs, other, range(4, 5))
    assert_same(ours, theirs, 1e-5)
    if not wide:
        differs = codes[: state.numel()] != other.state[state]["state1"].flatten()
        assert differs.float().mean() < 0.01  # ties, and bitsandbytes' rounding of negative numbers near 0
    other.load_state_dict(through_a_file(flat.state_dict()))
    run(ours, flat, range(5, 6))
    run(theirs, other, range(5, 6))
    assert_same(ours, theirs, 1e-5)


def test_groups_may_be_split_later() -> None:
    """As an embedding rate of its own does, after the Trainer built the optimizer."""
    models = (Toy(), Toy())
    optimizers = [
        FlatAdamW([{"params": list(models[0].parameters())}], lr=1e-2),
        torch.optim.AdamW([{"params": list(models[1].parameters())}], lr=1e-2),
    ]
    for model, optimizer in zip(models, optimizers, strict=True):
        run(model, optimizer, range(1))
        (group,) = optimizer.param_groups
        embedding = model.embed.weight
        group["params"] = [p for p in group["params"] if p is not embedding]
        optimizer.add_param_group({**group, "params": [embedding], "lr": 1e-3, "weight_decay": 0.0})
        run(model, optimizer, range(1, 4))
    assert_same(*models)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_are_stepped_as_torch_does(dtype: torch.dtype) -> None:
    ours, flat, theirs, plain = pair()
    ours, theirs = Toy(), Toy()
    for model in (ours, theirs):
        model.down.to(dtype)
        model.embed.weight.requires_grad_(False)
        model.forward = lambda t, m=model: m.down(torch.tanh(m.up(m.embed(t))).to(dtype))  # type: ignore
    flat = FlatAdamW(groups_of(ours), lr=1e-2)
    plain = torch.optim.AdamW(groups_of(theirs), lr=1e-2)
    for step in range(4):
        for model, optimizer in ((ours, flat), (theirs, plain)):
            optimizer.zero_grad()
            backward(model, step)
        expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.1)
        assert abs(float(flat.clip_(0.1)) / float(expected) - 1) < 1e-2
        flat.step()
        plain.step()
    assert_same(ours, theirs, 1e-2 if dtype == torch.bfloat16 else 1e-6)
    again = FlatAdamW(groups_of(ours), lr=1e-2)
    again.load_state_dict(through_a_file(flat.state_dict()))
    assert torch.equal(again.state[ours.down.weight]["exp_avg"], flat.state[ours.down.weight]["exp_avg"])


def test_the_scaler_unscales_views_and_skips() -> None:
    ours, flat, theirs, plain = pair()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(3):
        flat.zero_grad()
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(0, 11, (8,), generator=generator)
        target = torch.randn(8, 3, generator=generator)
        scaler.scale((ours(tokens) - target).square().mean()).backward()
        scaler.unscale_(flat)
        flat.clip_(0.1)
        scaler.step(flat)
        scaler.update()
        plain.zero_grad()
        backward(theirs, step)
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.1)
        plain.step()
    assert_same(ours, theirs)
    before = copy.deepcopy(ours.state_dict())
    flat.zero_grad()
    scaler.scale(ours(torch.tensor([1])).sum() * float("inf")).backward()
    scaler.unscale_(flat)
    flat.clip_(0.1)
    scaler.step(flat)
    scaler.update()
    assert all(torch.equal(before[name], value) for name, value in ours.state_dict().items())
    flat.zero_grad()
    assert float(flat.gradient_norm()) == 0


def test_the_shadow_follows() -> None:
    model = Toy()
    flat = FlatAdamW(groups_of(model), lr=1e-2, bits=8, shadow_dtype=torch.bfloat16)
    shadow = flat.shadow(model.up.weight)
    assert shadow is not None and torch.equal(shadow, model.up.weight.bfloat16())
    run(model, flat, range(1))
    assert torch.equal(shadow, model.up.weight.bfloat16())
    with torch.no_grad():
        model.up.weight.zero_()
    flat.refresh_shadow()
    assert not shadow.any()


def test_views_save_as_safetensors(tmp_path: Any) -> None:
    model = Toy()
    FlatAdamW(groups_of(model))
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    loaded = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())


def test_advance_and_apply_are_a_step() -> None:
    ours, flat, theirs, plain = pair()
    for step in range(3):
        for model, optimizer in ((ours, flat), (theirs, plain)):
            optimizer.zero_grad()
            backward(model, step)
        flat.advance()
        flat.apply()
        plain.step()
    assert_same(ours, theirs)


def test_refuses_what_would_be_lost() -> None:
    model = Toy()
    flat = FlatAdamW(groups_of(model))
    backward(model, 0)
    with pytest.raises(ValueError, match="bits=4"):
        FlatAdamW(groups_of(Toy()), bits=4)
    with pytest.raises(WhetError, match="momentum_buffer") as refused:
        flat.load_state_dict({**flat.state_dict(), "state": {0: {"step": 1, "momentum_buffer": None}}})
    assert refused.value.code == "optimizer.state_unknown"
    model.up.weight.data = model.up.weight.data.clone()
    with pytest.raises(WhetError, match=r"\(90, 70\)") as refused:
        flat.step()
    assert refused.value.code == "optimizer.moved"
    flat = FlatAdamW(groups_of(model))
    flat.param_groups[0]["params"].append(nn.Parameter(torch.zeros(5)))
    with pytest.raises(WhetError, match=r"\(5,\)"):
        flat.step()
