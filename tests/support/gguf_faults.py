"""Rewrite a GGUF with one fault planted, for tests of the smoke test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter

DROP = object()
"""Value of a key that is to be left out."""


def rewrite(
    source: Path,
    out: Path,
    changes: Mapping[str, Any] | None = None,
    tensors: Callable[[str, np.ndarray], np.ndarray] | None = None,
) -> Path:
    """Copy ``source`` to ``out`` with other values of some keys, or other tensor data.

    Args:
        changes: key -> new value, or :data:`DROP`. New keys must be boolean or unsigned.
        tensors: (name, data) -> data of the same shape.
    """
    reader, changes = GGUFReader(source), dict(changes or {})
    writer = GGUFWriter(out, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = changes.pop(name, None)
        if value is DROP:
            continue
        value = field.contents() if value is None else value
        sub = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(name, value, field.types[0], sub_type=sub)
    for name, value in changes.items():
        kind = GGUFValueType.BOOL if isinstance(value, bool) else GGUFValueType.UINT32
        writer.add_key_value(name, value, kind)
    for tensor in reader.tensors:
        data = tensor.data if tensors is None else tensors(tensor.name, np.array(tensor.data))
        writer.add_tensor(tensor.name, data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out
