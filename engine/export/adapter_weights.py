"""A PEFT LoRA adapter on disk, read as updates to the base model's tensors. Needs torch.

The arithmetic, in float32 with W the base weight [out, in], A [r, in], B [out, r]:

- LoRA (Hu et al., 2021): W' = W + s B A with s = alpha / r; rsLoRA (Kalajdzievski, 2023): s = alpha /
  sqrt(r).
- DoRA (Liu et al., 2024): W' = m * (W + s B A) / ||W + s B A||, the norm of each row, m the trained
  magnitude.
- An embedding's factors are stored transposed: its update is s (B A)^T.
- Of stacked experts (PEFT's target_parameters) each has its own B A, see :mod:`.expert_updates`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..errors import WhetError
from .expert_updates import ExpertUpdate, expert_updates

PREFIX = "base_model.model."
HEADLESS = ("model.", "bert.", "roberta.")
"""What stands in front of a tensor's name in checkpoints of a model with a head, and not in one without."""
FACTORS = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector", "lora_embedding_A", "lora_embedding_B")
# Variants of LoRA whose update is not one of the formulas above: refused, never merged approximately.
UNSUPPORTED = (
    "layer_replication",
    "use_qalora",
    "use_bdlora",
    "velora_config",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "alora_invocation_tokens",
    "trainable_token_indices",
    "megatron_config",
)


UNREADABLE = (AttributeError, LookupError, TypeError, ValueError, RecursionError, re.error, SafetensorError)


