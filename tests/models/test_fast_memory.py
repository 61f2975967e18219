"""What the fast path keeps, by its formulas: against the tensors it really keeps, and an H200's allocator."""

from __future__ import annotations

import gc
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.plan_inputs import GIB, LLAMA_8B, adapter, model_facts

from whet.engine.calibration import TYPICAL
from whet.engine.models.families import Unsupported
from whet.engine.models.fast_memory import (
    FEW_LOGIT_BYTES,
    GRAPH_FLOPS,
    GRAPH_LAYER,
    GRAPH_TOKENS,
    HEAD_BLOCK_BYTES,
    LOGIT_BYTES,
    TABLE_STEP,
    TOKEN_MULTIPLE,
    UNDER_WAY,
    Choice,
    allocated,
    chunk_rows,
    fast_memory,
    fast_peak,
    host_bytes,
    kept_before,
    replayed,
)
from whet.engine.models.fast_shape import GROUP_BYTES, RANK_STEP, FastShape, Held, fast_shape
from whet.engine.models.fast_time import Rows, rows_of, step_time
from whet.engine.models.memory import CUDA_CONTEXT, CUDA_WORKSPACE

QWEN_06B = {
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "max_position_embeddings": 40960,
}
MODELS = {"8b": LLAMA_8B, "0.6b": QWEN_06B}
H200 = dict(TYPICAL)["H200"]


def shape_of(folder: Path, model: str = "8b", **held: Any) -> FastShape:
    found = fast_shape(model_facts(folder, MODELS[model]), adapter(rank=16), Held(**held))
    assert isinstance(found, FastShape)
    return found


# -- what layers keep, tensor by tensor ----------------------------------------------------------------------


def live_bytes(result: Any = None) -> dict[int, int]:
    """Storages of all tensors that Python holds, and of those that the graph of ``result`` saved."""
    import torch

    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # isinstance wakes modules that are deprecated
        tensors = [one for one in gc.get_objects() if isinstance(one, torch.Tensor)]
    nodes = [] if result is None else [result.grad_fn]
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        tensors += [one for one in getattr(node, "saved_tensors", ()) if one is not None]
        new = {earlier for earlier, _ in node.next_functions if earlier is not None} - seen
        seen |= new
        nodes += new
    storages = [tensor.untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def measured_kept(model: Any, dtype: Any, tokens: int, choice: Choice) -> int:
    """Bytes that a forward pass leaves behind; a sequence of ``tokens`` on the CPU."""
    import torch

    from whet.engine.models.fast_path import apply_fast_path, pack_rows, program_of

    assert apply_fast_path(model, dtype).complete
    program = program_of(model)
    assert program is not None
    layers = range(len(program.layers))
    program.set_keep(
        [layer >= choice.recompute_attention for layer in layers],
        [layer >= choice.recompute_mlp for layer in layers],
    )
    program.chunk = choice.chunk or 1 << 30
    packed = pack_rows([torch.arange(3, 3 + tokens).remainder(100).tolist()])
    program.hidden_states(packed)  # tables and factors are made
    before = live_bytes()
    hidden_TD = program.hidden_states(packed)
    after = live_bytes(hidden_TD)
    new = sum(size for place, size in after.items() if place not in before)
    # Result, the final norm's saved sum and rstd: of the model's end, not of its layers.
    assert hidden_TD.requires_grad
    return new - 2 * hidden_TD.numel() * hidden_TD.element_size() - 4 * tokens


@pytest.mark.parametrize("dropped", [(0, 0), (1, 3)], ids=str)
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "granite", "phi3"])
def test_layers_keep_what_the_formula_says(name: str, dropped: tuple[int, int], tmp_path: Path) -> None:
    import torch
    from support.tiny_families import build

    from whet.engine.models.adapters import add_adapter
    from whet.engine.models.facts import read_model_facts
    from whet.engine.models.families import family_of

    bare = build(name)
    bare.config.save_pretrained(tmp_path)
    facts = read_model_facts(tmp_path)
    section = adapter(rank=8, target_modules=list(family_of(facts.model_type).target_modules))
    shape = fast_shape(facts, section, Held(compute_dtype="fp32", base_precision="fp32", device="cpu"))
    assert isinstance(shape, FastShape)
    choice = Choice(tokens=192, longest=192, recompute_attention=dropped[0], recompute_mlp=dropped[1])
    model = add_adapter(bare, section, seed=0).train()
    measured = measured_kept(model, torch.float32, 192, choice)
    # The first layer's input is the embedding's output, which its first half keeps as it is.
    assert kept_before(shape, choice, shape.layers) == pytest.approx(measured, rel=0.01)


