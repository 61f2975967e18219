"""Generation on the fast path writes what transformers' own generate writes, for every fused family."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.tiny_families import DECODERS, build
from support.tiny_models import build_tiny_model

from whet.engine.models.families import Unsupported, family_of
from whet.engine.models.families.fast_layout import fast_settings
from whet.engine.models.fast_path import apply_fast_path, bind_generate, generate, generation, program_of
from whet.engine.models.loading import Precision, load_model

LENGTHS = (19, 5, 11)  # beyond the tiny families' window of 8 and below it
LEAVES = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv_proj"}
LEAVES |= {"gate_up_proj"}


@cache
def fused_families() -> list[str]:
    found = []
    for name in DECODERS:
        config = build(name).config.get_text_config()
        fast = family_of(config.model_type).fast
        settings = fast if isinstance(fast, Unsupported) else fast_settings(fast, config.to_dict())
        if not isinstance(settings, Unsupported) and not any(settings.sparse):
            found.append(name)
    return found


@cache
def adapted(name: str) -> Any:
    """A tiny model with an adapter, built once."""
    return with_adapter(build(name))


def with_adapter(model: Any) -> Any:
    """LoRA whose B is not zero, in eval mode, never stopping."""
    leaves = {path.rsplit(".", 1)[-1] for path, _ in model.named_modules()} & LEAVES
    wrapped = get_peft_model(model, LoraConfig(r=4, lora_alpha=6, target_modules=sorted(leaves)))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for path, param in wrapped.named_parameters():
            if "lora_B" in path:
                param.copy_(0.3 * torch.randn(param.shape, generator=generator))
    wrapped.generation_config.eos_token_id = None
    return wrapped.eval()


def pair(name: str) -> tuple[Any, Any]:
    """A model on transformers, and its copy on the fast path."""
    plain = adapted(name)
    fast = copy.deepcopy(plain)
    apply_fast_path(fast, torch.float32)
    return plain, bind_generate(fast)


def batch(side: str = "left") -> dict[str, torch.Tensor]:
    """Prompts of unequal length, padded with a token that means something elsewhere."""
    generator = torch.Generator().manual_seed(2)
    ids, mask = torch.full((len(LENGTHS), max(LENGTHS)), 7), torch.zeros(len(LENGTHS), max(LENGTHS))
    for row, length in enumerate(LENGTHS):
        place = slice(None, length) if side == "right" else slice(max(LENGTHS) - length, None)
        ids[row, place] = torch.randint(3, 128, (length,), generator=generator)
        mask[row, place] = 1
    return {"input_ids": ids, "attention_mask": mask.long()}


@pytest.fixture(autouse=True)
def no_fall_back() -> Iterator[None]:
    """A generation that quietly ran on transformers' code would compare it with itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="generate runs transformers")
        yield


def write(model: Any, **options: Any) -> torch.Tensor:
    """New tokens of a greedy generation of 24, unless the options say otherwise."""
    given = {**batch(), "max_new_tokens": 24, "do_sample": False, "pad_token_id": 0, **options}
    ids: torch.Tensor = model.generate(**given)
    return ids[:, max(LENGTHS) :]


@pytest.mark.parametrize("name", fused_families())
def test_greedy_tokens_are_those_of_transformers(name: str) -> None:
    """Prompts of unequal length, beyond windows; adapter on, off, and on again in the same buffers.

    Random models with tied embeddings repeat one token; where none may come twice, every choice counts.
    """
    plain, fast = pair(name)
    never_twice = {"no_repeat_ngram_size": 1}
    assert torch.equal(write(fast), write(plain))
    expected = write(plain, **never_twice)
    assert torch.equal(write(fast, **never_twice), expected)
    with plain.disable_adapter(), fast.disable_adapter():
        base = write(plain, **never_twice)
        assert torch.equal(write(fast, **never_twice), base)
    assert not torch.equal(base, expected)
    assert torch.equal(write(fast, **never_twice), expected)


