"""The Go template must give the prompts that the Jinja template gives, or not be written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.tiny_models import BOS, EOS, TURN_END, write_tokenizer

from whet.engine.data.chat_templates import TEMPLATES, find
from whet.engine.data.chat_templates.renderer import Renderer, strip_generation_tags
from whet.engine.data.tokenizer_files import TokenizerFiles
from whet.engine.export.go_chat import derive
from whet.engine.export.go_template import GoTemplateError, render
from whet.engine.export.modelfile import further_ends, write_modelfile
from whet.engine.export.modelfile_check import parse_modelfile, write_checked_modelfile
from whet.engine.export.ollama_chat import Conversation, NotExpressible, go_data, render_go, tags_of

TALK = [
    {"role": "user", "content": "Hello {there}"},
    {"role": "assistant", "content": "Hi.\nHow are you?"},
    {"role": "user", "content": "Fine"},
]
SHAPES = Path(__file__).parent / "chat_shapes"
REFUSED = {
    "braces": "braces",
    "command-r7b-thinks": "thoughts",
    "deepseek-r1": "thoughts",
    "granite-3.3-date": "date",
    "harmony": "date",
    "harmony-no-date": "last answer",
    "last-question-marked": "another one follows",
    "llama-3.2-date": "date",
    "numbered-turns": "another one follows",
    "system-changes-users-turn": "system message changes",
    "tools-required": "refuses a conversation",
    "unprintable": r"U\+200B",
    "upper-case": "another prompt",
}
"""Shape -> a word of the reason."""


def shape(name: str) -> Renderer:
    return Renderer((SHAPES / f"{name}.jinja").read_text(encoding="utf-8").removesuffix("\n"), "<s>", "</s>")


@pytest.mark.parametrize("name", sorted(path.stem for path in SHAPES.glob("*.jinja")))
def test_other_families_shapes_are_written_right_or_refused_with_the_reason(name: str) -> None:
    renderer = shape(name)
    if name in REFUSED:
        with pytest.raises(NotExpressible, match=REFUSED[name]):
            derive(renderer)
        return
    chat = derive(renderer)
    for messages in (TALK[:1], TALK, [{"role": "system", "content": "Be kind."}, *TALK]):
        if messages[0]["role"] == "system" and not chat.knows_system:
            continue
        expected = renderer.render(messages, add_generation_prompt=True).removeprefix("<s>")
        assert render_go(chat, messages) == expected and messages[-1]["content"] in expected


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_every_template_of_ours_gives_the_same_prompts(name: str) -> None:
    renderer = Renderer(strip_generation_tags(find(name).source), "<s>", "</s>")
    chat = derive(renderer)
    for messages in (TALK[:1], TALK, [{"role": "system", "content": "Be kind."}, *TALK]):
        expected = renderer.render(messages, add_generation_prompt=True).removeprefix("<s>")
        assert render_go(chat, messages) == expected
        assert "Fine" in expected or messages == TALK[:1]


THOUGHT = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nHi."}


def test_thoughts_are_told_apart_as_ollama_tells_them() -> None:
    """qwen-3 drops earlier thoughts; Ollama keeps them apart from answers, so the answer alone is written."""
    renderer = Renderer(strip_generation_tags(find("qwen-3").source), "<s>", "</s>")
    chat = derive(renderer)
    assert tags_of(chat.template) == ("<think>", "</think>")
    talk = [TALK[0], THOUGHT, TALK[2]]
    for think in (None, True, False):
        case = Conversation(talk, think)
        assert case.given(chat) == case.wanted(renderer)
        assert case.given(chat).endswith("</think>\n\n") == (think is False) and "Hm." not in case.given(chat)
    data = go_data(chat, talk)
    assert data["Messages"][1] == {"Role": "assistant", "Content": "Hi.", "Thinking": "Hm.\n"}
    gone_on = [TALK[0], {"role": "assistant", "content": "<think>\nHm.</think>Well"}]
    assert "<think>\nHm.\n</think>\n\nWell" in render_go(chat, gone_on)


def test_a_prompt_that_opens_the_thought_does_so_once() -> None:
    renderer = shape("qwq-opens-thought")
    chat = derive(renderer)
    said = {"role": "assistant", "content": "Hm.\n</think>\n\nHi."}
    prompt = Conversation([TALK[0], said, TALK[2]]).given(chat)
    assert prompt.endswith("<|im_start|>assistant\n<think>\n") and prompt.count("<think>") == 1
    assert "<|im_start|>assistant\nHi.<|im_end|>" in prompt


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


def test_further_end_tokens_are_stops_but_never_a_header(tmp_path: Path) -> None:
    """Some models' generation settings name the header of the next turn."""
    write_tokenizer(tmp_path)
    renderer = Renderer("{% for m in messages %}{{ m.content }}" + TURN_END + "{% endfor %}", BOS, EOS)
    files = TokenizerFiles.read(tmp_path)
    ids = [files.load().token_to_id(token) for token in (EOS, TURN_END, BOS)]
    assert further_ends(files, renderer, {"eos_token_id": ids}) == [EOS, BOS]
    assert further_ends(files, renderer, {"eos_token_id": ids[0]}) == [EOS]
    assert further_ends(files, renderer, {}) == [] == further_ends(files, None, {"eos_token_id": [10**6]})