def test_static_bytes_are_those_of_the_stacks(tmp_path: Path) -> None:
    """Factors in the compute type beside the fp32 ones; a quantised base has a workspace of its largest."""
    dense, nf4 = shape_of(tmp_path / "a"), shape_of(tmp_path / "b", base_precision="nf4")
    assert dense.workspace == 0
    assert nf4.workspace == 2 * 14336 * (4096 + 32)  # gate and up take turns
    per_layer = 48 * (4096 + 6144) + 16 * (4096 + 4096) + 32 * (4096 + 28672) + 16 * (14336 + 4096)
    assert dense.factors == nf4.factors == 2 * 32 * per_layer
    assert dense.static["adapter"] == 4 * dense.trainable + dense.factors
    small_ends = shape_of(
        tmp_path / "c", base_precision="nf4", embedding_precision="nf4", head_precision="int8"
    )
    saved = nf4.base - small_ends.base
    assert saved == pytest.approx(128256 * 4096 * ((2 - 0.516) + (2 - 1)), rel=0.01)
    assert small_ends.head_expands and not nf4.head_expands


def test_constants_are_the_kernels_own() -> None:
    """What the light side says of the heavy side holds."""
    import torch

    from whet.engine.methods.sft import graphs, packed_steps
    from whet.engine.models.fast_path import offload, program
    from whet.kernels import lora_base, lora_linear, vocabulary_head

    assert LOGIT_BYTES == vocabulary_head.CHUNK_BYTES
    assert HEAD_BLOCK_BYTES == vocabulary_head.BLOCK_BYTES
    assert TOKEN_MULTIPLE == packed_steps.TOKEN_MULTIPLE
    assert TABLE_STEP == program.TABLE_STEP
    assert RANK_STEP == lora_linear.ALIGNMENT
    assert GROUP_BYTES == lora_base.GROUP_BYTES
    assert UNDER_WAY == 1 + offload.BEFORE
    assert (GRAPH_FLOPS, GRAPH_LAYER) == (graphs.FLOPS_A_SECOND, graphs.SECONDS_A_LAYER)
    assert GRAPH_TOKENS == graphs.TOKENS
    for rows in (1, 1766, 1767, 4096, 16384):
        for vocabulary in (128256, 151936, 32000):
            expected = vocabulary_head.chunk_rows(rows, vocabulary, torch.bfloat16)
            assert chunk_rows(rows, vocabulary, 2) == expected
            few = FEW_LOGIT_BYTES // (2 * vocabulary)
            expected = vocabulary_head.chunk_rows(rows, vocabulary, torch.bfloat16, few)
            assert chunk_rows(rows, vocabulary, 2, FEW_LOGIT_BYTES) == expected


# -- an H200's allocator and clock ---------------------------------------------------------------------------

# Measured 2026-11-24 on an H200: torch 2.11, bf16, LoRA 16 on all linear layers, random weights, 8 x 2048
# tokens in one micro-batch with everything kept. GiB at the peak, seconds of device time.
ON_H200 = [("8b", 62.95, 0.923), ("0.6b", 14.34, 0.138)]
EIGHT = Choice(tokens=16384, longest=2048)


