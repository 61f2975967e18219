"""Embedding and head in 8 and 4 bits: the same values wherever they are read, and less memory."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.fast_models import gradients, packed_loss, random_rows, with_random_adapter
from support.tiny_families import FAMILY_CONFIGS, build
from support.tiny_models import build_tiny_model
from torch import nn
from transformers import AutoModelForCausalLM

from whet.engine.errors import WhetError
from whet.engine.models.adapters import add_adapter, save_weights
from whet.engine.models.fast_path import apply_fast_path
from whet.engine.models.loading import Precision, load_model
from whet.engine.models.reduced_ends import TABLES, Nf4Table, ReducedEmbedding, ReducedHead, reduce_ends
from whet.engine.recipe import AdapterSection
from whet.kernels.linear_cross_entropy import linear_cross_entropy
from whet.kernels.spec import relative_error

PRECISIONS = ("int8", "nf4")
OFF = {"int8": (0.002, 0.015), "nf4": (0.06, 0.12)}
"""Relative rounding error of normal weights: 0.007 with a scale a row of 256, 0.09 in blocks of 64."""
BITS = {"int8": 8 + 32 / 256, "nf4": 4.25}
IDS = torch.tensor([[5, 17, 99], [42, 8, 5]])


def weight(rows: int = 300, columns: int = 256, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)).mul(0.02).to(dtype)


def dense(table: Any, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return table.rows(0, table.shape[0], dtype)


def densely(model: Any) -> Any:
    """A copy with plain ends of the same values."""
    plain = copy.deepcopy(model)
    inner, outer = plain.get_input_embeddings(), plain.get_output_embeddings()
    if isinstance(outer, ReducedHead):
        head = nn.Linear(outer.in_features, outer.out_features, bias=outer.bias is not None)
        head.weight = nn.Parameter(dense(outer.table))
        head.register_parameter("bias", outer.bias)
        plain.set_output_embeddings(head.requires_grad_(False))
    if isinstance(inner, ReducedEmbedding):
        inner.__class__ = before(inner)
        inner.weight = nn.Parameter(dense(inner.table), requires_grad=False)
    return plain


def before(embedding: Any) -> type:
    """The class an embedding had before it was given a table."""
    classes = type(embedding).__mro__
    return next(c for c in classes if issubclass(c, nn.Embedding) and not issubclass(c, ReducedEmbedding))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_table_stands_for_its_rows(precision: str, dtype: torch.dtype) -> None:
    w = weight(dtype=dtype)
    table: Any = TABLES[precision](w)
    least, most = OFF[precision]
    assert least < relative_error(dense(table), w.float()) < most
    ids = torch.tensor([299, 0, 7, 7, 256, 130])
    assert torch.equal(table.lookup(ids), dense(table, dtype)[ids]) and table.lookup(ids).dtype == dtype
    assert torch.equal(table.rows(256, 290, dtype), dense(table, dtype)[256:290])
    assert table.lookup(ids[:0]).shape == (0, 256)
    held = sum(buffer.nbytes for buffer in table.buffers()) * 8 / w.numel()
    assert held == pytest.approx(BITS[precision], abs=0.25)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_of_zeros_and_large_rows(precision: str) -> None:
    w = weight()
    w[3], w[4] = 0, w[4] * 1e4
    table: Any = TABLES[precision](w)
    assert dense(table).isfinite().all()
    assert relative_error(dense(table)[4], w[4]) < OFF[precision][1]
    # int8 has a scale a row; doubly quantised absmax share one over 256 blocks, so small rows suffer beside
    # one that is ten thousand times larger.
    if precision == "int8":
        assert (dense(table)[3] == 0).all() and relative_error(dense(table)[5], w[5]) < OFF["int8"][1]


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "granite"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_fast_path_reads_the_table(name: str, precision: str) -> None:
    """Loss and gradients are those of plain ends of the same values, scaled as the family does."""
    model = wide(name)
    reduce_ends(model, precision, precision)
    plain, fast = with_random_adapter(densely(model)), with_random_adapter(model)
    for one in (plain, fast):
        report = apply_fast_path(one, torch.float32)
        assert report.complete, str(report)
    documents = random_rows(plain.config.vocab_size)
    expected, loss = packed_loss(plain, documents), packed_loss(fast, documents)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    expected.backward()
    loss.backward()
    wanted, found = gradients(plain), gradients(fast)
    assert wanted.keys() == found.keys()
    assert all(relative_error(found[key], wanted[key]) < 2e-4 for key in wanted)


def wide(name: str) -> Any:
    """A random model of a family, 64 wide: nf4 cuts rows in blocks of 64."""
    config = FAMILY_CONFIGS[name]()
    config.hidden_size = 64
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_loaded_so_it_generates_and_saves(tmp_path: Path, precision: str, tied: bool) -> None:
    path = build_tiny_model(tmp_path / "model", "qwen2", tied=tied)
    settings = Precision(embedding_precision=precision, head_precision=precision)
    model = load_model(path, settings).model
    inner, outer = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(inner, ReducedEmbedding) and isinstance(outer, ReducedHead)
    assert (inner.table is outer.table) == tied
    assert not any(p.shape == outer.table.shape for p in model.parameters())
    plain = densely(model)
    torch.testing.assert_close(model(IDS).logits, plain(IDS).logits)
    adapted = add_adapter(model, AdapterSection(), seed=1)
    wanted = plain.generate(IDS, max_new_tokens=4, do_sample=False)
    assert torch.equal(adapted.generate(input_ids=IDS, max_new_tokens=4, do_sample=False), wanted)
    save_weights(adapted, tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size < 200_000


def test_one_end_alone() -> None:
    model = wide("llama")
    embedding = model.get_input_embeddings().weight
    reduce_ends(model, "16bit", "nf4")
    assert isinstance(model.get_output_embeddings(), ReducedHead)
    assert model.get_input_embeddings().weight is embedding


def test_a_head_with_a_bias() -> None:
    head = nn.Linear(64, 300)
    reduced = ReducedHead(Nf4Table(head.weight.detach()), head.bias)
    hidden = torch.randn(5, 64, requires_grad=True)
    expected = nn.functional.linear(hidden, dense(reduced.table), head.bias)
    torch.testing.assert_close(reduced(hidden), expected)
    reduced(hidden).square().sum().backward()
    assert hidden.grad is not None and hidden.grad.isfinite().all()
    labels = torch.arange(5)
    loss = linear_cross_entropy(hidden, reduced.weight, labels, bias_V=reduced.bias)
    assert float(loss) == pytest.approx(
        float(nn.functional.cross_entropy(expected, labels, reduction="sum")), rel=1e-5
    )


@pytest.mark.parametrize(
    ("choose", "said"),
    [
        (lambda: reduce_ends(build("gemma2"), "nf4", "int8"), "tied"),
        (lambda: reduce_ends(build("llama"), "nf4", "16bit"), "48 columns"),
    ],
)
def test_what_cannot_be_held_so_is_refused(choose: Any, said: str) -> None:
    with pytest.raises(WhetError) as caught:
        choose()
    assert caught.value.code == "model.ends" and said in caught.value.message


def test_ends_that_train_are_refused() -> None:
    model = wide("llama")
    reduce_ends(model, "int8", "int8")
    with pytest.raises(WhetError) as caught:
        add_adapter(model, AdapterSection(modules_to_save=["lm_head"]), seed=0)
    assert caught.value.code == "adapter.rounded"


def test_a_cast_leaves_scales_alone() -> None:
    table = Nf4Table(weight())
    rows = dense(table)
    nn.Sequential(table).to(torch.bfloat16)
    assert torch.equal(dense(table), rows)
