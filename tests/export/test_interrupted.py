"""However an export ends, no file is half-written, and the next one removes what a kill left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections import namedtuple
from collections.abc import Callable, Generator
from pathlib import Path
from typing import cast

import pytest
from support.tiny_models import build_tiny_model

from whet.engine.errors import WhetError
from whet.engine.export import files
from whet.engine.export.client import export_events
from whet.engine.export.files import PARTIAL, atomic_file, new_folder, scratch_folder, sweep
from whet.engine.export.pipeline import export_model
from whet.engine.export.verdict import verdict_path
from whet.engine.processes import send, start
from whet.engine.recipe import ExportSection
from whet.engine.runs.context import Stopped
from whet.engine.runs.events import Event, ExportEvent, PhaseEvent

TYPES = ["q8_0", "q4_k_m"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model") / "tiny", wide=True, dtype="bfloat16")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def request(model: Path, out: Path) -> dict[str, object]:
    section = ExportSection(gguf=TYPES, smoke_test=False).model_dump()
    return {"action": "export", "trained": str(model), "out": str(out), "section": section, "name": "tiny"}


def interrupted(model: Path, out: Path, number: int) -> int:
    """Exit code of an export that got this signal while it quantised to its second type."""
    process = start("whet.engine.export.export_process", stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    send(process, request(model, out), last=True)
    for line in process.stdout:
        event = json.loads(line)
        if event["type"] == "phase" and event["detail"] == "GGUF q4_k_m":
            process.send_signal(number)
            process.send_signal(number)  # as a terminal's Ctrl-C and the program that waits both do
            break
    code = process.wait(60)
    process.stdout.close()
    return code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_leaves_whole_files_only(tmp_path: Path, model: Path, number: int) -> None:
    out = tmp_path / "out"
    assert interrupted(model, out, number) != 0
    left = names(out)
    whole = {name for name in left if not name.startswith(".")}
    assert whole == {"tiny-q8_0.gguf"}
    if number == signal.SIGKILL:
        assert any(name.endswith(PARTIAL) for name in left)  # nobody was there to remove it
    else:
        assert left == whole
    export_model(model, None, out, ExportSection(gguf=["f16"], smoke_test=False), lambda _: None, name="tiny")
    assert names(out) == {"tiny-q8_0.gguf", "tiny-f16.gguf", "Modelfile", "README.md"}


def test_a_reader_that_goes_away_ends_it(tmp_path: Path, model: Path) -> None:
    events = cast(Generator[Event], export_events(request(model, tmp_path / "out")))
    for event in events:
        if isinstance(event, PhaseEvent) and event.detail == "GGUF q8_0":
            break
    events.close()
    assert names(tmp_path / "out") == set()


def stops_at(detail: str) -> Callable[[Event], None]:
    def emit(event: Event) -> None:
        if isinstance(event, PhaseEvent) and event.detail == detail and (event.done or 0) > 3:
            raise Stopped

    return emit


def test_a_stop_between_two_tensors(tmp_path: Path, model: Path) -> None:
    with pytest.raises(Stopped):
        export_model(model, None, tmp_path, ExportSection(gguf=TYPES), stops_at("GGUF q4_k_m"), name="tiny")
    assert names(tmp_path) == {"tiny-q8_0.gguf"}
    with pytest.raises(Stopped):
        export_model(model, None, tmp_path, ExportSection(gguf=["f16"]), stops_at("GGUF f16"), name="tiny")
    assert names(tmp_path) == {"tiny-q8_0.gguf"}


def test_an_earlier_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_text("earlier")
    with pytest.raises(OSError), atomic_file(tmp_path / "a.gguf", 10) as partial:
        partial.write_text("half")
        raise OSError("torn")
    assert (tmp_path / "a.gguf").read_text() == "earlier" and names(tmp_path) == {"a.gguf"}


@pytest.mark.parametrize("torn", ["first", "second"])
def test_an_earlier_folder_is_never_half_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: str
) -> None:
    """Neither when moving the old one away fails, nor when moving the new one there does."""
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "weights").write_text("earlier")
    monkeypatch.setattr(files, "exchange", lambda one, other: False)  # a disk that cannot
    left = iter([torn == "first", torn == "second", False])
    rename = os.replace

    def replace(source: Path, target: Path) -> None:
        if next(left):
            raise OSError("torn")
        rename(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="torn"), new_folder(tmp_path / "merged") as partial:
        (partial / "weights").write_text("later")
    assert names(tmp_path) == {"merged"}
    assert (tmp_path / "merged" / "weights").read_text() == "earlier"


def test_a_folder_takes_another_ones_place(tmp_path: Path) -> None:
    for text in ("earlier", "later"):
        with new_folder(tmp_path / "merged") as partial:
            (partial / "1_Pooling").mkdir()
            (partial / "1_Pooling" / "config.json").write_text(text)
    assert names(tmp_path) == {"merged"}
    assert (tmp_path / "merged" / "1_Pooling" / "config.json").read_text() == "later"


def test_only_dead_ones_are_swept(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    (tmp_path / f".a.gguf.{dead.pid}{PARTIAL}").write_text("half")
    (tmp_path / f".merged.{dead.pid}{PARTIAL}").mkdir()
    (tmp_path / f".scratch.{dead.pid}{PARTIAL}").mkdir()
    (tmp_path / f".scratch.{dead.pid}{PARTIAL}" / "f16.gguf").write_text("half")
    (tmp_path / ".of-someone-else.partial").write_text("")
    with scratch_folder(tmp_path) as scratch, new_folder(tmp_path / "b") as folder:
        sweep(tmp_path)
        assert names(tmp_path) == {scratch.name, folder.name, ".of-someone-else.partial"}
    assert names(tmp_path) == {"b", ".of-someone-else.partial"}


Usage = namedtuple("Usage", "total used free")


def test_room_for_all_types_is_asked_before_the_first_byte(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file alone would fit, all of them do not."""
    weights = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    events: list[Event] = []
    section = ExportSection(gguf=["f16", "bf16", "q8_0"], smoke_test=False)

    def disk(free: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(free, 0, free))

    disk(int(2.2 * weights))
    with pytest.raises(WhetError) as caught:
        export_model(model, None, tmp_path / "out", section, events.append, name="tiny")
    assert caught.value.code == "export.disk_full" and names(tmp_path / "out") == set()
    assert not any(isinstance(event, PhaseEvent | ExportEvent) for event in events)
    disk(200 << 20)
    result = export_model(model, None, tmp_path / "out", section, lambda _: None, name="tiny")
    assert {"f16", "bf16", "q8_0"} <= set(result.paths)


