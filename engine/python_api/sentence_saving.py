"""Saving and pushing an embedding model, bound on its instance; `save_pretrained` is its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory
from typing import Any

from peft import PeftModel

from ..export.files import new_folder
from ..export.targets.memory import DEFAULT_SHARE, check_share
from ..methods.embedding.trainer import save_embedder
from ..recipe import ExportSection
from .pushing import push_to_hub_merged, push_written
from .saved_weights import known_state, save_method_of, write_merged
from .saving import bind, gguf_types, tell_of
from .spellings import refuse_token

METHODS = ("merged_16bit", "lora")


def bind_saving(model: Any) -> Any:
    """Give this instance the saving methods; its class stays as it is."""
    return bind(model, save_pretrained_merged, save_pretrained_gguf, push_to_hub_merged, push_to_hub_gguf)


def save_pretrained_merged(
    self: Any,
    save_directory: str | Path,
    tokenizer: Any = None,
    save_method: str = "merged_16bit",
    maximum_memory_usage: float = DEFAULT_SHARE,
    token: str | None = None,
) -> Path:
    """Write a folder that plain `SentenceTransformer` loads: the whole model, or with `lora` the adapter.

    Args:
        save_directory: a new folder.
        tokenizer: accepted; the model's own is written.
        save_method: `merged_16bit` or `lora`.
        maximum_memory_usage: share of the free memory that a merge may take.
        token: refused; nothing is sent from here.

    Raises:
        WhetError: `export.*`, `python_api.token`.
    """
    refuse_token("token", token)
    share, out = check_share(maximum_memory_usage), Path(save_directory)
    method = save_method_of(save_method, METHODS)
    with _trained(self) as folder:
        if method == "lora" or not isinstance(self[0].model, PeftModel):
            if out.exists():  # what else lies there stays
                copytree(folder, out, dirs_exist_ok=True)
            else:
                with new_folder(out) as partial:
                    copytree(folder, partial, dirs_exist_ok=True)
            return out
        return write_merged(known_state(self[0].model), folder, out, share)


def save_pretrained_gguf(
    self: Any,
    save_directory: str | Path,
    tokenizer: Any = None,
    quantization_method: str | Sequence[str] = "f16",
    maximum_memory_usage: float = DEFAULT_SHARE,
    token: str | None = None,
    imatrix: str | Path | None = None,
) -> Any:
    """Merge, convert, quantise, and prove each GGUF's vectors with llama.cpp.

    Args:
        save_directory: receives the files and their verdicts.
        tokenizer: accepted; the model's own is written.
        quantization_method: one type or several; embedding models lose most below q8_0.
        maximum_memory_usage: share of the free memory that merging and its proof may take.
        token: refused; nothing is sent from here.
        imatrix: a text or data file, or a matrix (`.gguf`), that an importance matrix comes from.

    Returns:
        The :class:`..export.pipeline.ExportResult`: paths and verdicts.

    Raises:
        WhetError: `gguf.*`, `export.*`, `python_api.token`.
    """
    from ..export.pipeline import export_model

    refuse_token("token", token)
    section = ExportSection(
        gguf=gguf_types(quantization_method),
        imatrix=None if imatrix is None else str(imatrix),
        maximum_memory_usage=check_share(maximum_memory_usage),
    )
    state = known_state(self[0].model)
    with _trained(self) as folder:
        base = state.base_dir if isinstance(self[0].model, PeftModel) else folder
        result = export_model(
            folder,
            base,
            Path(save_directory),
            section,
            emit=lambda event: None,
            trained_precision=state.rounded,
        )
    tell_of(result)
    return result


def push_to_hub_gguf(
    self: Any,
    repo_id: str,
    tokenizer: Any = None,
    quantization_method: str | Sequence[str] = "f16",
    private: bool = True,
    commit_message: str | None = None,
    token: str | None = None,
) -> str:
    """Write as :func:`save_pretrained_gguf` does, then upload; returns the repository's address."""
    refuse_token("token", token)
    return push_written(
        lambda folder: save_pretrained_gguf(self, folder, tokenizer, quantization_method),
        repo_id,
        private,
        commit_message,
        name="gguf",
    )


@contextmanager
def _trained(model: Any) -> Iterator[Path]:
    """What is in memory as a folder, while the context lasts."""
    with TemporaryDirectory(prefix="whet-embedder-") as folder:
        save_embedder(model, Path(folder))
        yield Path(folder)
