"""What saving writes of a model: its adapter, alone or merged, or a fully trained model; the tokenizer."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import PeftModel

from ..data.chat_templates.renderer import strip_generation_tags
from ..errors import WhetError
from ..export.merging import merge
from ..export.targets.memory import block_bytes
from ..models.adapters import save_weights
from ..models.loading import load_tokenizer
from .notes import say
from .state import ModelState, base_model, state_of

HALF = (torch.bfloat16, torch.float16)


def save_method_of(given: str, known: Sequence[str]) -> str:
    """``given`` itself. Raises WhetError ``export.save_method`` with the nearest one unless it is known."""
    if given in known:
        return given
    near = get_close_matches(given, known, n=1)
    raise WhetError(
        "export.save_method",
        f"save_method={given!r} is unknown.",
        f"{f'Did you mean {near[0]!r}? ' if near else ''}Choices: {', '.join(known)}.",
    )


@contextmanager
def weights_folder(model: Any, tokenizer: Any) -> Iterator[tuple[Path, Path]]:
    """`(trained weights, base weights)` on disk while the context lasts: an adapter, or a whole model."""
    with TemporaryDirectory(prefix="whet-trained-") as folder:
        if isinstance(model, PeftModel):
            yield write_adapter(model, Path(folder), tokenizer), known_state(model).base_dir
        else:
            whole = write_whole(model, Path(folder), tokenizer)
            yield whole, whole


def write_adapter(model: Any, out: Path, tokenizer: Any) -> Path:
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


def write_whole(model: Any, out: Path, tokenizer: Any) -> Path:
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
    _write_tokenizer(tokenizer or load_tokenizer(known_state(model).base_dir), out)
    return out


def write_merged(state: ModelState, adapter: Path, out: Path, share: float) -> Path:
    """An adapter's folder merged into the 16-bit base, in blocks that fit ``share`` of the free memory.

    Raises:
        WhetError: those of :func:`..export.merging.merge`.
    """
    memory = block_bytes(share)
    report = merge(state.base_dir, adapter, out, trained_precision=state.rounded, memory=memory)
    for note in report.notes:
        say(note, above=1)
    return out


def known_state(model: Any) -> ModelState:
    state = state_of(model)
    if state is None:
        raise WhetError(
            "export.no_base",
            "This model was not loaded by FastLanguageModel.from_pretrained, so its base is not known.",
            "Load it with FastLanguageModel.from_pretrained, or merge with `whet export`.",
        )
    return state
