"""The fast head answers TRL's question with TRL's numbers: log-probabilities, their gradients, metrics."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from support.fast_models import gradients, with_random_adapter
from support.tiny_families import build
from trl.trainer.utils import add_fused_lm_head

from whet.engine.methods.fast_head import METRICS, put_fast_head
from whet.engine.models.fast_path import apply_fast_path, causal_model, program_of, take_off_fast_path
from whet.kernels.spec import relative_error

FAMILIES = ("llama", "qwen3", "gemma2", "granite")
"""Plain; normed heads; logits with a cap; logits with a factor."""
LENGTHS = (19, 7, 12, 4)


def batch(left: bool = False) -> dict[str, torch.Tensor]:
    """Padded rows of which the second half is an answer."""
    generator = torch.Generator().manual_seed(3)
    rows, most = [], max(LENGTHS)
    for length in LENGTHS:
        ids = torch.randint(3, 128, (length,), generator=generator)
        labels = ids.where(torch.arange(length) >= length // 2, -100)
        parts = (ids, torch.ones(length, dtype=torch.long), labels)
        room = [torch.full((most - length,), filler) for filler in (0, 0, -100)]
        pairs = zip(room, parts, strict=True)
        rows.append([torch.cat([gap, part] if left else [part, gap]) for gap, part in pairs])
    names = ("input_ids", "attention_mask", "labels")
    return {name: torch.stack(each) for name, each in zip(names, zip(*rows, strict=True), strict=True)}


def both(family: str, **options: Any) -> tuple[Any, Any]:
    """The same adapted model with TRL's head, and on the fast path with ours before it."""
    plain = with_random_adapter(build(family))
    fast = copy.deepcopy(plain)
    apply_fast_path(fast, torch.float32)
    for model in (plain, fast):
        add_fused_lm_head(causal_model(model), outputs=METRICS, **options)
    put_fast_head(fast, METRICS, **options)
    return plain, fast


def asked(model: Any, inputs: dict[str, torch.Tensor]) -> Any:
    return model(**inputs, use_cache=False, fused_lm_head=True)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_numbers_and_gradients_are_those_of_trl(family: str, left: bool) -> None:
    inputs = batch(left)
    factors = torch.linspace(-1, 1, len(LENGTHS))[:, None]
    answers, seen = [], []
    for model in both(family, temperature=0.8):
        found = asked(model, inputs)
        with torch.no_grad(), model.disable_adapter():  # a reference runs before the backward pass
            reference = asked(model, inputs)
        ((found.log_probs - reference.log_probs) * factors).sum().backward()
        answers.append((found, reference))
        seen.append(gradients(model))
    (plain, plain_reference), (fast, fast_reference) = answers
    for theirs, ours in ((plain, fast), (plain_reference, fast_reference)):
        for name in ("log_probs", "entropy", "loss"):
            assert relative_error(getattr(ours, name), getattr(theirs, name)) < 1e-5, name
        torch.testing.assert_close(ours.mean_logits, theirs.mean_logits, rtol=1e-4, atol=1e-6)
        assert torch.equal(ours.is_top1, theirs.is_top1) and torch.equal(ours.label_mask, theirs.label_mask)
    assert relative_error(fast.log_probs, fast_reference.log_probs) > 1e-3
    assert seen[0].keys() == seen[1].keys()
    for name, gradient in seen[0].items():
        assert relative_error(seen[1][name], gradient) < 1e-5, name


def test_the_base_alone_is_the_model_with_its_adapter_off() -> None:
    model = with_random_adapter(build("qwen3"))
    apply_fast_path(model, torch.float32)
    add_fused_lm_head(causal_model(model))
    head = put_fast_head(model)
    inputs = batch()
    assert head.knows_reference
    policy = asked(model, inputs).log_probs
    base = head.reference_log_probs()
    with torch.no_grad(), model.disable_adapter():
        expected = asked(model, inputs).log_probs
    assert not base.requires_grad and relative_error(base, expected) < 1e-6
    policy.sum().backward()  # after a reference, by what was in force
    seen = {name: gradient.clone() for name, gradient in gradients(model).items()}
    model.zero_grad()
    asked(model, inputs).log_probs.sum().backward()
    assert all(relative_error(seen[name], gradient) < 1e-6 for name, gradient in gradients(model).items())
    assert relative_error(asked(model, inputs).log_probs, policy) < 1e-6


