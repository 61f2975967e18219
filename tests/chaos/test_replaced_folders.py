"""A finished folder is there at every moment while a new one takes its place."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from whet.engine.export import files
from whet.engine.export.files import PARTIAL, exchange, new_folder, sweep


def write(folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / "weights").write_text(text)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_two_folders_change_places(tmp_path: Path) -> None:
    write(tmp_path / "a", "one")
    write(tmp_path / "b", "two")
    if not exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system swaps no names")
    assert (tmp_path / "a" / "weights").read_text() == "two"
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "a", tmp_path / "c")


def test_other_systems_rename_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    write(tmp_path / "merged", "old")
    with new_folder(tmp_path / "merged") as partial:
        (partial / "weights").write_text("new")
    assert names(tmp_path) == {"merged"} and (tmp_path / "merged" / "weights").read_text() == "new"


@pytest.mark.parametrize("swaps", [True, False])
def test_a_new_folder_replaces_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swaps: bool
) -> None:
    if not swaps:
        monkeypatch.setattr(files, "exchange", lambda one, other: False)
    write(tmp_path / "merged", "old")
    with new_folder(tmp_path / "merged") as partial:
        (partial / "weights").write_text("new")
        assert (tmp_path / "merged" / "weights").read_text() == "old"
    assert names(tmp_path) == {"merged"} and (tmp_path / "merged" / "weights").read_text() == "new"


def test_a_folder_that_a_dead_process_had_moved_away_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the two renames that a disk without swapping needs."""
    write(tmp_path / "merged", "old")
    monkeypatch.setattr(files, "exchange", lambda one, other: False)
    child = os.fork()
    if child == 0:
        rename = os.replace

        def replace(source: Path, target: Path) -> None:
            rename(source, target)
            os.kill(os.getpid(), signal.SIGKILL)

        monkeypatch.setattr(os, "replace", replace)
        with new_folder(tmp_path / "merged") as partial:
            (partial / "weights").write_text("new")
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert names(tmp_path) == {f".merged.{child}{PARTIAL}", f".merged.replaced.{child}{PARTIAL}"}
    sweep(tmp_path)
    assert names(tmp_path) == {"merged"} and (tmp_path / "merged" / "weights").read_text() == "old"


def test_where_the_new_one_is_there_the_old_one_goes(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    write(tmp_path / "merged", "new")
    write(tmp_path / f".merged.replaced.{dead.pid}{PARTIAL}", "old")
    sweep(tmp_path)
    assert names(tmp_path) == {"merged"} and (tmp_path / "merged" / "weights").read_text() == "new"
