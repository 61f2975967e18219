"""What `whet template` knows: rows, families, findings, and the prompts of a GGUF and a Modelfile by ids."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults.data_set_ups import CHATML_TEMPLATE, chat, chatml, chats, llama, write
from support.command_line import whet
from support.tiny_models import build_tiny_model

from whet.engine.api import TemplateView, template_view
from whet.engine.errors import WhetError
from whet.engine.export.gguf.convert import convert
from whet.engine.export.modelfile import write_modelfile
from whet.engine.export.smoke import type_of


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model, rows, GGUF and Modelfile that belong together."""
    folder = tmp_path_factory.mktemp("exported")
    model = build_tiny_model(folder / "model", "llama")
    convert(model, folder / "m.gguf", "f16")
    write_modelfile(folder / "Modelfile", "m.gguf", model)
    write(folder / "rows.jsonl", chats())
    return folder


def viewed(folder: Path, model: Path, rows: int = 2, **more: Path | str | None) -> TemplateView:
    template = more.pop("template", None)
    data = {"train": str(folder / "rows.jsonl"), "template": template, "bad_rows": "skip"}
    return template_view({"model": {"name": str(model)}, "data": data}, rows, **more)  # type: ignore[arg-type]


def test_rows_as_they_are_trained_on(exported: Path) -> None:
    view = viewed(exported, exported / "model", rows=3)
    assert [row.line for row in view.rows] == [1, 2, 3]
    first = view.rows[0].tokens
    assert "".join(token.text for token in first if token.supervised) == "The sum is 1.<|turn_end|>"
    assert [token.text for token in first if token.special][:2] == ["<|begin|>", "<|user|>"]
    assert view.template == "model" and view.own_facts is None and view.data_family is None
    assert [finding for finding in view.findings if finding.severity != "note"] == []


def test_what_was_exported_asks_alike(exported: Path) -> None:
    """By llama.cpp's own ids for the GGUF."""
    view = viewed(exported, exported / "model", gguf=exported / "m.gguf", modelfile=exported / "Modelfile")
    assert [(one.same, one.conversations, one.first) for one in view.comparisons] == [(16, 16, None)] * 2
    assert [one.notes for one in view.comparisons] == [[], []]


def test_another_template_in_training_differs_from_all(exported: Path) -> None:
    view = viewed(
        exported,
        exported / "model",
        template="vicuna",
        gguf=exported / "m.gguf",
        modelfile=exported / "Modelfile",
    )
    assert len(view.comparisons) == 3 and all(one.same == 0 for one in view.comparisons)
    assert view.facts is not None and view.facts.nearest == "vicuna" and view.own_facts is not None
    own = view.comparisons[0].first
    assert own is not None and own.at == 1 and own.other[0] == "<|user|>"


def test_one_lost_newline_in_a_modelfile_is_seen(exported: Path, tmp_path: Path) -> None:
    text = (exported / "Modelfile").read_text()
    bad = tmp_path / "Modelfile"
    bad.write_text(text.replace("<|turn_end|>\n<|assistant|>", "<|turn_end|><|assistant|>"))
    (comparison,) = viewed(exported, exported / "model", modelfile=bad).comparisons
    assert comparison.same == 0 and comparison.first is not None
    assert (comparison.first.trained[0], comparison.first.other[0]) == ("\n", "<|assistant|>")


def test_missing_stops_and_unknown_actions_are_said(exported: Path, tmp_path: Path) -> None:
    bad = tmp_path / "Modelfile"
    bad.write_text('FROM x\nTEMPLATE """{{- template "chat" . }}"""\nPARAMETER stop "</s>"\n')
    (comparison,) = viewed(exported, exported / "model", modelfile=bad).comparisons
    assert comparison.same == comparison.conversations == 0
    assert "not at <|turn_end|>" in comparison.notes[0] and "cannot be read" in comparison.notes[1]


def test_template_and_rows_of_other_families_are_named(tmp_path: Path) -> None:
    model = llama(tmp_path, "{{ bos_token }}" + CHATML_TEMPLATE)
    write(tmp_path / "rows.jsonl", chats())
    view = viewed(tmp_path, model)
    assert view.facts is not None and view.facts.family == "chatml"
    assert [finding.id for finding in view.findings if finding.severity == "warning"] == ["D13"]


def test_rows_rendered_for_another_family_are_named(tmp_path: Path) -> None:
    text = "<start_of_turn>user\nWhat is {}?<end_of_turn>\n<start_of_turn>model\nThis.<end_of_turn>"
    write(tmp_path / "rows.jsonl", [{"text": text.format(n)} for n in range(120)])
    view = viewed(tmp_path, llama(tmp_path))
    assert view.data_family == "gemma"
    assert [finding.id for finding in view.findings if finding.severity == "warning"] == ["D11"]


def test_a_model_without_template_is_shown_with_the_one_that_fits(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", chats())
    view = viewed(tmp_path, chatml(tmp_path, None))
    assert view.template == "chatml" and view.rows[0].tokens
    assert [finding.id for finding in view.findings if finding.severity == "error"] == ["D09"]


def test_no_gguf_there(exported: Path) -> None:
    with pytest.raises(WhetError) as error:
        viewed(exported, exported / "model", gguf=exported / "none.gguf")
    assert error.value.code == "gguf.missing"


@pytest.mark.parametrize("kept", [3, 100, 5000, -1000])
def test_a_gguf_that_was_cut_off(exported: Path, tmp_path: Path, kept: int) -> None:
    part = tmp_path / "part.gguf"
    part.write_bytes((exported / "m.gguf").read_bytes()[:kept])
    with pytest.raises(WhetError) as error:
        viewed(exported, exported / "model", gguf=part)
    assert error.value.code == "gguf.unreadable"
    assert type_of(part) == ""


def test_the_command_marks_without_colour_and_exits_by_findings(exported: Path, tmp_path: Path) -> None:
    good = whet("template", str(exported / "model"), str(exported / "rows.jsonl"), "--rows", "1")
    assert good.code == 0 and "No finding" in good.out
    assert "«The" in good.out and "⟦<|turn_end|>⟧»" in good.out and "\x1b" not in good.out
    write(tmp_path / "rows.jsonl", [*chats(), chat("only a question")])
    model = llama(tmp_path, "{{ bos_token }}" + CHATML_TEMPLATE)
    bad = whet("template", str(model), str(tmp_path / "rows.jsonl"))
    assert bad.code == 0 and "warning D13" in bad.out and "spelt out" in bad.out
    listed = whet("template", str(model), str(tmp_path / "rows.jsonl"), "--json").json
    named = whet("template", str(model), str(tmp_path / "rows.jsonl"), "--template", "gemma")
    assert named.code == 1 and "error D13" in named.out
    assert listed["facts"]["nearest"] == "chatml" and listed["rows"][0]["line"] == 1