@pytest.mark.parametrize("model, peak, seconds", ON_H200)
def test_within_reach_of_an_h200(model: str, peak: float, seconds: float, tmp_path: Path) -> None:
    shape = shape_of(tmp_path, model)
    assert allocated(shape, fast_peak(shape, EIGHT)) / GIB == pytest.approx(peak, rel=0.05)
    clock = step_time(shape, Rows(8, 2048, 2048.0, 2048.0, equal=True), EIGHT, H200)
    assert clock.device == pytest.approx(seconds, rel=0.15)


def test_a_graph_has_workspaces_and_is_filled_up(tmp_path: Path) -> None:
    shape, full = shape_of(tmp_path, "0.6b"), Choice(tokens=1024, longest=500)
    replays, eager = (fast_peak(shape, replace(full, forwards=forwards)).device for forwards in (None, 0))
    assert replays == eager + CUDA_WORKSPACE
    assert replays == fast_peak(shape, replace(full, tokens=600)).device
    assert eager > fast_peak(shape, replace(full, tokens=600, forwards=0)).device


def test_dropping_and_offloading_free_what_they_say(tmp_path: Path) -> None:
    shape = shape_of(tmp_path)
    kept = fast_peak(shape, EIGHT)
    again = fast_peak(shape, replace(EIGHT, recompute_mlp=32))
    assert kept.kept - again.kept == pytest.approx(32 * 16384 * 2 * (2 * 14336 + 32), rel=0.05)
    assert again.passing == kept.passing + 16384 * 2 * (2 * 14336 + 32)  # one layer's, made again
    chunked = fast_peak(shape, replace(EIGHT, recompute_mlp=32, chunk=4096))
    assert chunked.kept + chunked.passing < again.kept + again.passing
    away = replace(EIGHT, recompute_mlp=32, recompute_attention=32, offload=32)
    assert fast_peak(shape, away).device < 0.25 * again.device
    assert host_bytes(shape, away) == fast_peak(shape, away).host
    assert host_bytes(shape, away) == 32 * 16384 * (3 * 2 * 4096 + 4 * 32)


def test_early_layers_are_the_ones_to_drop(tmp_path: Path) -> None:
    """With half of the layers dropped the worst moment is that of a kept layer."""
    shape = shape_of(tmp_path)
    half = fast_peak(shape, replace(EIGHT, recompute_mlp=16))
    assert half.passing == fast_peak(shape, EIGHT).passing
    assert (
        fast_peak(shape, EIGHT).device
        > half.device
        > fast_peak(shape, replace(EIGHT, recompute_mlp=32)).device
    )


def test_components_add_up(tmp_path: Path) -> None:
    shape = shape_of(tmp_path)
    memory = fast_memory(shape, EIGHT, capacity=80 * GIB, available=70 * GIB, exact=True)
    assert memory.peak == sum(memory.components.values())
    assert memory.peak == allocated(shape, fast_peak(shape, EIGHT)) + CUDA_CONTEXT
    assert memory.where == "gpu" and memory.capacity == 80 * GIB and memory.fits
    loss = fast_memory(shape_of(tmp_path, "0.6b"), EIGHT, capacity=GIB, available=GIB, exact=True)
    assert (loss.components["loss"] == 0) != (loss.components["passing"] == 0)


@pytest.mark.parametrize(
    "patch, held, reason",
    [
        ({"kind": "none"}, {}, "all weights"),
        ({"kind": "dora"}, {}, "DoRA"),
        ({"bias": "all"}, {}, "biases"),
        ({"modules_to_save": ["input_layernorm"]}, {}, "train whole"),
        ({}, {"base_precision": "fp32"}, "held in fp32"),
        ({"modules_to_save": ["lm_head"]}, {}, None),
    ],
)
def test_who_is_on_the_fast_path(
    patch: dict[str, Any], held: dict[str, Any], reason: str | None, tmp_path: Path
) -> None:
    found = fast_shape(model_facts(tmp_path), adapter(**patch), Held(**held))
    if reason is None:
        assert isinstance(found, FastShape) and found.head_trains
    else:
        assert isinstance(found, Unsupported) and reason in found.reason


