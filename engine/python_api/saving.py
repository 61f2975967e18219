"""`save_pretrained_merged`, `save_pretrained_gguf`, and pushing, bound on the model instance.

Merging and conversion read the adapter and the 16-bit base from disk and stream them; the model in memory,
which may hold its base quantised, is only asked for its adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MethodType
from typing import TYPE_CHECKING, Any

from peft import PeftModel

from ..export.files import scratch_folder
from ..export.gguf.types import check_types
from ..export.importance_rows import Rows, spread_rows
from ..export.targets.memory import DEFAULT_SHARE, block_bytes, check_share
from ..recipe import ExportSection
from .notes import say
from .pushing import push_to_hub, push_written
from .saved_weights import (
    known_state,
    save_method_of,
    weights_folder,
    write_adapter,
    write_merged,
    write_whole,
)
from .spellings import refuse_token

if TYPE_CHECKING:
    from ..export.pipeline import ExportResult

MERGED_METHODS = ("merged_16bit", "merged_4bit", "merged_4bit_forced", "merged_fp8", "lora")
GGUF_METHODS = ("merged", "lora")


def bind_saving(model: Any) -> Any:
    """Give this instance the saving methods; its class stays as it is."""
    return bind(
        model,
        save_pretrained_merged,
        save_pretrained_gguf,
        push_to_hub,
        push_to_hub_merged,
        push_to_hub_gguf,
    )


def bind(model: Any, *methods: Callable[..., Any]) -> Any:
    """Functions of a first argument ``self`` as this instance's methods."""
    for method in methods:
        setattr(model, method.__name__, MethodType(method, model))
    return model