def test_types_share_one_16_bit_file(tmp_path: Path, model: Path) -> None:
    """It is converted once and gone at the end; each type says how far it is."""
    events: list[Event] = []
    export_model(model, None, tmp_path, ExportSection(gguf=TYPES, smoke_test=False), events.append, name="t")
    told = [event.detail for event in events if isinstance(event, PhaseEvent)]
    assert list(dict.fromkeys(told)) == ["GGUF f16", "GGUF q8_0", "GGUF q4_k_m"]
    last = [event for event in events if isinstance(event, PhaseEvent) and event.detail == "GGUF q4_k_m"][-1]
    assert last.done == last.total
    assert names(tmp_path) == {"t-q8_0.gguf", "t-q4_k_m.gguf", "Modelfile", "README.md"}


def test_weights_beyond_f16_go_through_bf16(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    large = build_tiny_model(tmp_path / "large", dtype="bfloat16")
    weights = load_file(large / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = torch.tensor(1e5)
    save_file(weights, large / "model.safetensors", metadata={"format": "pt"})
    section = ExportSection(gguf=["q8_0"], smoke_test=False)
    result = export_model(large, None, tmp_path / "out", section, lambda _: None, name="t")
    assert result.paths["q8_0"].is_file()
    with pytest.raises(WhetError) as caught:
        export_model(large, None, tmp_path / "f16", ExportSection(gguf=["f16"]), lambda _: None, name="t")
    assert caught.value.code == "gguf.f16_overflow"


def test_rows_for_the_matrix(tmp_path: Path, model: Path) -> None:
    """Named in a file, or refused before anything is written; the proof then knows the type."""
    section = ExportSection(gguf=["iq2_xxs"], smoke_test=False)
    with pytest.raises(WhetError, match="no rows") as caught:
        export_model(model, None, tmp_path / "none", section, lambda _: None, name="t")
    assert caught.value.code == "gguf.needs_importance_matrix" and names(tmp_path / "none") == set()
    text = tmp_path / "rows.txt"
    text.write_text("The moon pulls the sea. " * 200)
    events: list[Event] = []
    given = section.model_copy(update={"imatrix": str(text)})
    result = export_model(model, None, tmp_path / "out", given, events.append, name="t")
    assert "importance matrix" in [event.detail for event in events if isinstance(event, PhaseEvent)]
    assert names(tmp_path / "out") == {"t-iq2_xxs.gguf", "Modelfile", "README.md"}
    assert not verdict_path(result.paths["iq2_xxs"]).exists()
    missing = section.model_copy(update={"imatrix": str(tmp_path / "none.jsonl")})
    with pytest.raises(WhetError) as caught:
        export_model(model, None, tmp_path / "gone", missing, lambda _: None, name="t")
    assert caught.value.code == "data.not_found" and os.listdir(tmp_path / "gone") == []


def test_own_rows_serve_where_none_are_named(tmp_path: Path, model: Path) -> None:
    rows = [[5, 9, 30, 41, 7] * 20, [8, 8, 12] * 30]
    for name, section in (
        ("needed", ExportSection(gguf=["iq3_xxs", "q4_k_m"], smoke_test=False)),
        ("wished", ExportSection(gguf=["q4_k_m"], imatrix="rows", smoke_test=False)),
    ):
        export_model(model, None, tmp_path / name, section, lambda _: None, name="t", own_rows=lambda: rows)
    plain = ExportSection(gguf=["q4_k_m"], smoke_test=False)
    export_model(model, None, tmp_path / "plain", plain, lambda _: None, name="t", own_rows=lambda: rows)
    beside, wished, alone = (
        (tmp_path / name / "t-q4_k_m.gguf").read_bytes() for name in ("needed", "wished", "plain")
    )
    assert beside == alone != wished