# -- time ----------------------------------------------------------------------------------------------------


def test_time_follows_what_is_done_twice(tmp_path: Path) -> None:
    shape, rows = shape_of(tmp_path), Rows(8, 2048, 2048.0, 2048.0, equal=True)

    def seconds(**changes: Any) -> float:
        return step_time(shape, rows, replace(EIGHT, **changes), H200).total

    plain = seconds()
    mlp, attention = seconds(recompute_mlp=32), seconds(recompute_attention=32)
    both = seconds(recompute_mlp=32, recompute_attention=32)
    assert plain < attention < mlp < both < 1.4 * plain
    assert both - plain == pytest.approx((mlp - plain) + (attention - plain), rel=0.01)
    hidden = seconds(recompute_attention=32, recompute_mlp=32, offload=32)
    assert plain < hidden < both  # attention's results are fetched, not computed again
    slow_bus = step_time(shape, rows, replace(EIGHT, offload=32), H200.model_copy(update={"pcie": 1e9}))
    assert slow_bus.offload > 5 * slow_bus.products


def test_quantised_bases_pay_for_expanding_and_fp8_is_faster(tmp_path: Path) -> None:
    rows, small = Rows(1, 512, 512.0, 512.0, equal=True), Choice(tokens=512, longest=512)
    dense, nf4, fp8 = (
        step_time(shape_of(tmp_path, base_precision=base), rows, small, H200).products
        for base in ("bf16", "nf4", "fp8")
    )
    assert fp8 < dense < nf4
    chunked = step_time(shape_of(tmp_path, base_precision="nf4"), rows, replace(small, chunk=128), H200)
    assert chunked.products > 2 * nf4  # each chunk expands the weights again


def test_small_steps_are_bound_by_launching_unless_graphed(tmp_path: Path) -> None:
    shape, choice = shape_of(tmp_path, "0.6b"), Choice(tokens=2048, longest=2048)
    rows = Rows(1, 2048, 2048.0, 2048.0, equal=True)
    assert replayed(shape, choice, 2048) and not replayed(replace(shape, dropout=True), choice, 2048)
    again = step_time(shape, rows, choice, H200)
    uneven = step_time(shape, replace(rows, equal=False), choice, H200)
    eager = step_time(replace(shape, dropout=True), rows, choice, H200)
    assert again.host == 0 < uneven.host < eager.host == pytest.approx(28 * H200.layer_host)
    assert eager.total == pytest.approx(eager.host + eager.fixed)


def test_rows_from_a_report_and_from_lengths() -> None:
    from support.plan_inputs import split

    from whet.engine.data.inspection import Lengths

    lengths = [100 + 10 * index for index in range(101)]  # even from 100 to 1100
    exact = Rows.of_lengths(lengths, 8)
    seen = split(
        token_rows=101, tokens=sum(lengths), supervised_tokens=sum(lengths) // 2,
        length=Lengths(p50=600, p95=1050, p99=1090, max=1100),
    )  # fmt: skip
    found = rows_of(seen, 8, 1100)
    assert (found.mean, found.longest, found.equal) == (exact.mean, exact.longest, False)
    assert found.seen == pytest.approx(exact.seen, rel=0.05)
    assert found.supervised == pytest.approx(0.5, abs=0.01)
    assert exact.micro_batches(8 * 1100) == 1.0
    assert exact.micro_batches(1100) == pytest.approx(6.0)  # a second row of 600 fits beside now and then
    assert 2.0 <= exact.micro_batches(2 * 1100) <= 4.0
    assert Rows.of_lengths([1100] * 8, 8).micro_batches(1100) == 8.0
    same = rows_of(
        split(token_rows=9, tokens=900, length=Lengths(p50=100, p95=100, p99=100, max=100)), 4, 100
    )
    assert same.equal and same.seen == same.mean == 100