def test_rows_stop_on_their_own_and_are_padded() -> None:
    """Stop tokens, a list of them, are those that a row is about to write at different steps."""
    plain, fast = pair("llama")
    unstopped = write(plain)
    stops = [int(unstopped[0, 3]), int(unstopped[1, 6])]
    expected = write(plain, eos_token_id=stops, pad_token_id=9)
    assert torch.equal(write(fast, eos_token_id=stops, pad_token_id=9), expected)
    assert (expected == 9).any(1).sum() >= 2
    one = {"input_ids": batch()["input_ids"][:1], "attention_mask": None, "eos_token_id": stops}
    short = write(plain, **one)
    assert short.shape[1] < 24
    assert torch.equal(write(fast, **one), short)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7},
        {"temperature": 1.3, "top_k": 5},
        {"top_p": 0.6, "top_k": 0},
        {"min_p": 0.2, "repetition_penalty": 1.2, "num_return_sequences": 2},
    ],
    ids=lambda options: "-".join(options),
)
def test_sampling_draws_what_transformers_draws(options: dict[str, Any]) -> None:
    plain, fast = pair("qwen3-biased")
    found = []
    for model in (plain, fast, fast):
        torch.manual_seed(3)
        found.append(write(model, do_sample=True, **options))
    assert torch.equal(found[0], found[1]) and torch.equal(found[1], found[2])
    torch.manual_seed(4)
    assert not torch.equal(write(fast, do_sample=True, **options), found[1])


def test_padding_on_the_right_is_as_good_as_on_the_left() -> None:
    _, fast = pair("mistral")
    assert torch.equal(write(fast, **batch("right")), write(fast))


def test_a_row_alone_writes_what_it_writes_among_others() -> None:
    """Also in buffers that another generation left full, and in buffers made for fewer tokens."""
    _, fast = pair("mistral")
    together = write(fast)
    for row, length in enumerate(LENGTHS):
        ids = batch()["input_ids"][row : row + 1, -length:]
        alone = fast.generate(ids, max_new_tokens=24, do_sample=False)
        assert torch.equal(alone[:, length:], together[row : row + 1])
    program = program_of(fast)
    assert program is not None
    places = program.decoding.places  # type: ignore[union-attr]
    ids = batch()["input_ids"][:1]
    long = fast.generate(ids, max_new_tokens=places, do_sample=False)
    assert long.shape[1] == ids.shape[1] + places
    assert program.decoding.places > places  # type: ignore[union-attr]


class Heard:
    """A streamer that remembers."""

    def __init__(self) -> None:
        self.said: list[list[int]] = []
        self.ended = 0

    def put(self, value: torch.Tensor) -> None:
        self.said.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended += 1


def test_streamers_hear_the_prompt_and_every_token() -> None:
    plain, fast = pair("llama")
    unstopped = write(plain)
    heard = []
    for model in (plain, fast):
        streamer = Heard()
        write(model, streamer=streamer, eos_token_id=unstopped[:, 5].tolist())
        assert streamer.ended == 1
        heard.append(streamer.said)
    assert heard[0] == heard[1] and len(heard[0]) > 2


def test_trained_factors_are_read_anew() -> None:
    plain, fast = pair("llama")
    before = write(fast)
    plain = copy.deepcopy(plain)
    for model in (plain, fast):
        with torch.no_grad():
            for path, param in model.named_parameters():
                if "lora_B" in path:
                    param.mul_(-1)
    after = write(fast)
    assert torch.equal(after, write(plain)) and not torch.equal(before, after)


@pytest.mark.parametrize("base", ["nf4", "fp8", "int8"])
def test_quantised_bases_write_what_their_layers_write(base: str, tmp_path: Path) -> None:
    handle = load_model(build_tiny_model(tmp_path / "model", wide=True), Precision(base_precision=base))
    plain = with_adapter(handle.model)
    fast = bind_generate(copy.deepcopy(plain))
    assert apply_fast_path(fast, torch.float32).complete
    if base == "int8":  # bitsandbytes' own product rounds its input too, which the kernels do not
        expand_int8(plain)
    assert torch.equal(write(fast, no_repeat_ngram_size=1), write(plain, no_repeat_ngram_size=1))


