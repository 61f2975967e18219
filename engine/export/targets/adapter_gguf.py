"""A LoRA adapter as a GGUF that llama.cpp lays over the base model's. Needs torch.

llama.cpp adds alpha / r * B A to a matrix, with one alpha a file and r read from B. Whatever else PEFT scales
by (rsLoRA's alpha / sqrt(r), ranks and alphas of single layers) goes into B. Names and the order of rows are
the converter's own, so that adapter and base fit.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import gguf
import numpy as np
import torch

from ...errors import WhetError
from ...models.sentence_folder import is_embedding_model
from ..adapter_weights import Adapter
from ..base_weights import BaseWeights
from ..files import atomic_file
from ..gguf.architectures import find_architecture
from ..gguf.metadata import clean_name
from ..gguf.tensors import HEAD, Place, places
from ..gguf.transforms import interleave_k, interleave_q

ROW_ORDERS = (None, interleave_q, interleave_k)
"""Transforms that only reorder a matrix's rows, which are B's."""
METADATA_BYTES = 1 << 20
HEAD_SOURCE, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@dataclass(frozen=True)
class AdapterReport:
    """What was written."""

    path: str
    alpha: float
    pairs: int
    """Matrices that the adapter changes."""
    bytes: int


def write_adapter_gguf(
    adapter_dir: Path, base_dir: Path, out: Path, name: str | None = None
) -> AdapterReport:
    """Write a PEFT adapter as ``out``, in float32 as it was trained; whole or not at all.

    Args:
        adapter_dir: LoRA or rsLoRA on linear layers, and nothing else trained.
        base_dir: the base model, with its weights.
        out: the file.
        name: in the file; by default the adapter's folder.

    Raises:
        WhetError: ``export.adapter_gguf`` for what llama.cpp's adapters cannot hold, ``gguf.unsupported``,
            ``gguf.not_finite``, ``merge.no_adapter``, ``merge.adapter_kind``, ``export.disk_full``.
    """
    adapter, base = Adapter(adapter_dir), BaseWeights(base_dir)
    if is_embedding_model(base_dir):
        raise _error(f"{base_dir} is an embedding model; adapter files are written of language models.")
    _check_kind(adapter, base)
    raw = json.loads((base_dir / "config.json").read_text(encoding="utf-8"))
    architecture, config = find_architecture(raw, base_dir)
    known = places(architecture, config)
    shared = HEAD_SOURCE not in base.file_of if config.tied is None else config.tied
    targets = {name: _place(known, architecture.canonical(name), name, shared) for name in adapter.factors}
    alpha = _file_alpha(adapter)
    needed = sum(
        4 * adapter.tensor(key).numel() for keys in adapter.factors.values() for key in keys.values()
    )
    with atomic_file(out, needed + METADATA_BYTES) as partial:
        writer = gguf.GGUFWriter(partial, architecture.name)
        try:
            writer.add_type(gguf.GGUFType.ADAPTER)
            writer.add_name(clean_name(name or adapter_dir.resolve().name))
            writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
            writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
            for source, place in targets.items():
                a_RI, b_OR = _factors(adapter, source, alpha)
                if place.transform is not None:
                    b_OR = place.transform(b_OR, config)
                writer.add_tensor(f"{place.name}.lora_a", _numbers(a_RI, source))
                writer.add_tensor(f"{place.name}.lora_b", _numbers(b_OR, source))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
    return AdapterReport(str(out), alpha, len(targets), out.stat().st_size)


def _check_kind(adapter: Adapter, base: BaseWeights) -> None:
    """Refuse what is more than B A on linear layers."""
    factors = {factor for keys in adapter.factors.values() for factor in keys}
    if "lora_magnitude_vector" in factors:
        _refuse(adapter, "is DoRA, which also rescales the base's rows")
    if "lora_embedding_A" in factors:
        _refuse(adapter, "changes the embedding")
    if adapter.config.get("fan_in_fan_out"):
        _refuse(adapter, "holds transposed factors (fan_in_fan_out)")
    whole = [name for name in sorted(adapter.replaced) if not _is_the_bases(adapter, base, name)]
    if whole:
        _refuse(adapter, f"holds {len(whole)} tensors that were trained whole ({', '.join(whole[:2])})")
    if not adapter.factors:
        _refuse(adapter, "changes nothing")


def _is_the_bases(adapter: Adapter, base: BaseWeights, name: str) -> bool:
    """PEFT also saves embedding and head as they were, when either of them has an adapter."""
    sources = [one for one in (name, EMBEDDING) if one in base.file_of]
    if not sources or base.shape(sources[0]) != adapter.replaced_shape(name):
        return False
    return torch.equal(base.tensor(sources[0]).float(), adapter.tensor(adapter.replaced[name]).float())


def _place(known: dict[str, Place], canonical: str, name: str, shared: bool) -> Place:
    place = known.get(canonical)
    if place is None or place.stacked or place.transform not in ROW_ORDERS:
        raise _error(f"The adapter changes {name}, which llama.cpp does not take from an adapter.")
    if place.name == HEAD.name and shared:
        raise _error("The adapter changes the output head, which this model shares with its embedding.")
    return place


def _file_alpha(adapter: Adapter) -> float:
    """The one alpha that makes llama.cpp's alpha / r right without touching B, of the first layer."""
    first = next(iter(adapter.factors))
    return adapter.scale(first) * _rank(adapter, first)


def _rank(adapter: Adapter, name: str) -> int:
    return int(adapter.tensor(adapter.factors[name]["lora_A.weight"]).shape[0])


def _factors(adapter: Adapter, name: str, alpha: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A, and B with what this layer is scaled by beyond alpha / r."""
    keys = adapter.factors[name]
    a_RI = adapter.tensor(keys["lora_A.weight"]).float()
    b_OR = adapter.tensor(keys["lora_B.weight"]).float()
    beyond = adapter.scale(name) * len(a_RI) / alpha
    return a_RI, b_OR if beyond == 1 else b_OR * beyond


def _numbers(value: torch.Tensor, name: str) -> np.ndarray[Any, Any]:
    if not torch.isfinite(value).all():
        raise WhetError(
            "gguf.not_finite",
            f"The adapter's update of {name} contains NaN or infinite values.",
            "The training diverged; export an earlier checkpoint.",
        )
    array: np.ndarray[Any, Any] = value.contiguous().numpy()
    return array


def _refuse(adapter: Adapter, what: str) -> NoReturn:
    raise _error(
        f"The adapter in {adapter.dir} {what}, and llama.cpp's adapters hold B A on linear layers only."
    )


def _error(message: str) -> WhetError:
    return WhetError(
        "export.adapter_gguf", message, "Export a merged model instead: `whet export RUN --gguf q8_0`."
    )