def test_parameters_come_from_the_models_own_settings(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "m.gguf").touch()
    base = tmp_path / "base"
    base.mkdir()
    generation = {"temperature": 0.6, "min_p": 0.05, "repetition_penalty": 1.1, "do_sample": True}
    (base / "generation_config.json").write_text(json.dumps(generation))
    for context, wanted in ((2048, 2048), (131_072, 8192)):
        (base / "config.json").write_text(json.dumps({"max_position_embeddings": context}))
        facts = write_checked_modelfile(tmp_path, "m.gguf", tmp_path, base)
        assert facts.path is not None
        lines = facts.path.read_text().splitlines()
        assert [line for line in lines if line.startswith("PARAMETER") and " stop " not in line] == [
            "PARAMETER temperature 0.6", "PARAMETER min_p 0.05", "PARAMETER repeat_penalty 1.1",
            f"PARAMETER num_ctx {wanted}",
        ]  # fmt: skip


def test_an_embedding_model_has_from_alone(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert", "max_position_embeddings": 512}')
    (tmp_path / "m.gguf").touch()
    facts = write_checked_modelfile(tmp_path, "m.gguf", tmp_path)
    assert facts.path is not None and facts.path.read_text() == "FROM ./m.gguf\n"
    assert facts.stops == facts.ends == () and facts.difference is None and not facts.notes


@pytest.mark.parametrize(
    ("name", "words"), [("llama-3", "trims spaces"), ("mistral-v0.1", "no system messages")]
)
def test_what_ollama_does_otherwise_is_said(tmp_path: Path, name: str, words: str) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(shape(name).source)
    result = write_modelfile(tmp_path / "Modelfile", "m.gguf", tmp_path)
    assert result.path is not None and words in " ".join(result.notes)


@pytest.mark.parametrize(
    "system", ['Say "hi".', "Back\\slash \\n", '"quoted"', "two\nlines ", "#no comment", "'"]
)
def test_what_is_written_is_what_ollama_reads(tmp_path: Path, system: str) -> None:
    write_tokenizer(tmp_path)
    source = (SHAPES / "smollm2.jinja").read_text(encoding="utf-8").removesuffix("\n")
    default = "You are a helpful assistant named Smol."
    written = json.dumps(system)[1:-1].replace("'", "\\'")
    (tmp_path / "chat_template.jinja").write_text(source.replace(default, written))
    write_modelfile(tmp_path / "Modelfile", "m.gguf", tmp_path)
    found = parse_modelfile((tmp_path / "Modelfile").read_text())
    assert found.system == system and found.template is not None and found.stops[-1] == EOS


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
    assert render("{{/* a note */}}{{ len .Messages }}{{ len (slice .Messages 1) }}", data) == "21"
    last = "{{ if eq (len (slice $.Messages $i)) 1 }}{{ .Content }}{{ end }}"
    assert render(f"{{{{ range $i, $m := .Messages }}}}{last}{{{{ end }}}}", data) == "b"
    assert (
        render('{{ if ge (len .Messages) 2 }}{{ or .Missing .System }}{{ and .System "x" }}{{ end }}', data)
        == "Sx"
    )
    for wrong in ("{{ len 3 }}", "{{ if .System }}", "{{ printf .System }}", "{{ $x.Role }}", "a{{ end }}"):
        with pytest.raises(GoTemplateError):
            render(wrong, data)
    assert json.dumps(render("{{ .Missing }}x", data)) == '"x"'