def expand_int8(model: torch.nn.Module) -> None:
    """Every bitsandbytes layer becomes a dense one of the same weight."""
    for path, layer in list(model.named_modules()):
        if path.endswith("base_layer") and type(layer).__name__ == "Linear8bitLt":
            scale = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
            dense = torch.nn.Linear(layer.in_features, layer.out_features, bias=False)
            dense.weight.data = layer.weight.data.float() * scale[:, None] / 127
            model.set_submodule(path, dense)


# --- what runs on transformers' own code


def refused(model: Any, **options: Any) -> str:
    """The reason that a generation gives for running on transformers; its result is transformers'."""
    with pytest.warns(UserWarning, match="generate runs transformers") as said:
        torch.manual_seed(5)
        found = generate(model, **{**batch(), "max_new_tokens": 3, "pad_token_id": 0, **options})
    torch.manual_seed(5)
    own = type(model).generate(model, **{**batch(), "max_new_tokens": 3, "pad_token_id": 0, **options})
    sequences = [getattr(output, "sequences", output) for output in (found, own)]
    assert torch.equal(*sequences)
    return str(said[0].message)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"num_beams": 2}, "num_beams is 2"),
        ({"use_cache": False}, "use_cache is False"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate is True"),
        ({"position_ids": torch.arange(19).expand(3, -1)}, "position_ids is given"),
        ({"prompt_lookup_num_tokens": 2, "input_ids": batch()["input_ids"][:1],
          "attention_mask": None}, "prompt_lookup_num_tokens is 2"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_the_loop_does_not_do_is_named(options: dict[str, Any], reason: str) -> None:
    assert reason in refused(pair("llama")[1], **options)


def test_settings_of_the_model_count_as_given() -> None:
    _, fast = pair("llama")
    fast.generation_config.num_beams = 2
    assert "num_beams is 2" in refused(fast)


def test_experts_and_a_model_that_became_another_say_so() -> None:
    moe = build("qwen3_moe").requires_grad_(False)
    apply_fast_path(moe, torch.float32)
    assert "mixture of experts" in refused(moe)
    _, fast = pair("llama")
    fast.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj"]))
    fast.set_adapter("second")
    assert "changed" in refused(fast)


def test_a_cache_that_does_not_fit_is_left_to_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three layers, two key and two value heads of 16 in fp32, 3 rows of 19 + 3 tokens, in a
    cache for 256: 589,824 bytes."""
    _, fast = pair("llama")
    monkeypatch.setattr(generation, "free_bytes", lambda device: 589_824 / 0.8 + 1)
    assert write(fast, max_new_tokens=3).shape == (3, 3)
    program_of(fast).decoding = None  # type: ignore[union-attr]
    monkeypatch.setattr(generation, "free_bytes", lambda device: 589_824 / 0.8 - 1)
    assert "a cache for 3 x 22 tokens" in refused(fast)


def test_rotary_tables_that_change_on_the_way_are_left_to_transformers() -> None:
    """Dynamic scaling begins behind 24 positions here; short of them it is the plain table."""
    from transformers import LlamaForCausalLM

    config: Any = build("llama").config
    config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    config.max_position_embeddings = 24
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    model.generation_config.eos_token_id = None
    plain = copy.deepcopy(model)
    apply_fast_path(model, torch.float32)
    bind_generate(model)
    short = {"max_new_tokens": 5, "no_repeat_ngram_size": 1}
    assert torch.equal(write(model, **short), write(plain, **short))
    assert "rotary frequencies change" in refused(model, max_new_tokens=10)


def test_a_model_without_a_program_generates_as_ever() -> None:
    plain = adapted("llama")
    assert torch.equal(write(bind_generate(copy.deepcopy(plain))), write(plain))
