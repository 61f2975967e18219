"""Files that changed on the disk are noticed before they are used, and what is whole is used instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from whet.engine.errors import WhetError
from whet.engine.export.hub import unproven
from whet.engine.export.verdict import Proof, Verdict, fingerprint, load_verdict, save_verdict
from whet.engine.methods.checkpoints import (
    delete_incomplete,
    is_complete,
    last_complete,
    step_folder,
    write_checkpoint,
)
from whet.engine.methods.damage import refuse_changed, set_aside_damaged
from whet.engine.runs.events import EventLog, PhaseEvent, read_events
from whet.engine.runs.manifest import MANIFEST, SUMS, changed_files


def write(root: Path, *steps: int) -> None:
    for step in steps:
        write_checkpoint(step_folder(root, step), fill)


def fill(folder: Path) -> None:
    (folder / "optimizer.pt").write_bytes(bytes(range(256)) * 5000)
    (folder / "inner").mkdir()
    (folder / "inner" / "state").write_bytes(b"s" * 11)


def flip(path: Path, at: int) -> None:
    """One bit of a file, whose size stays."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(("name", "at"), [("optimizer.pt", 1_000_003), ("inner/state", 10)])
def test_a_flipped_bit_in_a_checkpoint(tmp_path: Path, name: str, at: int) -> None:
    write(tmp_path, 2, 4, 6)
    flip(step_folder(tmp_path, 6) / name, at)
    assert is_complete(step_folder(tmp_path, 6)), "by its sizes"
    assert changed_files(step_folder(tmp_path, 6), content=True) == [name]
    (finding,) = set_aside_damaged(tmp_path)
    assert finding.id == "T05" and name in finding.title and "step-000006" in finding.title
    assert last_complete(tmp_path) == step_folder(tmp_path, 4)
    assert (tmp_path / "damaged-step-000006" / name).is_file(), "nothing is deleted"
    assert delete_incomplete(tmp_path) == [] and set_aside_damaged(tmp_path) == []


def test_only_the_newest_are_read(tmp_path: Path) -> None:
    """An older one that is damaged is passed over when its turn comes."""
    write(tmp_path, 2, 4)
    flip(step_folder(tmp_path, 2) / "optimizer.pt", 0)
    assert set_aside_damaged(tmp_path) == []
    write(tmp_path, 6)
    for step in (4, 6):
        flip(step_folder(tmp_path, step) / "optimizer.pt", 0)
    assert len(set_aside_damaged(tmp_path)) == 3 and last_complete(tmp_path) is None


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[1, 2]", b'{"files": 3}', b"\xff\xfe", b'{"files": {"a": "x"}}']
)
def test_a_manifest_that_cannot_be_read(tmp_path: Path, text: bytes) -> None:
    write(tmp_path, 2, 4)
    (step_folder(tmp_path, 4) / MANIFEST).write_bytes(text)
    assert not is_complete(step_folder(tmp_path, 4))
    assert last_complete(tmp_path) == step_folder(tmp_path, 2)
    (finding,) = set_aside_damaged(tmp_path)
    assert MANIFEST in finding.title and (tmp_path / "damaged-step-000004" / "optimizer.pt").is_file()


def test_a_file_that_was_cut_or_lost(tmp_path: Path) -> None:
    """Also of an older one; what was never finished is another matter."""
    write(tmp_path, 2, 4, 6, 8)
    (step_folder(tmp_path, 2) / "inner" / "state").unlink()
    with open(step_folder(tmp_path, 6) / "optimizer.pt", "r+b") as file:
        file.truncate(4000)
    (step_folder(tmp_path, 8) / MANIFEST).unlink()
    titles = [finding.title for finding in set_aside_damaged(tmp_path)]
    assert ["step-000006" in titles[0], "step-000002" in titles[1], len(titles)] == [True, True, 2]
    assert delete_incomplete(tmp_path) == [step_folder(tmp_path, 8)]
    assert last_complete(tmp_path) == step_folder(tmp_path, 4)


