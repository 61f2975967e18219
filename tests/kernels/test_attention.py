"""Attention: what its spec cannot say about masks, views, choices and raw functions."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch

from whet.kernels import attention as module
from whet.kernels import (
    attention_cudnn,
    attention_flash,
    attention_reference,
    attention_triton,
)
from whet.kernels.attention import (
    AttentionOptions,
    AttentionSizes,
    attention_backward,
    attention_forward,
    choose_attention,
)
from whet.kernels.attention_triton import document_bounds, tiles
from whet.kernels.backend import forced, interpreting
from whet.kernels.parity import check
from whet.kernels.spec import Case, relative_error

BACKENDS = [
    "reference",
    "cpu",
    pytest.param("triton", marks=pytest.mark.skipif(not interpreting(), reason="no GPU")),
]
HOPPER = (9, 0)
SIZES = AttentionSizes(torch.bfloat16, 32, 8, 128, tokens=16384, documents=8, longest=2048)


def problem(lengths: tuple[int, ...], heads: int = 4, kv_heads: int = 2, size: int = 16) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    buffer = torch.randn(sum(lengths), heads + 2 * kv_heads, size, generator=generator)
    q, k, v = buffer.split((heads, kv_heads, kv_heads), dim=1)
    offsets = torch.tensor((0, *lengths)).cumsum(0).int()
    return {"q": q, "k": k, "v": v, "offsets": offsets, "longest": max(lengths)}


def by_hand(x: dict[str, Any], options: AttentionOptions) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and log-sum-exp, one query at a time from the definition, in float64."""
    q, k, v = (x[name].double() for name in "qkv")
    members = q.shape[1] // k.shape[1]
    o, lse = torch.empty_like(q), q.new_empty(q.shape[1], q.shape[0])
    offsets = x["offsets"].tolist()
    for begin, end in itertools.pairwise(offsets):
        for i in range(begin, end):
            seen = [j for j in range(begin, end) if sees(i, j, options)]
            for head in range(q.shape[1]):
                scores = k[seen, head // members] @ q[i, head] * options.factor(q.shape[2])
                if options.softcap is not None:
                    scores = options.softcap * torch.tanh(scores / options.softcap)
                o[i, head] = torch.softmax(scores, 0) @ v[seen, head // members]
                lse[head, i] = torch.logsumexp(scores, 0)
    return o, lse


def sees(i: int, j: int, options: AttentionOptions) -> bool:
    """Transformers' sliding window masks: causal counts the token itself, bidirectional is a distance."""
    if options.causal:
        return j <= i and (options.window is None or j > i - options.window)
    return options.window is None or abs(i - j) <= options.window


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "options",
    [
        AttentionOptions(),
        AttentionOptions(causal=False),
        AttentionOptions(window=5),
        AttentionOptions(causal=False, window=3, scale=0.5),
        AttentionOptions(softcap=2.0, window=40),
    ],
    ids=str,
)
def test_output_and_lse_are_the_definition(backend: str, options: AttentionOptions) -> None:
    x = problem((17, 0, 1, 24, 0))
    with forced(backend):
        o, lse, _ = attention_forward(*x.values(), **vars(options))
    exact_o, exact_lse = by_hand(x, options)
    assert relative_error(o, exact_o) < 1e-6
    assert relative_error(lse, exact_lse) < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_documents_do_not_see_each_other(backend: str) -> None:
    x = problem((21, 30, 9), heads=2, kv_heads=1)
    with forced(backend):
        together, _, _ = attention_forward(*x.values())
        for begin, end in ((0, 21), (21, 51), (51, 60)):
            alone = {name: x[name][begin:end] for name in "qkv"}
            offsets = torch.tensor([0, end - begin], dtype=torch.int32)
            apart, _, _ = attention_forward(alone["q"], alone["k"], alone["v"], offsets, end - begin)
            torch.testing.assert_close(together[begin:end], apart, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lengths", [(12,) * 6, (64, 1, 1, 1, 1, 1, 1)], ids=["rows", "one_row"])
def test_reference_layouts_agree(lengths: tuple[int, ...]) -> None:
    """Equal documents are laid out in rows, very unequal ones in one row; both are the definition."""
    x = problem(lengths)
    tokens = sum(lengths)
    assert (len(lengths) * max(lengths) ** 2 < tokens**2) == (lengths[0] == 12)
    o, lse, _ = attention_reference.forward(
        x["q"], x["k"], x["v"], x["offsets"], x["longest"], AttentionOptions()
    )
    exact_o, exact_lse = by_hand(x, AttentionOptions())
    assert relative_error(o, exact_o) < 1e-6
    assert relative_error(lse, exact_lse) < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_raw_functions_write_where_they_are_told(backend: str) -> None:
    x = problem((19, 14, 0))
    tokens, heads, size = x["q"].shape
    wide = torch.zeros(tokens, heads, 2 * size)
    buffer = torch.zeros(tokens, heads + 4, size)
    views = dict(zip(("dq", "dk", "dv"), buffer.split((heads, 2, 2), dim=1), strict=True))
    do = torch.randn(x["q"].shape, generator=torch.Generator().manual_seed(2))
    with forced(backend):
        plain = attention_forward(*x.values())
        o, lse, extra = attention_forward(*x.values(), out_THE=wide[..., :size])
        inputs = (do, x["q"], x["k"], x["v"])
        expected = attention_backward(*inputs, *plain, x["offsets"], x["longest"])
        results = attention_backward(*inputs, o, lse, extra, x["offsets"], x["longest"], **views)
    assert o.data_ptr() == wide.data_ptr()
    assert not wide[..., size:].any()
    torch.testing.assert_close(o, plain[0])
    for result, view, value in zip(results, views.values(), expected, strict=True):
        assert result is view
        torch.testing.assert_close(result, value)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_of_large_scores_stays_finite(backend: str) -> None:
    x = problem((40, 8))
    x["q"] = x["q"] * 200
    with forced(backend):
        o, lse, extra = attention_forward(*x.values(), softcap=30.0)
        gradients = attention_backward(
            torch.ones_like(o),
            x["q"],
            x["k"],
            x["v"],
            o,
            lse,
            extra,
            x["offsets"],
            x["longest"],
            softcap=30.0,
        )
        plain, plain_lse, _ = attention_forward(*x.values())
    for value in (o, lse, *gradients, plain, plain_lse):
        assert torch.isfinite(value).all()
    assert lse.max() <= 30.0 + torch.tensor(40.0).log()


def test_a_cpu_runs_torch_s_own_where_it_serves() -> None:
    """Held against the definition above; here: which requests go there, and why the others do not."""
    x = problem((300, 1, 200))
    q = x["q"]

    def served(backend: str, longest: int = 300, **options: Any) -> tuple[str, str]:
        with forced(backend):
            return module.resolve(q, 2, 3, longest, AttentionOptions(**options))

    assert served("cpu")[0] == served("cpu", causal=False)[0] == served("cpu", window=300)[0] == "cpu"
    assert served("reference") == ("reference", "asked for")
    assert "299 hides" in served("cpu", window=299)[1] and served("cpu", window=299)[0] == "reference"
    assert "no softcap" in served("cpu", softcap=2.0)[1] and "drops no" in served("cpu", dropout=0.5)[1]
    q = q.double()
    assert served("cpu") == ("reference", "torch's CPU attention takes no torch.float64 here")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", module.SPEC.cases, ids=str)
def test_a_cpu_s_attention_has_the_reference_s_gradients(case: Case, dtype: torch.dtype) -> None:
    found = check(module.SPEC, case, dtype, torch.device("cpu"), backend="cpu")
    assert not found.problems


@pytest.mark.skipif(not interpreting(), reason="no GPU")
@pytest.mark.parametrize(
    "options", [AttentionOptions(window=4), AttentionOptions(causal=False, window=2)], ids=str
)
def test_bounds_are_the_mask(options: AttentionOptions) -> None:
    lengths = (0, 5, 1, 0, 9, 0, 0)
    offsets = torch.tensor((0, *lengths)).cumsum(0).int()
    first, stop, seen_from, seen_to = document_bounds(offsets, 15, options).tolist()
    document = [number for number, length in enumerate(lengths) for _ in range(length)]
    for i in range(15):
        for j in range(15):
            mask = document[i] == document[j] and sees(i, j, options)
            assert (first[i] <= j < stop[i]) == mask
            assert (seen_from[j] <= i < seen_to[j]) == mask


@pytest.mark.parametrize(
    ("capability", "sizes", "options", "expected", "said"),
    [
        (HOPPER, {}, {}, "cudnn", "serves these sizes"),
        (HOPPER, {"documents": 9}, {}, "triton", "needs documents of equal length"),
        (HOPPER, {}, {"window": 512}, "triton", "slower than the Triton kernel"),
        (HOPPER, {}, {"softcap": 30.0}, "triton", "no softcap"),
        (HOPPER, {"dtype": torch.float32}, {}, "efficient", "16-bit"),
        (HOPPER, {"dtype": torch.float32, "head_size": 20}, {}, "triton", "steps of 8, not 20"),
        (HOPPER, {"head_size": 256}, {}, "flash", "over 128"),
        (HOPPER, {"documents": 512, "longest": 40, "tokens": 6144}, {}, "triton", "under 64 tokens"),
        ((7, 5), {"dtype": torch.float16}, {}, "efficient", "compute capability 8.0"),
        ((7, 5), {"dtype": torch.float16}, {"window": 9, "causal": False}, "triton", "bidirectional window"),
        ((7, 5), {}, {}, "triton", "no bf16"),
        (None, {}, {}, "triton", "NVIDIA"),
    ],
)
def test_choice_says_why(
    capability: tuple[int, int] | None,
    sizes: dict[str, Any],
    options: dict[str, Any],
    expected: str,
    said: str,
) -> None:
    choice = choose_attention(capability, AttentionOptions(**options), replace(SIZES, **sizes))
    assert choice.name == expected
    assert said in choice.reason


def test_ragged_documents_follow_the_generation() -> None:
    """FlashAttention-2 before Hopper, the Triton kernel from there on; a failed self check is passed over."""
    mixed = replace(SIZES, documents=9)
    assert choose_attention(HOPPER, AttentionOptions(), mixed).name == "triton"
    assert choose_attention((8, 0), AttentionOptions(), mixed).name == "flash"
    without = choose_attention(HOPPER, AttentionOptions(), SIZES, frozenset({"cudnn"}))
    assert without.name == "triton" and "self check" in without.reason


@pytest.mark.parametrize("fault", ["none", "values", "raises"])
def test_self_check_finds_a_wrong_back_end(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference stands in for cuDNN; it is refused once its gradients are off or it raises."""

    class StandIn:
        forward = staticmethod(attention_reference.forward)

        @staticmethod
        def backward(*arguments: Any) -> tuple[torch.Tensor, ...]:
            if fault == "raises":
                raise RuntimeError("no plan\nmore")
            dq, dk, dv = attention_reference.backward(*arguments)
            return dq, dk, dv * (1.1 if fault == "values" else 1.0)

    monkeypatch.setitem(module.BACKENDS, "cudnn", StandIn)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    sizes = replace(SIZES, heads=4, kv_heads=2, head_size=16)
    verdict = module._check("cudnn", torch.device("cpu"), AttentionOptions(), sizes)
    assert {"none": not verdict, "values": "relative errors" in verdict, "raises": "no plan" in verdict}[
        fault
    ]


def test_windows_reach_flash_attention_as_distances() -> None:
    assert attention_flash._limits(AttentionOptions()) == (-1, 0)
    assert attention_flash._limits(AttentionOptions(causal=False)) == (-1, -1)
    assert attention_flash._limits(AttentionOptions(window=4)) == (3, 0)
    assert attention_flash._limits(AttentionOptions(window=4, causal=False)) == (4, 4)


def test_dense_layout_is_a_view_both_ways() -> None:
    q = problem((6, 6, 6))["q"]
    batched = attention_cudnn._batched(q, 6)
    assert batched.shape == (3, 4, 6, 16)
    assert batched.data_ptr() == q.data_ptr()
    torch.testing.assert_close(batched[1, 2, 3], q[9, 2])
    dense = batched.transpose(1, 2).contiguous().transpose(1, 2)
    assert attention_cudnn._packed(dense).data_ptr() == dense.data_ptr()
    torch.testing.assert_close(attention_cudnn._packed(dense), q)


@pytest.mark.parametrize("capability", [None, (7, 5), (8, 0), (8, 9), (9, 0), (12, 0)])
@pytest.mark.parametrize("kernel", ["forward", "query_gradient", "key_gradient"])
def test_tiles_fit_in_shared_memory(
    kernel: str, capability: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_triton, "interpreting", lambda: False)
    kib = {None: 64, (7, 5): 64, (8, 0): 163, (8, 9): 99, (9, 0): 227, (12, 0): 99}[capability]
    resident = 1 if kernel == "forward" else 2
    for columns, itemsize, longest in itertools.product((16, 64, 128, 256), (2, 4), (12, 4096)):
        chosen = tiles(kernel, columns, itemsize, longest, capability)
        rows = resident * chosen.tile + 2 * chosen.stages * chosen.step
        assert rows * columns * itemsize <= kib * 1024


def test_tiles_follow_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_triton, "interpreting", lambda: False)
    sizes: dict[str, Any] = {"columns": 128, "itemsize": 2, "capability": HOPPER}
    assert tiles("forward", longest=2048, **sizes)[:2] == (128, 128)
    assert tiles("forward", longest=12, **sizes)[:2] == (64, 64)
    assert tiles("forward", longest=2048, **sizes | {"capability": (8, 0)})[:2] == (128, 64)
    wide = tiles("key_gradient", longest=2048, **sizes | {"columns": 256})
    assert wide.tile * 256 <= 64 * 32 * wide.warps
    monkeypatch.setitem(attention_triton.OVERRIDES, "forward", wide)
    assert tiles("forward", longest=2048, **sizes) == wide


@pytest.mark.parametrize("wrong", [{"window": 0}, {"softcap": 0.0}, {"scale": -1.0}])
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AttentionOptions(**wrong)


def test_heads_that_do_not_divide_are_refused() -> None:
    x = problem((4, 4), heads=3, kv_heads=2)
    with pytest.raises(ValueError, match="3 query heads"):
        attention_forward(*x.values())


def test_an_unknown_back_end_is_refused() -> None:
    x = problem((4, 4))
    with forced("triton"), pytest.raises(ValueError, match="known are cudnn"):
        attention_forward(*x.values(), backend="fastest")
