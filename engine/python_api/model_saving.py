"""Saving and pushing models of any other task, bound on the instance; `save_pretrained` is its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from peft import PeftModel

from ..export.other_models import REASONS, no_gguf_of
from ..export.targets.memory import DEFAULT_SHARE, check_share
from ..export.task_heads import no_gguf
from ..models.adapters import save_weights
from .model_classes import head_of
from .notes import say
from .pushing import push_to_hub, push_to_hub_merged
from .saved_weights import known_state, save_method_of, write_merged, write_whole
from .saving import bind
from .spellings import refuse_token
from .state import base_model

METHODS = ("merged_16bit", "lora")


def bind_saving(model: Any, processor: Any) -> Any:
    """Give this instance the saving methods, which write ``processor`` where none is passed."""
    model.whet_processor = processor
    return bind(
        model, save_pretrained_merged, save_pretrained_gguf, push_to_hub, push_to_hub_merged, push_to_hub_gguf
    )


def save_pretrained_merged(
    self: Any,
    save_directory: str | Path,
    tokenizer: Any = None,
    save_method: str = "merged_16bit",
    maximum_memory_usage: float = DEFAULT_SHARE,
    token: str | None = None,
) -> Path:
    """Write weights that transformers loads alone, or the adapter.

    Args:
        save_directory: a new folder.
        tokenizer: or processor, written beside the weights; without it the model's own.
        save_method: `merged_16bit` or `lora`.
        maximum_memory_usage: share of the free memory that a merge may take.
        token: refused; nothing is sent from here.

    Raises:
        WhetError: `export.*`, `merge.*`, `python_api.token`.
    """
    refuse_token("token", token)
    share, out = check_share(maximum_memory_usage), Path(save_directory)
    method, processor = save_method_of(save_method, METHODS), tokenizer or self.whet_processor
    if not isinstance(self, PeftModel):
        return write_whole(self, out, processor)
    if method == "lora":
        return _write_adapter(self, out, processor)
    state, task = known_state(self), head_of(base_model(self))
    with TemporaryDirectory(prefix="whet-adapter-") as folder:
        adapter = _write_adapter(self, Path(folder), processor)
        if task is not None:
            from ..export.head_merge import merge_head

            _, verdict = merge_head(state.base_dir, adapter, out, task)
            if verdict.status != "pass":
                say(f"{out}: {verdict.status}; {out}.verdict.json says which proof and why.")
            return out
        return write_merged(state, adapter, out, share)


def save_pretrained_gguf(self: Any, *args: Any, **given: Any) -> Any:
    """Raises WhetError ``gguf.unsupported`` with the reason."""
    name = next((kind.__name__ for kind in type(base_model(self)).__mro__ if kind.__name__ in REASONS), None)
    raise no_gguf() if name is None else no_gguf_of(name)


def push_to_hub_gguf(
    self: Any,
    repo_id: str,
    tokenizer: Any = None,
    quantization_method: str | Sequence[str] = "f16",
    **given: Any,
) -> Any:
    """As :func:`save_pretrained_gguf`."""
    return save_pretrained_gguf(self)


def _write_adapter(model: Any, out: Path, processor: Any) -> Path:
    """PEFT's files, the processor, and a config.json that names class and labels."""
    base = base_model(model)
    save_weights(model, out)
    processor.save_pretrained(str(out))
    name = next(kind.__name__ for kind in type(base).__mro__ if kind.__module__.startswith("transformers"))
    base.config.architectures = [name]
    base.config.save_pretrained(str(out))
    if base.can_generate():
        base.generation_config.save_pretrained(str(out))
    return out