def test_a_checkpoint_of_before_there_were_sums(tmp_path: Path) -> None:
    write(tmp_path, 2)
    folder = step_folder(tmp_path, 2)
    (folder / MANIFEST).write_text('{"version": 1, "files": {"optimizer.pt": 1280000, "inner/state": 11}}')
    assert is_complete(folder) and changed_files(folder, content=True) == [] == set_aside_damaged(tmp_path)


def prove(path: Path) -> None:
    proof = Proof(name="logits", status="pass", summary="As trained.")
    save_verdict(Verdict.of([proof], path, fingerprint=fingerprint(path)), path)


def test_a_flipped_byte_in_a_large_gguf_after_its_proof(tmp_path: Path) -> None:
    """Between the pieces that a list of files looks at; before the file leaves, all of it is read."""
    gguf = tmp_path / "large.gguf"
    with open(gguf, "wb") as file:
        file.truncate(64 << 20)
    prove(gguf)
    assert unproven(tmp_path) == []
    with open(gguf, "r+b") as file:
        file.seek((16 << 10) + 5000)
        file.write(b"\x01")
    assert load_verdict(gguf) is not None, "nothing was seen of it so far"
    assert load_verdict(gguf, whole=True) is None
    assert unproven(tmp_path) == [("large.gguf", "no verdict of exactly this file")]


def test_a_flipped_byte_in_merged_weights_after_their_proof(tmp_path: Path) -> None:
    merged = tmp_path / "merged"
    merged.mkdir()
    (merged / "config.json").write_text("{}")
    (merged / "model.safetensors").write_bytes(bytes(1000))
    prove(merged)
    assert unproven(tmp_path) == []
    flip(merged / "model.safetensors", 500)
    assert unproven(tmp_path) == [("merged", "changed since it was proven")]


@pytest.mark.parametrize("page", [-1, 1])
def test_a_damaged_event_hides_none_behind_it(tmp_path: Path, page: int) -> None:
    log, file = EventLog(tmp_path / "events.jsonl", 1), tmp_path / "events.jsonl"
    for detail in ("one", "two", "three"):
        log.append(PhaseEvent(phase="load", detail=detail))
    flip(file, file.read_bytes().index(b"{", 10))
    with open(file, "ab") as torn:
        torn.write(b'{"type": "pha')
    read, offset = list[str](), 0
    while True:
        events, after = read_events(file, offset, page)
        read += [event.detail for event in events if isinstance(event, PhaseEvent)]
        if after == offset:
            break
        offset = after
    assert read == ["one", "three"], "the half line at the end waits for its writer"
    assert EventLog(file, 2).append(PhaseEvent(phase="load")).seq == 4


@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_trained_weights_that_changed_are_neither_exported_nor_pushed(tmp_path: Path, how: str) -> None:
    """An export of them would be proven against the same wrong weights."""
    adapter, weights = tmp_path / "adapter", tmp_path / "adapter" / "adapter_model.safetensors"

    def trained(folder: Path) -> None:
        (folder / weights.name).write_bytes(bytes(5000))
        (folder / "adapter_config.json").write_text("{}")

    write_checkpoint(adapter, trained)
    (adapter / MANIFEST).rename(adapter / SUMS)
    refuse_changed(adapter, tmp_path / "checkpoints")
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    assert unproven(adapter) == [], "settings beside the weights may be changed"
    if how == "flipped":
        flip(weights, 4321)
    elif how == "cut":
        weights.write_bytes(bytes(100))
    else:
        weights.unlink()
    with pytest.raises(WhetError) as caught:
        refuse_changed(adapter, tmp_path / "checkpoints")
    assert caught.value.code == "export.damaged" and weights.name in caught.value.message
    assert unproven(adapter) == [(weights.name, "changed since training wrote it")]
