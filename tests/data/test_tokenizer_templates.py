"""What a transformers tokenizer's template writes here is what transformers writes with it."""

from __future__ import annotations

from typing import Any

import pytest
from jinja2 import TemplateError
from transformers import AutoTokenizer

from whet.engine.data.chat_templates import TEMPLATES, find
from whet.engine.data.chat_templates.of_tokenizer import rendered_as_given
from whet.engine.demo import MODEL_DIR
from whet.engine.errors import WhetError
from whet.engine.export.smoke_cases import ASK, SYSTEM, cases_for

CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "x"}}}
OTHERS: list[list[dict[str, Any]]] = [
    [ASK, {"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "content": "y"}],
    [ASK, {"role": "assistant", "content": "36.", "reasoning": "3 times 12"}, ASK],
    [SYSTEM, ASK, {"role": "assistant", "content": "<think>\nno\n</think>\n\n36.", "thinking": None}],
]
BARE = (
    "{{ bos_token }}{{ documents is defined }}{{ tools }}{{ pad_token }}{% for m in messages %}"
    "{{ m.reasoning_content ~ m.thinking ~ m.content ~ m.tool_calls }}{% endfor %}{{ enable_thinking }}"
)
"""Writes all that a template is given, in no one's form."""


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODEL_DIR)


@pytest.mark.parametrize("name", [*TEMPLATES, BARE])
def test_the_text_is_transformers_own(name: str, tokenizer: Any) -> None:
    tokenizer.chat_template = source = find(name).source if name in TEMPLATES else name
    given = [(case["messages"], case["add_generation_prompt"], case["kwargs"]) for case in cases_for(source)]
    given += [(messages, True, {"enable_thinking": True}) for messages in OTHERS]
    written = 0
    for messages, prompt, kwargs in given:
        try:
            wanted = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=prompt, **kwargs
            )
        except (TemplateError, TypeError) as refused:
            with pytest.raises(WhetError) as caught:
                rendered_as_given(tokenizer, messages, prompt, **kwargs)
            assert caught.value.code == "template.render" and str(refused) in caught.value.message
            continue
        assert rendered_as_given(tokenizer, messages, prompt, **kwargs) == wanted
        written += 1
    assert written


def test_of_several_templates_it_is_the_usual_one(tokenizer: Any) -> None:
    tokenizer.chat_template = {"tool_use": "b", "default": "{{ messages[0].content }}"}
    assert rendered_as_given(tokenizer, [ASK]) == tokenizer.apply_chat_template([ASK], tokenize=False)
    tokenizer.chat_template = {"tool_use": "b"}
    with pytest.raises(WhetError) as caught:
        rendered_as_given(tokenizer, [ASK])
    assert caught.value.code == "template.missing"
