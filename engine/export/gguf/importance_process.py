"""Measure an importance matrix with transformers. [heavy: torch]

Request: model_dir, source, rows, out, origin.
A function mode sees every ``linear`` the model computes, whichever module calls it, and knows the weight by
its address: so an expert that is a slice of a stacked parameter is told apart from its neighbours, and no
family needs code of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode
from transformers import AutoModel

from ...errors import WhetError
from ...hardware import host_memory
from ...models.capped_attention import attention_of
from ...models.own_files import WEIGHTS
from .architectures import find_architecture
from .importance import Importance
from .native import Progress

SHARE = 0.6
"""Share of the free memory that weights may take."""
LONGEST, SPARE_POSITIONS = 512, 2
"""Tokens of a row where the config names no limit; positions that RoBERTa's kind keeps for padding."""
NOT_MEASURED = ("token_embd.weight", "output.weight")
"""Read by rows or kept at five bits and more; llama-imatrix leaves them out as well."""


def main(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Writes the matrix; answers with ``entries``."""
    model_dir, source = Path(request["model_dir"]), Path(request["source"])
    device, dtype = _place(sum(file.stat().st_size for file in model_dir.glob("*.safetensors")))
    try:
        model = AutoModel.from_pretrained(
            model_dir, dtype=dtype, **WEIGHTS, **attention_of(model_dir), **_expert_settings(model_dir)
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise _failed(f"transformers cannot load {model_dir}: {error}") from error
    model = model.to(device).eval()
    squares = InputSquares(model)
    longest = model.config.to_dict().get("max_position_embeddings", LONGEST + SPARE_POSITIONS)
    rows, done = [row[: longest - SPARE_POSITIONS] for row in request["rows"]], 0
    total = sum(len(row) for row in rows)
    with torch.no_grad(), squares:
        for row in rows:
            model(input_ids=torch.tensor([row], device=device))
            done += len(row)
            progress(done, total)
    importance = _by_tensor(squares, model_dir, model.base_model_prefix, source, request["origin"])
    importance.save(Path(request["out"]))
    return {"entries": len(importance.sums)}


class InputSquares(TorchFunctionMode):
    """Sums of squares of what each parameter is multiplied with, column by column.

    ``sums`` and ``counts`` are kept by the parameter's name, [experts, columns] and [experts].
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, torch.Tensor] = {}
        self._known: dict[int, tuple[str, int]] = {}
        for name, weight in model.named_parameters():
            if weight.dim() not in (2, 3):
                continue
            matrices = weight if weight.dim() == 3 else weight[None]
            self.sums[name] = torch.zeros(
                len(matrices), weight.shape[-1], dtype=torch.float64, device=weight.device
            )
            self.counts[name] = torch.zeros(len(matrices), dtype=torch.int64)
            self._known |= {matrix.data_ptr(): (name, i) for i, matrix in enumerate(matrices)}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is linear:
            x, weight = args[0], args[1]
            found = self._known.get(weight.data_ptr())
            if found is not None:
                self._add(*found, x.reshape(-1, x.shape[-1]))
        return func(*args, **(kwargs or {}))

    def _add(self, name: str, expert: int, x: torch.Tensor) -> None:
        """``x`` is [positions, columns]."""
        self.sums[name][expert] += x.float().square().sum(dim=0)
        self.counts[name][expert] += len(x)


def _by_tensor(squares: InputSquares, model_dir: Path, prefix: str, source: Path, origin: str) -> Importance:
    """The sums by the names of the GGUF's tensors.

    Raises:
        WhetError: ``gguf.importance_failed`` when a weight of a layer was never multiplied.
    """
    from gguf import GGMLQuantizationType, GGUFReader

    tensors = {tensor.name: tensor for tensor in GGUFReader(source).tensors if len(tensor.shape) > 1}
    names = _tensor_names(model_dir)
    sums, counts = {}, {}
    for parameter, total in squares.sums.items():
        count = squares.counts[parameter]
        for name in names(parameter) or names(f"{prefix}.{parameter}"):
            if name in tensors and name not in NOT_MEASURED and count.any():
                sums[name] = total.cpu().numpy().astype(np.float32)
                counts[name] = count.numpy().astype(np.float32)
    quantised = [name for name, one in tensors.items() if one.tensor_type != GGMLQuantizationType.F32]
    missing = [name for name in quantised if name.startswith("blk.") and name not in sums]
    if missing:
        raise _failed(f"no multiplication by {', '.join(missing[:3])} was seen ({len(missing)} in all)")
    return Importance(sums, counts, origin)


def _tensor_names(model_dir: Path) -> Callable[[str], list[str]]:
    """What becomes of a parameter in the file: of gate and up in one two tensors, which have one input."""
    config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    architecture, read = find_architecture(config, model_dir)
    names: dict[str, list[str]] = {}
    for tensor in architecture.tensors:
        for layer in map(str, range(read.layers)):
            for spelling in tensor.spellings:
                parameter = spelling.source.replace("{layer}", layer)
                names.setdefault(parameter, []).append(tensor.name.replace("{layer}", layer))
    return lambda parameter: names.get(architecture.canonical(parameter), [])


def _expert_settings(model_dir: Path) -> dict[str, Any]:
    """Experts one by one, so that each is a ``linear``; models without any do not know the setting."""
    config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    experts = any(key in config for key in ("num_experts", "num_local_experts"))
    return {"experts_implementation": "eager"} if experts else {}


def _place(stored_bytes: int) -> tuple[torch.device, torch.dtype]:
    """A GPU that holds the 16-bit weights, else the CPU, in float32 where that fits: it is faster there."""
    if torch.cuda.is_available() and stored_bytes < SHARE * torch.cuda.mem_get_info()[0]:
        return torch.device("cuda"), torch.bfloat16
    fits = 2 * stored_bytes < SHARE * host_memory()[1]
    return torch.device("cpu"), torch.float32 if fits else torch.bfloat16


def _failed(why: str) -> WhetError:
    return WhetError(
        "gguf.importance_failed",
        f"The importance matrix could not be computed: {why}.",
        "Choose types that do without one (q4_k_m, q3_k_m, q2_k), or give a matrix that llama-imatrix made.",
    )
