"""A checkpoint is whole or does not count, and nothing that goes wrong costs an older one."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from whet.engine.errors import WhetError
from whet.engine.methods.checkpoints import (
    delete_incomplete,
    is_complete,
    last_complete,
    list_complete,
    rotate,
    step_folder,
    write_checkpoint,
)
from whet.engine.runs.manifest import MANIFEST


def fill(folder: Path) -> None:
    (folder / "weights").write_bytes(b"w" * 100)
    (folder / "inner").mkdir()
    (folder / "inner" / "state").write_bytes(b"s" * 11)


def write(root: Path, *steps: int) -> None:
    for step in steps:
        assert write_checkpoint(step_folder(root, step), fill) == 111


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_complete_by_manifest_and_sizes(tmp_path: Path) -> None:
    write(tmp_path, 10)
    folder = tmp_path / "step-000010"
    assert is_complete(folder)
    (folder / "inner" / "state").write_bytes(b"torn")
    assert not is_complete(folder)
    (folder / "inner" / "state").unlink()
    assert not is_complete(folder)


def test_last_complete_passes_over_half_a_checkpoint(tmp_path: Path) -> None:
    assert last_complete(tmp_path / "nothing") is None
    write(tmp_path, 2, 1_000_000, 30)
    (tmp_path / "step-1000000" / MANIFEST).unlink()
    (tmp_path / "step-000040").mkdir()
    assert last_complete(tmp_path) == tmp_path / "step-000030"
    assert names(tmp_path) == ["step-000002", "step-000030", "step-000040", "step-1000000"]
    assert [path.name for path in delete_incomplete(tmp_path)] == ["step-000040", "step-1000000"]
    assert names(tmp_path) == ["step-000002", "step-000030"]


def test_steps_sort_as_numbers(tmp_path: Path) -> None:
    write(tmp_path, 999_999, 1_000_000)
    assert last_complete(tmp_path) == tmp_path / "step-1000000"


def test_rotation_protects_the_best(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 3, 4, 5)
    rotate(tmp_path, keep=2, protect={1})
    assert names(tmp_path) == ["step-000001", "step-000004", "step-000005"]


def test_a_repeated_step_replaces_the_old_folder(tmp_path: Path) -> None:
    write(tmp_path, 7)
    (tmp_path / "step-000007" / "stale").write_text("of another attempt")
    write(tmp_path, 7)
    assert not (tmp_path / "step-000007" / "stale").exists()


@pytest.mark.parametrize("late", [False, True])
def test_disk_full_loses_no_older_checkpoint(tmp_path: Path, late: bool) -> None:
    """/dev/full answers every write with ENOSPC, as a full disk does."""
    write(tmp_path, 1, 2)

    def write_to_full_disk(folder: Path) -> None:
        if late:
            fill(folder)
        with open("/dev/full", "wb") as file:
            file.write(b"x" * 100_000)

    with pytest.raises(WhetError) as caught:
        write_checkpoint(step_folder(tmp_path, 3), write_to_full_disk)
    assert caught.value.code == "run.disk_full"
    assert (
        [path.name for path in list_complete(tmp_path)] == names(tmp_path) == ["step-000001", "step-000002"]
    )


def test_torch_on_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    """torch.save does not say why it failed; whatever it raises, the folder goes and the older ones stay."""
    write(tmp_path, 1)
    with pytest.raises((RuntimeError, OSError, WhetError)):
        write_checkpoint(step_folder(tmp_path, 2), lambda folder: torch.save(torch.zeros(9999), "/dev/full"))
    assert names(tmp_path) == ["step-000001"]


def test_other_errors_pass_as_they_are(tmp_path: Path) -> None:
    def refuse(folder: Path) -> None:
        raise OSError(errno.EIO, "input/output error")

    with pytest.raises(OSError, match="input/output error"):
        write_checkpoint(step_folder(tmp_path, 2), refuse)
    assert names(tmp_path) == []
