"""Rewrite a GGUF with one fault planted, for tests of the smoke test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter

DROP = object()
"""Value of a key that is to be left out."""

EditTensor = Callable[[str, np.ndarray], np.ndarray | None]
"""(name, data) -> data of the same shape (bytes of quantised tensors), or None to leave the tensor out."""


def rewrite(
    source: Path,
    out: Path,
    changes: Mapping[str, Any] | None = None,
    tensors: EditTensor | None = None,
    names: Mapping[str, str] | None = None,
) -> Path:
    """Copy ``source`` to ``out`` with other values of some keys, other tensor data, or other tensor names.

    Args:
        changes: key -> new value, or :data:`DROP`; a function is given the old value. New keys must be
            boolean, unsigned, float, text, or a list of one of these.
        tensors: see :data:`EditTensor`.
        names: tensor -> its name in the copy.
    """
    reader, changes = GGUFReader(source), dict(changes or {})
    writer = GGUFWriter(out, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = changes.pop(name, None)
        if value is DROP:
            continue
        old = field.contents()
        value = old if value is None else value(old) if callable(value) else value
        sub = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(name, value, field.types[0], sub_type=sub)
    for name, value in changes.items():
        if value is DROP:
            continue
        if isinstance(value, list):
            writer.add_key_value(name, value, GGUFValueType.ARRAY, sub_type=_type_of(value[0]))
        else:
            writer.add_key_value(name, value, _type_of(value))
    for tensor in reader.tensors:
        data = tensor.data if tensors is None else tensors(tensor.name, np.array(tensor.data))
        if data is not None:
            renamed = (names or {}).get(tensor.name, tensor.name)
            writer.add_tensor(renamed, data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def _type_of(value: Any) -> GGUFValueType:
    kinds = {bool: GGUFValueType.BOOL, float: GGUFValueType.FLOAT32, str: GGUFValueType.STRING}
    return kinds.get(type(value), GGUFValueType.UINT32)


def on(part: str, edit: Callable[[np.ndarray], np.ndarray | None]) -> EditTensor:
    """``edit`` on each tensor whose name contains ``part``; the others stay."""
    return lambda name, data: edit(data) if part in name else data
