"""A foreign template ends: with its text, or soon with a clear error, however it loops, grows or digs."""

from __future__ import annotations

import time
from typing import Any

import pytest

from whet.engine.data.chat_templates import bounds
from whet.engine.data.chat_templates.renderer import Renderer
from whet.engine.data.formats import Example
from whet.engine.data.tokenization import RowTokenizer, TokenizerFiles
from whet.engine.demo import MODEL_DIR
from whet.engine.errors import WhetError

TURNS: list[dict[str, Any]] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
START = "{% set ns = namespace(a='a', l=[1]) %}{% for x in range(64) %}"
COSTLY = {
    "loops in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a macro calling itself twice": "{% macro m(n) %}{{ m(n - 1) ~ m(n - 1) if n }}{% endmacro %}{{ m(60) }}",
    "a text doubled": START + "{% set ns.a = ns.a ~ ns.a %}{% endfor %}{{ ns.a }}",
    "a text added to itself": START + "{% set ns.a = ns.a + ns.a %}{% endfor %}{{ ns.a }}",
    "a text put into itself": START + "{% set ns.a = ns.a.replace('a', ns.a ~ 'a') %}{% endfor %}{{ ns.a }}",
    "a text formatted by itself": START + "{% set ns.a = '%s%s' % (ns.a, ns.a) %}{% endfor %}{{ ns.a }}",
    "a text joined with itself": START + "{% set ns.a = [ns.a, ns.a]|join %}{% endfor %}{{ ns.a }}",
    "a block doubled": START + "{% set b %}{{ ns.a * 2 }}{% endset %}{% set ns.a = b %}{% endfor %}",
    "a list of itself": START + "{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
    "a list twice": START + "{% set ns.l = [ns.l] * 2 %}{% endfor %}{{ ns.l|tojson }}",
    "an object of itself": START + "{% set ns.l = {'a': ns.l, 'b': ns.l} %}{% endfor %}{{ ns.l }}",
    "a dict of itself": START + "{% set ns.l = dict(a=ns.l, b=ns.l) %}{% endfor %}{{ ns.l }}",
    "an object of many": START + "{% set ns.l = dict.fromkeys(range(999), ns.l) %}{% endfor %}{{ ns.l }}",
    "a list filled up": START + "{% set ns.l = [1]|batch(900, ns.l)|list %}{% endfor %}{{ ns.l }}",
    "a list filled up in turns": START
    + "{% for b in [1]|batch(900, ns.l) %}{% set ns.l = b %}{% endfor %}{% endfor %}{{ ns.l }}",
    "what is missing": START
    + "{% set ns.l = ([{}] * 900)|map(attribute='a', default=ns.l)|list %}{% endfor %}{{ ns.l }}",
    "long texts in a list": "{{ ['a' * 9999999] * 1000 }}",
    "long texts in a list as JSON": "{{ (['a' * 9999999] * 1000)|tojson }}",
    "long texts in a list put behind": "{{ ('a' ~ ['a' * 9999999] * 1000)|length }}",
    "long texts in a list formatted": "{{ '%s' % [['a' * 9999999] * 1000] }}",
    "long texts in a list formatted as text": "{{ '{!s}'.format(['a' * 9999999] * 1000) }}",
    "lists added up": "{{ ([[1]] * 99999)|sum(start=[])|length }}",
    "a text many times": "{{ 'a' * 10**10 }}",
    "a power": "{{ 10**(10**10) }}",
    "a wide column": "{{ 'a'.ljust(10**10) }}",
    "a wide filter": "{{ 'a'|center(10**10) }}",
    "a wide format": "{{ '%10000000000s' % 'a' }}",
    "a wide format of text": "{{ '{:>10000000000}'.format('a') }}",
    "a wide format that is given": "{{ '{:>{n}}'.format('a', n='9' * 10) }}",
    "indented lines": "{{ [[1]]|tojson(indent=10**10) }}",
}


@pytest.mark.parametrize("source", COSTLY.values(), ids=COSTLY.keys())
def test_what_costs_too_much_is_refused_soon_and_then_at_once(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "SECONDS", 0.3)
    renderer = Renderer(source)
    began = time.process_time()
    with pytest.raises(WhetError) as caught:
        renderer.render(TURNS)
    assert caught.value.code == "template.costly"
    assert time.process_time() - began < 2
    again = time.process_time()
    with pytest.raises(WhetError, match="not rendered to its end"):
        renderer.render(TURNS)
    assert time.process_time() - again < 0.1


@pytest.mark.parametrize(
    "source",
    [
        "{{ range(10**9) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ messages.append(1) }}",
        "{{ 'a'.translate({97: 'b' * 1000000}) }}",
        "{{ lipsum(n=10**9) }}",
        "{{ lipsum.__globals__ }}",
        "{{ 1 / 0 }}",
        "{{ '\\ud800' }}",
        "{{ 'a\ud800' + messages[0].role }}",
        "{% include 'other' %}",
    ],
)
def test_what_the_sandbox_refuses_is_a_clear_error(source: str) -> None:
    with pytest.raises(WhetError) as caught:
        Renderer(source).render(TURNS)
    assert caught.value.code == "template.render"


@pytest.mark.parametrize("hidden", ["messages.__class__", "messages|attr('__class__')|attr('__mro__')"])
def test_what_is_hidden_prints_as_nothing(hidden: str) -> None:
    assert Renderer(f"a{{{{ {hidden} }}}}b").render(TURNS) == "ab"


@pytest.mark.parametrize(
    "source", ["{{ " + "9" * 5000 + " }}", "{% if " + "(" * 3000, "{% for x in y %}" * 60]
)
def test_what_does_not_compile_is_a_clear_error(source: str) -> None:
    with pytest.raises(WhetError) as caught:
        Renderer(source + "{% endfor %}" * source.count("{% for"))
    assert caught.value.code == "template.syntax"


def test_long_conversations_are_within_bounds() -> None:
    growing = (
        "{% set ns = namespace(kept=[], text='') %}{% for message in messages %}"
        "{% set ns.kept = ns.kept + [message] %}{% set ns.text = ns.text ~ message.content %}{% endfor %}"
        "{{ ns.text }}{% for one in ns.kept %}{{ one.role + ': ' + one.content|trim }}{% endfor %}"
    )
    turns = [{"role": "user", "content": "word " * 200}] * 400
    assert len(Renderer(growing).render(turns)) > 700_000


def test_a_template_that_never_ends_is_no_rows_fault() -> None:
    files = TokenizerFiles.read(MODEL_DIR)
    renderer = Renderer(COSTLY["a text doubled"], files.bos_token, files.eos_token)
    rows = RowTokenizer(files.load(), files.bos_token, files.eos_token, renderer)
    with pytest.raises(WhetError) as caught:
        rows.encode_examples([Example(messages=TURNS)])
    assert caught.value.code == "template.costly"


def test_what_a_template_says_of_a_conversation_is_passed_on_in_part() -> None:
    with pytest.raises(WhetError) as caught:
        Renderer("{{ raise_exception('no' * 9999) }}").render(TURNS)
    assert caught.value.code == "template.render" and "nono" in caught.value.message
    assert len(caught.value.message) < 500