class Adapter:
    """The updates of ``adapter_dir``; tensors are read when asked for, so that memory stays small.

    Raises:
        WhetError: ``merge.no_adapter`` without adapter files, ``merge.adapter_kind`` for what is not
        (rs/Do)LoRA, ``merge.broken_adapter`` for files that cannot be read.
    """

    def __init__(self, adapter_dir: Path) -> None:
        config_file, weights = adapter_dir / "adapter_config.json", adapter_dir / "adapter_model.safetensors"
        for file in (config_file, weights):
            if not file.is_file():
                raise WhetError(
                    "merge.no_adapter",
                    f"{adapter_dir} holds no {file.name}.",
                    "Point to a PEFT adapter saved as safetensors, such as a run's export/adapter folder.",
                )
        self.dir = adapter_dir
        try:
            self.config: dict[str, Any] = json.loads(config_file.read_text(encoding="utf-8"))
            self._refuse_other_kinds()
            _check_numbers(self.config)
            self._file = safe_open(weights, framework="pt", device="cpu")
        # What a foreign file says instead of a number or a name, and what safetensors says of its own.
        except UNREADABLE as error:
            raise WhetError(
                "merge.broken_adapter",
                f"The adapter in {adapter_dir} cannot be read: {type(error).__name__}: {error}",
                "Save it again with save_pretrained, or copy it again from where it came.",
            ) from error
        self.factors: dict[str, dict[str, str]] = {}
        """Weight name of the base -> factor name -> key in the adapter's file."""
        self.replaced: dict[str, str] = {}
        """Tensor name of the base -> key of the whole tensor that replaces it (biases, modules_to_save)."""
        self.experts: dict[str, tuple[ExpertUpdate, dict[str, str]]] = {}
        """Tensor name of the base -> how stacked experts' factors change it; see :meth:`match_experts`."""
        # A layer's two pairs serve hundreds of tensors in turn.
        self._stacked = lru_cache(maxsize=2)(self._read_stacked)
        for key in self._file.keys():  # noqa: SIM118  (a safetensors handle is no dict)
            self._sort(key)

    def match_prefix(self, names: set[str]) -> None:
        """Spell the updates as the base's checkpoint does, where only a head's prefix is between them."""
        for prefix in HEADLESS:
            for old, new in ((prefix, ""), ("", prefix)):
                spelled = {name: new + name.removeprefix(old) for name in self.targets}
                if not self.targets <= names and set(spelled.values()) <= names:
                    self.factors = {spelled[name]: keys for name, keys in self.factors.items()}
                    self.replaced = {spelled[name]: key for name, key in self.replaced.items()}

    def _refuse_other_kinds(self) -> None:
        kind = self.config.get("peft_type")
        active = [name for name in UNSUPPORTED if self.config.get(name)]
        if kind != "LORA" or active:
            what = f"peft_type {kind}" if kind != "LORA" else f"the setting {active[0]}"
            raise WhetError(
                "merge.adapter_kind",
                f"The adapter in {self.dir} uses {what}, which cannot be merged into plain weights here.",
                "Merging knows LoRA, rsLoRA and DoRA with trained biases and modules_to_save.",
            )

    def _sort(self, key: str) -> None:
        name = key.removeprefix(PREFIX)
        for factor in FACTORS:
            stem = name.removesuffix(".weight") if factor == "lora_magnitude_vector" else name
            if stem.endswith("." + factor):
                self.factors.setdefault(stem.removesuffix(factor) + "weight", {})[factor] = key
                return
        if ".lora_B.bias" in name:
            raise WhetError(
                "merge.adapter_kind",
                f"The adapter in {self.dir} was trained with lora_bias, which cannot be merged here.",
                "Train without lora_bias.",
            )
        name = re.sub(r"\.(base_layer|original_module|modules_to_save)(?=\.)", "", name)
        self.replaced[name] = key

    @property
    def targets(self) -> set[str]:
        """Names of the base's tensors that change."""
        return set(self.factors) | set(self.replaced) | set(self.experts)

    def match_experts(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Find the base's tensors that factors of stacked experts change; those leave ``factors``.

        Args:
            shapes: of all tensors of the base, by name.
        """
        if not self.config.get("target_parameters"):
            return
        for name, update in expert_updates(shapes).items():
            # PEFT wraps the module once for each parameter, one wrapper in another.
            for stem in (f"{update.module}.weight", f"{update.module}.base_layer.weight"):
                if (keys := self.factors.get(stem)) is None:
                    continue
                a_shape, b_shape = self._shape(keys["lora_A.weight"]), self._shape(keys["lora_B.weight"])
                if update.fits(a_shape, b_shape, shapes[name]):
                    self.experts[name] = (update, keys)
        for update, _ in self.experts.values():
            for stem in (f"{update.module}.weight", f"{update.module}.base_layer.weight"):
                self.factors.pop(stem, None)

    def _shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(key).get_shape())

    def tensor(self, key: str) -> torch.Tensor:
        return self._file.get_tensor(key)

    def scale(self, weight_name: str) -> float:
        """alpha / r, or alpha / sqrt(r), of one layer, with PEFT's rank and alpha patterns."""
        module = weight_name.removesuffix(".weight")
        rank = self._rank(module)
        alpha = _patterned(self.config.get("alpha_pattern"), module, self.config["lora_alpha"])
        return alpha / math.sqrt(rank) if self.config.get("use_rslora") else alpha / rank

    def _rank(self, module: str) -> float:
        return _patterned(self.config.get("rank_pattern"), module, self.config["r"])

    def replaced_shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor that was trained whole."""
        return self._shape(self.replaced[name])

    def replaced_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows of a tensor that was trained whole."""
        part: torch.Tensor = self._file.get_slice(self.replaced[name])[start:stop]
        return part

    def in_blocks(self, name: str) -> bool:
        """Whether :meth:`apply` takes rows apart: not where DoRA's lengths run down the columns."""
        keys = self.factors.get(name, {})
        return "lora_magnitude_vector" not in keys or not self._transposed(keys)

    def apply(self, name: str, base: torch.Tensor, start: int = 0) -> torch.Tensor:
        """Rows of a tensor with its update, float32; without one they come back as they are.

        Args:
            name: of the base's tensor.
            base: its rows from ``start`` on, all or, where :meth:`in_blocks`, some; of one that was trained
                whole, :meth:`replaced_rows`.
        """
        if name in self.experts:
            return self._apply_to_experts(name, base, start)
        if name not in self.factors:
            return base
        keys, stop = self.factors[name], start + base.shape[0]
        delta = self._update(keys, start, stop)
        if delta.shape != base.shape:
            raise WhetError(
                "merge.shape",
                f"{name}: the adapter's update has shape {list(delta.shape)}, the base {list(base.shape)}.",
                "The adapter was trained on another base model; name that one.",
            )
        merged = base.float().add(delta, alpha=self.scale(name))
        if "lora_magnitude_vector" in keys:
            magnitude = self.tensor(keys["lora_magnitude_vector"]).float()
            merged = self._with_magnitude(merged, magnitude, keys, start, stop)
        return merged

    def _apply_to_experts(self, name: str, base: torch.Tensor, start: int) -> torch.Tensor:
        update, keys = self.experts[name]
        a_PI, b_OP = self._stacked(keys["lora_A.weight"], keys["lora_B.weight"])
        experts = int(len(a_PI) // self._rank(update.parameter))
        delta = update.rows(a_PI, b_OP, experts, start, start + len(base))
        return base.float().add(delta, alpha=self.scale(update.parameter))

    def _read_stacked(self, a: str, b: str) -> tuple[torch.Tensor, torch.Tensor]:
        return self.tensor(a).float(), self.tensor(b).float()

    def _transposed(self, keys: dict[str, str]) -> bool:
        """Whether the stored factors' product is the weight's transpose."""
        return "lora_embedding_A" in keys or bool(self.config.get("fan_in_fan_out"))

    def _update(self, keys: dict[str, str], start: int, stop: int) -> torch.Tensor:
        """B A, or its transpose, rows ``start`` to ``stop``, unscaled."""
        embedding = "lora_embedding_A" in keys
        a_RI = self.tensor(keys["lora_embedding_A" if embedding else "lora_A.weight"]).float()
        b_OR = self.tensor(keys["lora_embedding_B" if embedding else "lora_B.weight"]).float()
        if self._transposed(keys):
            return a_RI[:, start:stop].T @ b_OR.T
        return b_OR[start:stop] @ a_RI

    def _with_magnitude(
        self, merged: torch.Tensor, magnitude: torch.Tensor, keys: dict[str, str], start: int, stop: int
    ) -> torch.Tensor:
        """DoRA: rows (columns of an embedding or of a transposed layer) rescaled to the trained length."""
        if self._transposed(keys):
            norm = torch.linalg.norm(merged, dim=0, keepdim=True)
            return merged * (magnitude.reshape(norm.shape) / norm)
        norm = torch.linalg.norm(merged, dim=1, keepdim=True)
        return merged * (magnitude.reshape(-1, 1)[start:stop] / norm)


def _check_numbers(config: dict[str, Any]) -> None:
    """Raise ValueError for a rank or an alpha that is none, re.error for a pattern that is none."""
    ranks, alphas = (config.get(f"{name}_pattern") or {} for name in ("rank", "alpha"))
    for number in (config["r"], config["lora_alpha"], *ranks.values(), *alphas.values()):
        if type(number) not in (int, float) or not math.isfinite(number):
            raise ValueError(f"{number!r} as a rank or an alpha")
    for number in (config["r"], *ranks.values()):
        if number <= 0:
            raise ValueError(f"rank {number}")
    for pattern in (*ranks, *alphas):
        re.compile(pattern)


def _patterned(pattern: dict[str, Any] | None, module: str, default: float) -> float:
    """PEFT's rule: a pattern's key matches the end of the module's path, as a regular expression."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return float(value)
    return float(default)
