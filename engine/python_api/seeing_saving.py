"""Saving and pushing of models that see, bound on the model instance; what they cannot become is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from peft import PeftModel

from ..export.other_models import no_gguf_of_seeing
from ..export.targets.memory import DEFAULT_SHARE
from ..methods.vision.loading import copy_processor
from ..models.loading import load_tokenizer
from .pushing import push_to_hub
from .saved_weights import known_state, save_method_of, write_adapter, write_whole
from .saving import bind, push_to_hub_merged
from .seeing_processor import SeeingProcessor
from .spellings import refuse_token

METHODS = ("merged_16bit", "merged_4bit", "merged_4bit_forced", "merged_fp8", "lora")


def bind_seeing_saving(model: Any) -> Any:
    """Give this instance the saving methods."""
    return bind(
        model,
        save_pretrained_merged,
        save_pretrained_gguf,
        push_to_hub,
        push_to_hub_merged,
        push_to_hub_gguf,
    )


def save_pretrained_merged(
    self: Any,
    save_directory: str | Path,
    tokenizer: Any = None,
    save_method: str = "merged_16bit",
    maximum_memory_usage: float = DEFAULT_SHARE,
    token: str | None = None,
) -> Path:
    """Write weights that need neither peft nor whet to load, proven on pictures; or the adapter alone.

    Args:
        save_directory: a new folder, or one that an earlier call wrote.
        tokenizer: the processor; without it the base's.
        save_method: `merged_16bit` or `lora`.
        maximum_memory_usage: accepted; such a model is merged whole.
        token: refused; nothing is sent from here.

    Raises:
        WhetError: `gguf.unsupported` for other methods, `export.*`, `merge.*`, `python_api.token`.
    """
    refuse_token("token", token)
    method, out = save_method_of(save_method, METHODS), Path(save_directory)
    if method not in ("merged_16bit", "lora"):
        raise no_gguf_of_seeing()
    base, own = known_state(self).base_dir, _tokenizer(self, tokenizer)
    if method == "lora":
        write_adapter(self, out, own)
    elif isinstance(self, PeftModel):
        from ..export.seeing_merge import merge_seeing

        with TemporaryDirectory(prefix="whet-adapter-") as folder:
            merge_seeing(base, write_adapter(self, Path(folder), own), out)
    else:
        write_whole(self, out, own)
    copy_processor(base, out)
    return out


def save_pretrained_gguf(self: Any, *args: Any, **given: Any) -> Any:
    """Refused. Raises WhetError ``gguf.unsupported`` with what to do instead."""
    raise no_gguf_of_seeing()


def push_to_hub_gguf(
    self: Any, repo_id: str, *args: Any, quantization_method: str | Sequence[str] = "q8_0", **given: Any
) -> str:
    """Refused. Raises WhetError ``gguf.unsupported`` with what to do instead."""
    raise no_gguf_of_seeing()


def _tokenizer(model: Any, given: Any) -> Any:
    if isinstance(given, SeeingProcessor):
        return given.tokenizer
    return given or load_tokenizer(known_state(model).base_dir)
