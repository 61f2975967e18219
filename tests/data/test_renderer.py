"""Our Jinja environment renders and masks as transformers does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.tiny_tokenizers import byte_level

from whet.engine import demo
from whet.engine.data.chat_templates import TEMPLATES, find
from whet.engine.data.chat_templates.renderer import Renderer, strip_generation_tags
from whet.engine.data.tokenization import RowTokenizer
from whet.engine.errors import WhetError

CONVERSATION = [
    {"role": "system", "content": "You are kind."},
    {"role": "user", "content": "What is ﬁne 👍🏽 tuning?"},
    {"role": "assistant", "content": "It teaches – é – a model. 你好"},
    {"role": "user", "content": "Thanks!  "},
    {"role": "assistant", "content": "You are welcome. 👍🏽"},
]


def fast_tokenizer(source: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level(), bos_token="<s>", eos_token="</s>", chat_template=source
    )


@pytest.mark.parametrize("name", TEMPLATES)
def test_text_ids_and_mask_equal_transformers(name: str) -> None:
    tokenizer = fast_tokenizer(find(name).source)
    ours = RowTokenizer.from_hf(tokenizer)
    assert ours.renderer is not None
    assert ours.renderer.render(CONVERSATION) == tokenizer.apply_chat_template(CONVERSATION, tokenize=False)
    prompt = tokenizer.apply_chat_template(CONVERSATION[:2], tokenize=False, add_generation_prompt=True)
    assert ours.renderer.render(CONVERSATION[:2], add_generation_prompt=True) == prompt
    theirs = tokenizer.apply_chat_template(CONVERSATION, return_dict=True, return_assistant_tokens_mask=True)
    from whet.engine.data.formats import Example

    row = ours.encode_examples([Example(messages=CONVERSATION)])[0]
    assert row.input_ids == theirs["input_ids"]
    assert [int(label != -100) for label in row.labels] == theirs["assistant_masks"]
    assert 0 < sum(theirs["assistant_masks"]) < len(row.labels)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages | tojson }}|{{ messages[1] | tojson(indent=2) }}",
        "  {% if true %}\n  a {{ bos_token }}\n  {% endif %}\nb{{ pad_token }}",
        "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
        "{{ strftime_now('%Y') }}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    ],
)
def test_the_environment_is_the_same(source: str) -> None:
    theirs = fast_tokenizer(source).apply_chat_template(CONVERSATION, tokenize=False)
    assert Renderer(source, "<s>", "</s>").render(CONVERSATION) == theirs


def test_the_demo_models_template() -> None:
    source = (demo.MODEL_DIR / "chat_template.jinja").read_text()
    tagged = Renderer(source, "<s>", "</s>", ["<|eot_id|>", "<|start_header_id|>"])
    bare = Renderer(strip_generation_tags(source), "<s>", "</s>", ["<|eot_id|>", "<|start_header_id|>"])
    assert tagged.render_with_spans(CONVERSATION) == bare.render_with_spans(CONVERSATION)
    assert tagged.end_of_turn == "<|eot_id|>"


BODY = "{{ message['content'] }}"


@pytest.mark.parametrize(
    "opening", ["{% generation %}", "{%- generation %}", "{%generation-%}", "{%- generation -%}"]
)
@pytest.mark.parametrize("closing", ["{% endgeneration %}", "{%- endgeneration %}", "{%- endgeneration -%}"])
@pytest.mark.parametrize(
    "inner",
    [BODY, f"\n  {BODY}\n  ", f" {BODY} x", f"\n\n{BODY}", f"\n  {{% if true %}}\n{BODY}\n  {{% endif %}}\n"],
)
@pytest.mark.parametrize(
    "outer", ["{}", "a {} b", "\n  {}\n  c", "{{% if true %}}\n    {}\n    {{% endif %}}", "\n{}\n\n"]
)
def test_stripping_tags_changes_no_text(opening: str, closing: str, inner: str, outer: str) -> None:
    source = "{% for message in messages %}" + outer.format(opening + inner + closing) + "{% endfor %}"
    stripped = strip_generation_tags(source)
    assert "generation" not in stripped
    assert Renderer(stripped).render(CONVERSATION) == Renderer(source).render(CONVERSATION)


def test_a_header_without_generation_prompt_is_not_supervised() -> None:
    source = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    )
    rendered = Renderer(source, special_tokens=["<|im_start|>", "<|im_end|>"]).render_with_spans(CONVERSATION)
    assert [rendered.text[slice(*span)] for span in rendered.spans] == [
        f"{CONVERSATION[index]['content']}<|im_end|>" for index in (2, 4)
    ]


def test_a_template_that_hides_the_answer_is_refused() -> None:
    source = "{% for m in messages %}{{ m.role }}: {{ m.content | upper }}\n{% endfor %}"
    with pytest.raises(WhetError, match="Cannot tell which tokens") as error:
        Renderer(source).render_with_spans(CONVERSATION)
    assert error.value.code == "template.spans"
    assert "generation" in error.value.hint


def test_a_template_cannot_reach_the_interpreter() -> None:
    with pytest.raises(WhetError) as error:
        Renderer("{{ ''.__class__.__mro__[1].__subclasses__() }}").render(CONVERSATION)
    assert error.value.code == "template.render"
    with pytest.raises(WhetError):
        Renderer("{{ messages.append(1) }}").render(CONVERSATION)


def test_errors_name_the_place() -> None:
    with pytest.raises(WhetError, match="line 2") as error:
        Renderer("{% if x %}\n{% endfor %}")
    assert error.value.code == "template.syntax"
    with pytest.raises(WhetError, match="U\\+FDD0"):
        Renderer(find("chatml").source).render_with_spans([{"role": "assistant", "content": "a\ufdd0b"}])


def test_templates_ship_as_files() -> None:
    folder = Path(find("chatml").info.__class__.__module__.replace(".", "/"))
    assert folder.name == "chat_templates"
    assert all("{%- generation %}" in find(name).source for name in TEMPLATES)
