"""`save_pretrained_merged`, `save_pretrained_gguf` and their hub twins, bound on the model instance.

Merging and conversion read the adapter and the 16-bit base from disk and stream them; the model in memory,
which may hold its base quantised, is only asked for its adapter.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MethodType
from typing import Any

import torch
from peft import PeftModel

from ..data.chat_templates.renderer import strip_generation_tags
from ..errors import WhetError
from ..export.gguf.types import check_types
from ..export.merging import merge
from ..models.adapters import save_weights
from ..models.loading import load_tokenizer
from ..recipe import ExportSection
from .notes import say
from .spellings import refuse_token
from .state import ModelState, base_model, state_of

SAVE_METHODS = ("merged_16bit", "lora")
GGUF_ALIASES = {"not_quantized": "f16", "fast_quantized": "q8_0", "quantized": "q4_k_m", "none": "f16"}
HALF = (torch.bfloat16, torch.float16)


def bind_saving(model: Any) -> Any:
    """Give this instance the saving methods; its class stays as it is."""
    for method in (save_pretrained_merged, save_pretrained_gguf, push_to_hub_merged, push_to_hub_gguf):
        setattr(model, method.__name__, MethodType(method, model))
    return model


def save_pretrained_merged(
    self: Any,
    save_directory: str | Path,
    tokenizer: Any = None,
    save_method: str = "merged_16bit",
    maximum_memory_usage: float = 0.75,
    token: str | None = None,
) -> Path:
    """Write weights that need neither peft nor whet to load, or the adapter alone.

    Args:
        save_directory: a new folder, or one that an earlier call wrote.
        tokenizer: written beside the weights, chat template included; without it the base's.
        save_method: `merged_16bit` (the adapter added to the 16-bit base) or `lora`.
        maximum_memory_usage: accepted for older scripts: merging streams and holds one tensor and one shard.
        token: refused; nothing is sent from here.

    Returns:
        The folder.

    Raises:
        WhetError: `export.save_method`, `python_api.token`, and those of :func:`..export.merging.merge`.
    """
    refuse_token("token", token)
    _check_share(maximum_memory_usage)
    _check_method(save_method)
    out = Path(save_directory)
    if save_method == "lora":
        return _write_adapter(self, out, tokenizer)
    if not isinstance(self, PeftModel):
        return _write_whole(self, out, tokenizer)
    state = _state(self)
    with TemporaryDirectory(prefix="whet-adapter-") as folder:
        adapter = _write_adapter(self, Path(folder), tokenizer)
        report = merge(state.base_dir, adapter, out, trained_precision=state.rounded)
    for note in report.notes:
        say(note)
    return out


def save_pretrained_gguf(
    self: Any,
    save_directory: str | Path,
    tokenizer: Any = None,
    quantization_method: str | Sequence[str] = "q8_0",
    first_conversion: str | None = None,
    maximum_memory_usage: float = 0.75,
    token: str | None = None,
) -> Any:
    """Merge, convert to GGUF, quantise, and prove each file against the trained model with llama.cpp.

    Args:
        save_directory: receives the GGUF files, a Modelfile and the verdicts.
        tokenizer: with the chat template that was trained; without it the base's.
        quantization_method: one type or several, e.g. `q4_k_m`, `q8_0`, `f16`.
        first_conversion: accepted for older scripts: quantising always starts from 16 bits.
        maximum_memory_usage: accepted for older scripts, as for :func:`save_pretrained_merged`.
        token: refused; nothing is sent from here.

    Returns:
        The :class:`..export.pipeline.ExportResult`: paths and verdicts.

    Raises:
        WhetError: `gguf.*` for unknown types and unsupported architectures, `export.*`, `python_api.token`.
    """
    refuse_token("token", token)
    _check_share(maximum_memory_usage)
    section = ExportSection.model_validate({"gguf": gguf_types(quantization_method)})
    with _weights_folder(self, tokenizer) as (trained, base_dir):
        from ..export.pipeline import export_model

        result = export_model(
            trained,
            base_dir,
            Path(save_directory),
            section,
            emit=lambda event: None,
            trained_precision=_state(self).rounded,
        )
    for note in result.notes:
        say(note)
    for verdict in result.verdicts:
        if verdict.status != "pass":
            say(f"{Path(verdict.gguf).name}: {verdict.status}; the verdict says which proof and why.")
    return result


def push_to_hub_merged(
    self: Any,
    repo_id: str,
    tokenizer: Any = None,
    save_method: str = "merged_16bit",
    private: bool = True,
    commit_message: str | None = None,
    token: str | None = None,
) -> str:
    """Write as :func:`save_pretrained_merged` does, then upload; private unless `private=False`.

    Returns:
        The repository's address.

    Raises:
        WhetError: those of :func:`save_pretrained_merged` and :mod:`..export.hub`.
    """
    from ..export.hub import push_folder

    refuse_token("token", token)
    with TemporaryDirectory(prefix="whet-merged-") as parent:
        folder = save_pretrained_merged(self, Path(parent) / "model", tokenizer, save_method)
        return push_folder(folder, repo_id, private=private, message=commit_message)


def push_to_hub_gguf(
    self: Any,
    repo_id: str,
    tokenizer: Any = None,
    quantization_method: str | Sequence[str] = "q8_0",
    private: bool = True,
    commit_message: str | None = None,
    token: str | None = None,
) -> str:
    """Write as :func:`save_pretrained_gguf` does, then upload the proven files; private unless
    `private=False`.

    Returns:
        The repository's address.

    Raises:
        WhetError: those of :func:`save_pretrained_gguf` and :mod:`..export.hub`.
    """
    from ..export.hub import push_folder

    refuse_token("token", token)
    with TemporaryDirectory(prefix="whet-gguf-") as parent:
        folder = Path(parent) / "gguf"
        save_pretrained_gguf(self, folder, tokenizer, quantization_method)
        return push_folder(folder, repo_id, private=private, message=commit_message)


def gguf_types(methods: str | Sequence[str]) -> list[str]:
    """GGUF type names, older aliases translated; an unknown one raises with the nearest name."""
    names = [methods] if isinstance(methods, str) else list(methods)
    types = [GGUF_ALIASES.get(name.lower(), name.lower()) for name in names]
    check_types(types)
    return types


@contextmanager
def _weights_folder(model: Any, tokenizer: Any) -> Iterator[tuple[Path, Path]]:
    """`(trained weights, base weights)` on disk while the context lasts: an adapter, or a whole model."""
    with TemporaryDirectory(prefix="whet-trained-") as folder:
        if isinstance(model, PeftModel):
            yield _write_adapter(model, Path(folder), tokenizer), _state(model).base_dir
        else:
            whole = _write_whole(model, Path(folder), tokenizer)
            yield whole, whole


def _write_adapter(model: Any, out: Path, tokenizer: Any) -> Path:
    if not isinstance(model, PeftModel):
        raise WhetError(
            "export.save_method",
            "This model has no adapter to save.",
            'Use save_method="merged_16bit", or get_peft_model before training.',
        )
    save_weights(model, out)
    base_model(model).generation_config.save_pretrained(str(out))
    if tokenizer is not None:
        _write_tokenizer(tokenizer, out)
    return out


def _write_tokenizer(tokenizer: Any, out: Path) -> None:
    """As it was trained with, in Jinja that every engine reads: without our generation tags."""
    plain = copy.deepcopy(tokenizer)
    if isinstance(plain.chat_template, str):
        plain.chat_template = strip_generation_tags(plain.chat_template)
    plain.save_pretrained(str(out))


def _write_whole(model: Any, out: Path, tokenizer: Any) -> Path:
    """A fully trained model in 16 bits; bfloat16 where it was trained in fp32."""
    base = base_model(model)
    if base.config.to_dict().get("quantization_config"):
        raise WhetError(
            "export.save_method",
            "The model holds quantised weights and no adapter, so there is nothing trained to merge.",
            "Train an adapter with get_peft_model first.",
        )
    dtype = base.dtype if base.dtype in HALF else torch.bfloat16
    weights = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in base.state_dict().items()
    }
    base.save_pretrained(str(out), state_dict=weights)
    file = out / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["dtype"] = str(dtype).removeprefix("torch.")
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    _write_tokenizer(tokenizer or load_tokenizer(_state(model).base_dir), out)
    return out


def _state(model: Any) -> ModelState:
    state = state_of(model)
    if state is None:
        raise WhetError(
            "export.no_base",
            "This model was not loaded by FastLanguageModel.from_pretrained, so its base is not known.",
            "Load it with FastLanguageModel.from_pretrained, or merge with `whet export`.",
        )
    return state


def _check_method(save_method: str) -> None:
    if save_method in SAVE_METHODS:
        return
    if save_method.startswith("merged_4bit"):
        raise WhetError(
            "export.save_method",
            f"save_method={save_method!r}: a merge into 4-bit weights would round the training away.",
            'Use "merged_16bit" and quantise when serving, or save_pretrained_gguf(..., "q4_k_m").',
        )
    near = get_close_matches(save_method, SAVE_METHODS, n=1)
    raise WhetError(
        "export.save_method",
        f"save_method={save_method!r} is unknown.",
        f"{f'Did you mean {near[0]!r}? ' if near else ''}Choices: {', '.join(SAVE_METHODS)}.",
    )


def _check_share(value: float) -> None:
    if not 0 < value <= 1:
        raise WhetError(
            "export.memory_share",
            f"maximum_memory_usage={value!r} is no share of memory.",
            "Use a value in (0, 1].",
        )
