"""What conversion needs, tried before hours of training: llama.cpp loads and tokenises as this model does.
Light."""

from __future__ import annotations

import hashlib
import json
import os
from importlib.metadata import version
from pathlib import Path

from ...data.tokenizer_files import TokenizerFiles
from ...errors import WhetError
from ...runs.files import private_dir, write_atomic
from ...settings import settings
from .architectures import supported_architecture
from .trial import choose_pretokenizer
from .vocabulary import read_vocabulary, unsupported_tokenizer


def conversion_refusal(folder: Path, rows: int | None) -> WhetError | None:
    """Why a model cannot become a GGUF on this machine; None when it can.

    The trial takes one to five seconds, by the vocabulary's size, and runs llama.cpp in a process of its own;
    a good answer is kept under whet's home for this tokenizer and this llama.cpp.

    Args:
        folder: of the model; weights are not needed.
        rows: of its embedding; None where llama.cpp is not there to be asked.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    reason = supported_architecture(
        str(config.get("model_type", "")), config, folder
    ) or unsupported_tokenizer(folder)
    if reason is not None:
        return WhetError("gguf.unsupported", reason, "Export the adapter or the merged weights instead.")
    if rows is None:
        return None
    try:
        files = TokenizerFiles.read(folder)
        known = settings().cache / "gguf" / f"{_key(files, rows)}.pre"
        if known.is_file():
            return None
        tokenizer = files.load()
        pre = choose_pretokenizer(files, read_vocabulary(files, rows, tokenizer), tokenizer)
    except WhetError as error:
        return error
    for place in (settings().home, settings().cache, known.parent):
        private_dir(place)
    write_atomic(known, pre.encode())
    return None


def _key(files: TokenizerFiles, rows: int) -> str:
    """Names the tokenizer, its template (it decides the end of a turn) and the llama.cpp that was tried."""
    built = (version("llama-cpp-python"), os.environ.get("LLAMA_CPP_LIB_PATH"))
    parts = [files.digest(), rows, files.chat_template, *built]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
