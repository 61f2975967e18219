"""What a whole folder consists of, written last into it: names, sizes and CRC-32 of its files."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .files import checksum, write_atomic

MANIFEST = "MANIFEST.json"
"""Of a checkpoint, which does not count without it."""
SUMS = ".manifest.json"
"""Hidden: of a folder that counts without it."""


class Manifest(BaseModel):
    """Names are relative to the folder."""

    model_config = ConfigDict(frozen=True)

    version: int = 2
    files: dict[str, int] = Field(description="Bytes of each file.")
    crc32: dict[str, int] = Field(
        default_factory=dict, description="Of each file's content; version 1 had none."
    )


def write_manifest(folder: Path, name: str, files: dict[str, int]) -> None:
    """Write ``folder/name`` for ``files`` (name -> bytes), by rename. Raises OSError."""
    manifest = Manifest(files=files, crc32={file: checksum(folder / file) for file in files})
    write_atomic(folder / name, manifest.model_dump_json(indent=1).encode())


def changed_files(folder: Path, *, content: bool, manifest: str = MANIFEST) -> list[str]:
    """Names in a folder's manifest whose file is gone or has another size; the manifest's own where it cannot
    be read. With ``content`` also where bytes differ, for which all files are read, at disk speed."""
    try:
        told = Manifest.model_validate_json((folder / manifest).read_bytes())
    except ValidationError:
        return [manifest]
    changed = [name for name, size in told.files.items() if _size(folder / name) != size]
    if content:
        others = [(name, crc) for name, crc in told.crc32.items() if name not in changed]
        changed += [name for name, crc in others if checksum(folder / name) != crc]
    return changed


def _size(path: Path) -> int | None:
    """In bytes; None where there is no file."""
    return path.stat().st_size if path.is_file() else None
