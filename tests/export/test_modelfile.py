"""The Go template must give the prompts that the Jinja template gives, or not be written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.tiny_models import BOS, EOS, TURN_END, write_tokenizer

from whet.engine.data.chat_templates import TEMPLATES, find
from whet.engine.data.chat_templates.renderer import Renderer, strip_generation_tags
from whet.engine.export.go_template import GoTemplateError, render
from whet.engine.export.modelfile import NotExpressible, derive, render_go, write_modelfile

TALK = [
    {"role": "user", "content": "Hello {there}"},
    {"role": "assistant", "content": "Hi.\nHow are you?"},
    {"role": "user", "content": "Fine"},
]
# Ollama would keep thoughts that this template drops from earlier turns.
NOT_EXPRESSIBLE = {"qwen-3"}


@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - NOT_EXPRESSIBLE))
def test_every_template_of_ours_gives_the_same_prompts(name: str) -> None:
    renderer = Renderer(strip_generation_tags(find(name).source), "<s>", "</s>")
    chat = derive(renderer)
    for messages in (TALK[:1], TALK, [{"role": "system", "content": "Be kind."}, *TALK]):
        expected = renderer.render(messages, add_generation_prompt=True).removeprefix("<s>")
        assert render_go(chat, messages) == expected
        assert "Fine" in expected or messages == TALK[:1]


@pytest.mark.parametrize("name", sorted(NOT_EXPRESSIBLE))
def test_templates_that_rewrite_history_are_refused(name: str) -> None:
    with pytest.raises(NotExpressible, match="thoughts"):
        derive(Renderer(strip_generation_tags(find(name).source), "<s>", "</s>"))


def test_tools_left_out_are_said(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    plain = config["chat_template"]
    (tmp_path / "chat_template.jinja").write_text("{% if tools %}{{ tools | tojson }}{% endif %}" + plain)
    result = write_modelfile(tmp_path / "Modelfile", "m.gguf", tmp_path)
    assert result.path is not None and "tool calls" in result.notes[0]


def test_what_changes_with_its_place_or_the_day_is_refused() -> None:
    numbered = "{% for m in messages %}{{ loop.index }}:{{ m.content }}\n{% endfor %}"
    with pytest.raises(NotExpressible):
        derive(Renderer(numbered))
    with pytest.raises(NotExpressible, match="date"):
        derive(Renderer("{{ strftime_now('%d') }}{{ messages[-1].content }}"))
    with pytest.raises(NotExpressible, match="times"):
        derive(Renderer("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}"))


def test_a_default_system_message_becomes_SYSTEM(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(strip_generation_tags(find("alpaca").source))
    result = write_modelfile(
        tmp_path / "Modelfile", "model-q8_0.gguf", tmp_path, {"temperature": 0.6, "top_k": 20}, 512
    )
    text = (tmp_path / "Modelfile").read_text()
    assert result.path == tmp_path / "Modelfile" and not result.notes
    assert text.startswith("FROM ./model-q8_0.gguf\nTEMPLATE ")
    assert 'SYSTEM """Below is an instruction that describes a task.' in text
    assert "PARAMETER temperature 0.6\nPARAMETER top_k 20\nPARAMETER num_ctx 512\n" in text


def test_stops_are_ends_of_turns_never_headers(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    write_modelfile(tmp_path / "Modelfile", "m.gguf", tmp_path)
    lines = (tmp_path / "Modelfile").read_text().splitlines()
    assert [line for line in lines if " stop " in line] == [
        f'PARAMETER stop "{TURN_END}"',
        f'PARAMETER stop "{EOS}"',
    ]
    assert BOS not in "".join(lines)


def test_a_refusal_is_a_note_not_a_wrong_file(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ strftime_now('%d') }}{{ messages[-1].content }}")
    result = write_modelfile(tmp_path / "Modelfile", "m.gguf", tmp_path)
    assert result.path is None and "date" in result.notes[0]
    assert not (tmp_path / "Modelfile").exists()


def test_go_subset() -> None:
    data = {"System": "S", "Messages": [{"Role": "user", "Content": "a"}, {"Role": "tool", "Content": "b"}]}
    loop = (
        '{{ range $i, $m := .Messages }}{{ if eq $m.Role "user" }}U{{'
        " else if eq $i 1 }}T{{ end }}{{ .Content }};{{ end }}"
    )
    assert render(loop, data) == "Ua;Tb;"
    assert render('{{ if and $.System (eq .System "S") }}yes{{ else }}no{{ end }}', data) == "yes"
    assert render("{{ if not .System }}yes{{ else }}no{{ end }}", data) == "no"
    for wrong in ("{{ if .System }}", "{{ printf .System }}", "{{ $x.Role }}", "a{{ end }}"):
        with pytest.raises(GoTemplateError):
            render(wrong, data)
    assert json.dumps(render("{{ .Missing }}x", data)) == '"x"'
