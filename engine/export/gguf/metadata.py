"""The keys of a GGUF that every family has: type, name, file type."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .types import find_type

if TYPE_CHECKING:
    from gguf import GGUFWriter

# llama.cpp switches a model's handling of added tokens by these parts of its name, and then fails to load it.
TRIGGERS = re.compile(r"(?i)(?<=phi)-?(?=3)|(?<=modern)-(?=bert)")
NAME_LENGTH = 64


def clean_name(name: str) -> str:
    """A model's name without control characters, paths and the parts llama.cpp acts upon."""
    printable = "".join(c for c in name.rstrip("/").rpartition("/")[2] if c.isprintable()).strip()
    return TRIGGERS.sub("_", printable)[:NAME_LENGTH] or "model"


def write_general(writer: GGUFWriter, name: str, dtype: str, mark: str = "") -> None:
    """``mark`` stands behind the name: what llama.cpp is to find there."""
    from gguf import GGML_QUANT_VERSION

    writer.add_type("model")
    writer.add_name(f"{clean_name(name)} {mark}".rstrip())
    writer.add_file_type(find_type(dtype).file_type)
    writer.add_quantization_version(GGML_QUANT_VERSION)
