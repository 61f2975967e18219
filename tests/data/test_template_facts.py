"""Whose format a template is, what it lacks, and the text that mends it."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.tiny_tokenizers import byte_level, model_dir

from whet.engine.data.chat_templates import TEMPLATES, find
from whet.engine.data.chat_templates.renderer import Renderer, strip_generation_tags
from whet.engine.data.template_facts import TemplateFacts, rendered_family, template_facts
from whet.engine.data.tokenization import RowTokenizer, TokenizerFiles

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ASK = [{"role": "user", "content": "What?"}]
ANSWERED = [*ASK, {"role": "assistant", "content": "This."}]


def facts_of(folder: Path, template: str, specials: tuple[str, ...] | None = None) -> TemplateFacts:
    tokenizer = byte_level() if specials is None else byte_level(specials)
    model = model_dir(folder, tokenizer, chat_template=template)
    found = template_facts(RowTokenizer.from_files(TokenizerFiles.read(model)))
    assert found is not None
    return found


@pytest.mark.parametrize("name", TEMPLATES)
def test_each_known_template_is_itself_and_sound(name: str, tmp_path: Path) -> None:
    """As a model ships it, without generation tags; Gemma's generations write the same text."""
    found = facts_of(tmp_path, strip_generation_tags(find(name).source))
    assert found.nearest is not None and found.likeness == 1.0
    assert (
        found.family == TEMPLATES[name].family or TEMPLATES[name].markers == TEMPLATES[found.nearest].markers
    )
    assert found.missing_header == "" and found.trained.startswith(found.prompt.rstrip())
    assert set(found.repairs) <= {"D06"}


def test_another_system_message_is_still_the_same_format(tmp_path: Path) -> None:
    system = "{{ '<|im_start|>system\nYou answer in rhymes, whatever you are asked.<|im_end|>\n' }}"
    found = facts_of(tmp_path, system + CHATML)
    assert found.family in ("chatml", "qwen2", "qwen3") and found.likeness > 0.9


def test_a_format_of_nobody_belongs_to_nobody(tmp_path: Path) -> None:
    odd = "{% for m in messages %}{{ '@@' + m.role[0] + ' ' + m.content + ' ;;' }}{% endfor %}"
    assert facts_of(tmp_path, odd).family is None


def test_a_template_that_refuses_everything_has_no_facts(tmp_path: Path) -> None:
    model = model_dir(tmp_path, byte_level(), chat_template="{{ raise_exception('no') }}")
    assert template_facts(RowTokenizer.from_files(TokenizerFiles.read(model))) is None


def test_markers_that_this_vocabulary_splits(tmp_path: Path) -> None:
    llama = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    found = facts_of(tmp_path, CHATML, llama)
    assert found.split_markers == found.markers == ["<|im_start|>", "<|im_end|>"]
    assert found.fitting == ["llama-3.1", "llama-3"] and found.better("chatml") == "llama-3.1"
    assert facts_of(tmp_path / "fits", CHATML).split_markers == []


def test_better_prefers_what_is_alike_then_the_familys_own() -> None:
    fitting = ["llama-3", "chatml", "qwen-3"]
    alike = TemplateFacts(nearest="chatml", likeness=0.9, fitting=fitting)
    assert alike.better("llama-3") == "chatml"
    assert alike.model_copy(update={"likeness": 0.5}).better("llama-3") == "llama-3"
    assert TemplateFacts(fitting=[]).better("llama-3") == "vicuna"


@pytest.mark.parametrize("ending", ["", "\n", "{# end #}\n"])
def test_a_generation_prompt_is_added(tmp_path: Path, ending: str) -> None:
    """It renders the same otherwise."""
    source = CHATML.partition("{% if")[0] + ending
    found = facts_of(tmp_path, source)
    assert found.missing_header == "<|im_start|>assistant\n"
    before, mended = Renderer(source), Renderer(found.repairs["D09"])
    assert mended.render(ASK, add_generation_prompt=True) == before.render(ASK) + found.missing_header
    assert mended.render(ANSWERED) == before.render(ANSWERED)
    assert facts_of(tmp_path / "again", found.repairs["D09"]).missing_header == ""


def test_a_prompt_of_its_own_becomes_the_trained_one(tmp_path: Path) -> None:
    source = CHATML.replace("assistant\n", "assistant\n<think>\n")
    found = facts_of(tmp_path, source)
    assert not found.trained.startswith(found.prompt)
    before, mended = Renderer(source), Renderer(found.repairs["D10"])
    assert mended.render(ANSWERED) == before.render(ANSWERED)
    assert before.render(ANSWERED).startswith(mended.render(ASK, add_generation_prompt=True))
    assert "D10" not in facts_of(tmp_path / "again", found.repairs["D10"]).repairs


def test_bos_is_put_before_where_the_tokenizer_would(tmp_path: Path) -> None:
    model = model_dir(tmp_path, byte_level(prefix="<|begin_of_text|>"), chat_template=CHATML)
    found = template_facts(RowTokenizer.from_files(TokenizerFiles.read(model)))
    assert found is not None and found.repairs["D06"].startswith("{{- bos_token }}")
    assert "D06" not in facts_of(tmp_path / "none", CHATML).repairs


def test_tags_around_nothing_are_taken_out(tmp_path: Path) -> None:
    found = facts_of(tmp_path, CHATML + "{% generation %}{% endgeneration %}")
    spans = Renderer(found.repairs["D01"], None, None, ("<|im_end|>",)).render_with_spans(ANSWERED)
    assert [spans.text[start:end] for start, end in spans.spans] == ["This.<|im_end|>"]


def test_whose_markers_stand_in_a_text() -> None:
    assert rendered_family(["<|im_start|>", "<|im_end|>"]) == "chatml"
    assert rendered_family(["<start_of_turn>"]) == "gemma"
    assert rendered_family(["<|start_header_id|>", "<|eot_id|>"]) == "llama-3.1"
    assert rendered_family(["{instruction}"]) is None
