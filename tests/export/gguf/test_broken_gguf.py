"""GGUF files and Modelfiles that are broken in ways that fuzzing got a traceback out of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from whet.engine.errors import WhetError
from whet.engine.export.gguf.importance import Importance
from whet.engine.export.gguf.quantize import tensor_types
from whet.engine.export.go_template import GoTemplateError, render
from whet.engine.export.modelfile_check import read_modelfile
from whet.engine.export.smoke import type_of
from whet.engine.export.smoke_metadata import read_metadata


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    path = tmp_path / "whole.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_file_type(7)
    writer.add_tensor("token_embd.weight", np.ones((3, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _key(name: bytes) -> bytes:
    return len(name).to_bytes(8, "little") + name


def _list(kind: int, count: int) -> bytes:
    return kind.to_bytes(4, "little") + count.to_bytes(8, "little")


def _broken(content: bytes) -> dict[str, bytes]:
    shape = content.index(b"token_embd.weight") + len(b"token_embd.weight")
    return {
        "cut in the header": content[:40],
        "cut in the tensors": content[:-100],
        "another version": content[:4] + b"\xff\xff\xff\x7f" + content[8:],
        "more keys than there are": content[:16] + (2**63 - 1).to_bytes(8, "little") + content[24:],
        "more tensors than there are": content[:8] + (2**62).to_bytes(8, "little") + content[16:],
        "a tensor of another shape": content[: shape + 4]
        + (67).to_bytes(8, "little")
        + content[shape + 12 :],
        "a name that is no text": content.replace(b"general.architecture", b"\xff" * 20),
        "a list without end": content[:24]
        + _key(b"a")
        + (9).to_bytes(4, "little")
        + _list(4, 2**60)
        + content[24:],
        "a list of lists": content[:24] + _key(b"a") + (9).to_bytes(4, "little") + _list(9, 1) + content[24:],
        "nothing": b"",
    }


def test_broken_files_are_refused_and_whole_ones_read(whole: Path, tmp_path: Path) -> None:
    assert tensor_types(whole) == {"f32": 1}
    assert type_of(whole) == "q8_0"
    path = tmp_path / "broken.gguf"
    for what, content in _broken(whole.read_bytes()).items():
        path.write_bytes(content)
        for read in (tensor_types, read_metadata):
            with pytest.raises(WhetError) as caught:
                read(path)
            assert caught.value.code == "gguf.unreadable", what
        with pytest.raises(WhetError):
            Importance.load(path)
        assert type_of(path) == "", what


def test_modelfile_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "Modelfile"
    path.write_bytes(b"FROM \xff")
    with pytest.raises(WhetError, match="cannot be read as text"):
        read_modelfile(path)


@pytest.mark.parametrize(
    "text", ['{{ if eq "a }}', "{{ if lt 1 .Role }}x{{ end }}", "{{ .Role.Name }}", "{{ slice }}"]
)
def test_go_template_that_go_would_refuse(text: str) -> None:
    with pytest.raises(GoTemplateError):
        render(text, {"Role": "user"})