def save_pretrained_merged(
    self: Any,
    save_directory: str | Path,
    tokenizer: Any = None,
    save_method: str = "merged_16bit",
    maximum_memory_usage: float = DEFAULT_SHARE,
    token: str | None = None,
) -> Path:
    """Write weights that need neither peft nor whet to load, or the adapter alone.

    Args:
        save_directory: a new folder, or one that an earlier call wrote.
        tokenizer: written beside the weights, chat template included; without it the base's.
        save_method: `merged_16bit` (the adapter added to the 16-bit base), `merged_4bit` (that in
            bitsandbytes' nf4; `merged_4bit_forced` does not say what it costs), `merged_fp8`
            (compressed-tensors, for vLLM), or `lora`.
        maximum_memory_usage: share of the free memory that a merge may take: it then works in smaller blocks.
        token: refused; nothing is sent from here.

    Returns:
        The folder.

    Raises:
        WhetError: `export.save_method`, `export.memory_share`, `python_api.token`, and those of
            :func:`..export.merging.merge`, :func:`..export.targets.four_bit.write_four_bit` and
            :func:`..export.targets.fp8.write_fp8`.
    """
    refuse_token("token", token)
    check_share(maximum_memory_usage)
    method, out = save_method_of(save_method, MERGED_METHODS), Path(save_directory)
    if method == "lora":
        return write_adapter(self, out, tokenizer)
    if method == "merged_16bit":
        return _merge(self, out, tokenizer, maximum_memory_usage)
    if method == "merged_4bit":
        say(
            "merged_4bit rounds the merged weights to nf4, which can cost more than training gained. Keep "
            'save_method="merged_16bit" for whatever is converted or trained further.'
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(out.parent) as scratch:
        whole = _merge(self, scratch / "merged", tokenizer, maximum_memory_usage)
        memory = block_bytes(maximum_memory_usage)
        if method == "merged_fp8":
            from ..export.targets.fp8 import write_fp8

            write_fp8(whole, out, memory=memory)
        else:
            from ..export.targets.four_bit import write_four_bit

            write_four_bit(whole, out, memory=memory)
    return out


def _merge(model: Any, out: Path, tokenizer: Any, share: float) -> Path:
    """The 16-bit model as a folder: adapter and base, or a fully trained one."""
    if not isinstance(model, PeftModel):
        return write_whole(model, out, tokenizer)
    state = known_state(model)
    with TemporaryDirectory(prefix="whet-adapter-") as folder:
        adapter = write_adapter(model, Path(folder), tokenizer)
        return write_merged(state, adapter, out, share)


def save_pretrained_gguf(
    self: Any,
    save_directory: str | Path,
    tokenizer: Any = None,
    quantization_method: str | Sequence[str] = "q8_0",
    first_conversion: str | None = None,
    maximum_memory_usage: float = DEFAULT_SHARE,
    token: str | None = None,
    save_method: str = "merged",
    imatrix: str | Path | None = None,
) -> Any:
    """Merge, convert to GGUF, quantise, and prove each file against the trained model with llama.cpp.

    Args:
        save_directory: receives the GGUF files, a Modelfile and the verdicts.
        tokenizer: with the chat template that was trained; without it the base's.
        quantization_method: one type or several, e.g. `q4_k_m`, `q8_0`, `f16`; any of
            :data:`..export.gguf.types.GGUF_TYPES` or :data:`..export.gguf.types.ALIASES`.
        first_conversion: accepted for older scripts: quantising always starts from 16 bits.
        maximum_memory_usage: share of the free memory that merging and its proof may take.
        token: refused; nothing is sent from here.
        save_method: `merged`, or `lora`: the adapter alone as a GGUF that llama.cpp lays over the base's;
            `quantization_method` then has no meaning.
        imatrix: what the importance matrix comes from: `rows` (those the trainer learnt from), a text or
            data file, or a matrix (`.gguf`). By default types that need one get it from the rows.

    Returns:
        The :class:`..export.pipeline.ExportResult`: paths and verdicts.

    Raises:
        WhetError: `gguf.*` for unknown types and unsupported architectures, `export.*`, `python_api.token`.
    """
    refuse_token("token", token)
    share = check_share(maximum_memory_usage)
    lora = save_method_of(save_method, GGUF_METHODS) == "lora"
    types = [] if lora else gguf_types(quantization_method)
    matrix = str(imatrix) if imatrix is not None else None
    section = ExportSection(gguf=types, imatrix=matrix, adapter_gguf=lora, maximum_memory_usage=share)
    with weights_folder(self, tokenizer) as (trained, base_dir):
        from ..export.pipeline import export_model

        result = export_model(
            trained,
            base_dir,
            Path(save_directory),
            section,
            emit=lambda event: None,
            trained_precision=known_state(self).rounded,
            own_rows=_rows_of(known_state(self).trained_on),
        )
    tell_of(result)
    return result


def push_to_hub_merged(
    self: Any,
    repo_id: str,
    tokenizer: Any = None,
    save_method: str = "merged_16bit",
    private: bool = True,
    commit_message: str | None = None,
    token: str | None = None,
    maximum_memory_usage: float = DEFAULT_SHARE,
) -> str:
    """Write as :func:`save_pretrained_merged` does, then upload; private unless `private=False`.

    Returns:
        The repository's address.

    Raises:
        WhetError: those of :func:`save_pretrained_merged` and :mod:`..export.hub`.
    """
    refuse_token("token", token)
    return push_written(
        lambda folder: self.save_pretrained_merged(folder, tokenizer, save_method, maximum_memory_usage),
        repo_id,
        private,
        commit_message,
    )


def push_to_hub_gguf(
    self: Any,
    repo_id: str,
    tokenizer: Any = None,
    quantization_method: str | Sequence[str] = "q8_0",
    private: bool = True,
    commit_message: str | None = None,
    token: str | None = None,
    maximum_memory_usage: float = DEFAULT_SHARE,
    save_method: str = "merged",
    imatrix: str | Path | None = None,
) -> str:
    """Write as :func:`save_pretrained_gguf` does, then upload the proven files; private unless
    `private=False`.

    Returns:
        The repository's address.

    Raises:
        WhetError: those of :func:`save_pretrained_gguf` and :mod:`..export.hub`.
    """
    refuse_token("token", token)

    def write(folder: Path) -> None:
        save_pretrained_gguf(
            self,
            folder,
            tokenizer,
            quantization_method,
            maximum_memory_usage=maximum_memory_usage,
            save_method=save_method,
            imatrix=imatrix,
        )

    return push_written(write, repo_id, private, commit_message, name="gguf")


def tell_of(result: ExportResult) -> None:
    """Notes of an export, and files without a plain pass."""
    for note in result.notes:
        say(note)
    for verdict in result.verdicts:
        if verdict.status != "pass":
            say(f"{Path(verdict.gguf).name}: {verdict.status}; the verdict says which proof and why.")


def gguf_types(methods: str | Sequence[str]) -> list[str]:
    """GGUF type names, other tools' translated; an unknown one raises with the nearest name."""
    return [kind.name for kind in check_types([methods] if isinstance(methods, str) else methods)]


def _rows_of(trained_on: Any) -> Callable[[], Rows] | None:
    """What gives rows for an importance matrix; a stream, or no training here, has none to give."""
    from datasets import Dataset

    if not isinstance(trained_on, Dataset) or "input_ids" not in trained_on.column_names:
        return None
    return lambda: spread_rows(trained_on.with_format("arrow")[:]["input_ids"])