def test_what_else_an_adapter_trains_is_no_base_alone() -> None:
    whole = with_random_adapter(build("llama"), modules_to_save=["lm_head"])
    apply_fast_path(whole, torch.float32)
    assert not put_fast_head(whole).knows_reference
    dora = with_random_adapter(build("llama"), use_dora=True)
    apply_fast_path(dora, torch.float32)
    assert not put_fast_head(dora).knows_reference
    experts = with_random_adapter(build("qwen3_moe"))
    apply_fast_path(experts, torch.float32)
    assert not put_fast_head(experts).knows_reference
    other = with_random_adapter(build("llama"))
    other.add_adapter("ref", LoraConfig(r=2, target_modules=other.peft_config["default"].target_modules))
    apply_fast_path(other, torch.float32)
    assert not put_fast_head(other).knows_reference


def test_an_adapter_that_had_learnt_is_a_reference(tmp_path: Path) -> None:
    model = with_random_adapter(build("qwen3"))
    model.save_pretrained(tmp_path)
    model.load_adapter(str(tmp_path), "ref")
    model.set_adapter("default")
    apply_fast_path(model, torch.float32)
    add_fused_lm_head(causal_model(model))
    head, inputs = put_fast_head(model), batch()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B.default" in name:
                parameter.mul_(3)
    assert head.knows_reference
    policy = asked(model, inputs).log_probs
    reference = head.reference_log_probs()
    policy.sum().backward()
    seen = {name: gradient.clone() for name, gradient in gradients(model).items()}
    model.zero_grad()
    again = asked(model, inputs).log_probs
    again.sum().backward()
    assert torch.equal(again, policy)
    assert all(torch.equal(seen[name], gradient) for name, gradient in gradients(model).items())
    model.set_adapter("ref")
    assert not head.knows_reference  # the policy is another one now
    with torch.no_grad():
        expected = asked(model, inputs).log_probs
    assert relative_error(reference, expected) < 1e-5 and relative_error(policy, expected) > 1e-2


def test_recomputing_and_chunks_change_nothing() -> None:
    _, fast = both("qwen3")
    program = program_of(fast)
    assert program is not None
    seen = []
    for keeps, chunk, logits in ((True, 1 << 30, None), (False, 8, 4096)):
        program.set_keep([keeps] * len(program.layers), [keeps] * len(program.layers))
        program.chunk, program.logit_bytes = chunk, logits
        asked(fast, batch()).log_probs.square().sum().backward()
        seen.append({name: gradient.clone() for name, gradient in gradients(fast).items()})
        fast.zero_grad()
    assert all(relative_error(seen[1][name], seen[0][name]) < 1e-5 for name in seen[0])


def test_what_it_does_not_know_goes_the_old_way() -> None:
    plain, fast = both("llama")
    inputs = batch()
    ids = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    places = inputs["attention_mask"].cumsum(1).sub(1).clamp(min=0)
    attended = inputs["attention_mask"].bool()
    torch.testing.assert_close(fast(**ids).logits[attended], plain(**ids).logits[attended])
    asked_for = [asked(model, inputs | {"position_ids": places}) for model in (plain, fast)]
    torch.testing.assert_close(asked_for[1].log_probs, asked_for[0].log_probs)
    nothing = asked(fast, inputs | {"labels": torch.full_like(inputs["labels"], -100)})
    assert not nothing.log_probs.any() and nothing.log_probs.requires_grad
    take_off_fast_path(fast)
    torch.testing.assert_close(asked(fast, inputs).log_probs, asked(plain, inputs).log_probs)
    with pytest.raises(ValueError, match="log_sum_sq_probs"):
        put_fast_head(fast, ("log_probs", "log_sum_sq_probs"))
