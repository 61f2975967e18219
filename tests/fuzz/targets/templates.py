"""Chat templates as foreign models bring them: shipped ones mutated, and ones that would never end."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from fuzz import mutate
from fuzz.case import Case, Fault, Room, Target

from whet.engine.data.chat_templates import TEMPLATES, find
from whet.engine.data.chat_templates.bounds import LONGEST
from whet.engine.data.chat_templates.renderer import Renderer, strip_generation_tags
from whet.engine.data.messages import canonical_messages
from whet.engine.data.rows import RowError
from whet.engine.data.template_facts import template_facts
from whet.engine.data.tokenization import Example, RowTokenizer, TokenizerFiles
from whet.engine.demo import MODEL_DIR
from whet.engine.errors import WhetError

BIG = ("10", "1000", "99999", "10**9", "10**10", "2**62", "-1", "0", "1e9|int", "'9' * 30")
TEXT = ("x", "message.content", "messages[0]['content']", "'a'", "'<|im_start|>'", "bos_token", "ns.a", "s")
ANY = ("messages", "message", "tools", "ns.l", "[x, x]", "{'a': x}", "(1, 2)", "none", "namespace", "dict")
HIDDEN = (
    "__class__",
    "__mro__",
    "__subclasses__()",
    "__globals__",
    "__init__",
    "mro",
    "f_globals",
    "gi_frame",
)
METHODS = (
    *("ljust({n})", "center({n})", "zfill({n})", "replace('', {t})", "replace('a', {t} * 100)", "join({t})"),
    *("format({t}, {n})", "expandtabs({n})", "split('')", "encode('utf-8')", "translate({{97: {t}}})"),
    *("format_map({{'a': {t}}})", "splitlines()", "strip({t})", "startswith({t})", "{h}", "format.{h}"),
)
FILTERS = (
    *(
        "center({n})",
        "indent({n})",
        "tojson(indent={n})",
        "batch({n}, {t})|list",
        "slice({n})|list",
        "join({t})",
    ),
    *("replace('', {t})", "wordwrap(1, wrapstring={t})", "round({n})", "list", "string", "length", "sort"),
    *("format({t}, {n})", "map(attribute='{h}')|list", "attr('{h}')", "pprint", "sum", "dictsort", "unique"),
    *("tojson", "trim", "urlize", "xmlattr", "groupby('role')|list", "map('upper')|join", "random", "nosuch"),
)
CALLED = ("range", "dict", "namespace", "cycler", "lipsum", "strftime_now", "m")
SIGNS = ("+", "*", "**", "%", "~", "-", "/", "//", "==", "in", "and")
GROWING = (
    "ns.a ~ ns.a",
    "ns.a + ns.a",
    "[ns.a, ns.a]|join",
    "ns.a.replace('a', ns.a)",
    "'%s%s' % (ns.a, ns.a)",
)
DOUBLING = (
    *("[ns.l, ns.l]", "ns.l + ns.l", "[ns.l] * 2", "{'a': ns.l, 'b': ns.l}", "(ns.l, ns.l)"),
    "dict(a=ns.l, b=ns.l)",
)
SHOWN = 1000
"""Characters a refusal may hold."""


def expression(rng: Random, depth: int = 2) -> str:
    """Some expression; most of them mean something."""
    if depth == 0:
        return rng.choice(rng.choice((TEXT, BIG, ANY)))
    fill = {"n": rng.choice(BIG), "t": rng.choice(TEXT), "h": rng.choice(HIDDEN)}
    left, right = expression(rng, depth - 1), expression(rng, depth - 1)
    kind = rng.randrange(8)
    if kind == 0:
        return f"({left} {rng.choice(SIGNS)} {right})"
    if kind == 1:
        return f"({left}).{rng.choice(METHODS).format(**fill)}"
    if kind in (2, 3):
        return f"({left})|{rng.choice(FILTERS).format(**fill)}"
    if kind == 4:
        return f"'%{rng.choice(BIG)}s{{:{rng.choice(BIG)}}}' % {right}"
    if kind == 5:
        return f"[{left}, {right}]"
    if kind == 6:
        return f"{rng.choice(CALLED)}({left})"
    return f"({left})[{rng.choice(('0', '-1', ':', '::2', repr(rng.choice(HIDDEN)), rng.choice(BIG)))}]"


def statement(rng: Random, depth: int = 3) -> str:
    """Some statement, with others in it."""
    inner = "".join(statement(rng, depth - 1) for _ in range(rng.randint(1, 2))) if depth else "{{ x }}"
    said, again = expression(rng), rng.choice(("m(a)", "m(a) ~ m(a)", "varargs", "a"))
    choices = (
        f"{{{{ {said} }}}}",
        f"{{% for x in range({rng.choice(BIG)}) %}}{inner}{{% endfor %}}",
        f"{{% for message in messages %}}{inner}{{{{ message.role ~ message.content }}}}{{% endfor %}}",
        f"{{% for x in {said} %}}{inner}{{% if loop.index > 5 %}}{{% break %}}{{% endif %}}{{% endfor %}}",
        f"{{% set ns.a = ns.a {rng.choice(('~', '+'))} ns.a %}}",
        f"{{% for x in range(64) %}}{{% set ns.a = {rng.choice(GROWING)} %}}{{% endfor %}}{{{{ ns.a }}}}",
        f"{{% for x in range(64) %}}{{% set ns.l = {rng.choice(DOUBLING)} %}}{{% endfor %}}" + "{{ ns.l{} }}",
        f"{{% set x = {said} %}}",
        f"{{% set s %}}{inner}{inner}{{% endset %}}{{{{ s }}}}",
        f"{{% macro m(a) %}}{inner}{{{{ {again} }}}}{{% endmacro %}}{{{{ m(1, x) }}}}",
        f"{{% generation %}}{inner}{{% endgeneration %}}",
        f"{{% if {said} %}}{inner}{{% endif %}}",
        "{% for a in range(99999) %}" * depth + inner + "{% endfor %}" * depth,
        f"{{{{ raise_exception({said}) }}}}",
        f"{{% include {said} %}}",
    )
    return rng.choice(choices).replace("{}", rng.choice(("", "|tojson", "|string", "|length", "|pprint")))


def make(rng: Random) -> Case:
    source = find(rng.choice(list(TEMPLATES))).source
    if rng.random() < 0.6:
        made = "".join(statement(rng) for _ in range(rng.randint(1, 3)))
        source = "{% set ns = namespace(a='a', l=[1]) %}" + made + (source if rng.random() < 0.3 else "")
    else:
        source = mutate.text(rng, source)
    turns = mutate.value(rng, conversation(rng)) if rng.random() < 0.3 else conversation(rng)
    return Case(call={"source": source, "messages": turns, "tools": rng.choice((None, TOOLS))})


TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]


def conversation(rng: Random) -> list[dict[str, Any]]:
    """System, thinking and calls now and then."""
    answer: dict[str, Any] = {"role": "assistant", "content": "yes"}
    if rng.random() < 0.3:
        answer["reasoning_content"] = "I think"
    if rng.random() < 0.3:
        answer["tool_calls"] = [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]
    turns = [{"role": "user", "content": "hello"}, answer] * rng.choice((1, 1, 2))
    return [{"role": "system", "content": "be"}, *turns] if rng.random() < 0.3 else turns


def run(case: Case, room: Room) -> None:
    """As training does: compiled, its facts seen, conversations rendered with their spans."""
    source = case.call["source"]
    renderer = Renderer(source, "<s>", "</s>", ["<|im_end|>"])
    refused: list[WhetError] = []
    try:
        turns = canonical_messages(case.call["messages"], "messages")
        _check(renderer.render_with_spans(turns, tools=case.call["tools"]).text)
        _check(renderer.render(turns, add_generation_prompt=True))
    except RowError as error:
        _check_reason(error)
    except WhetError as error:
        refused.append(error)
    try:
        strip_generation_tags(source)
    except WhetError as error:
        refused.append(error)
    _in_training(source)
    if refused:
        raise refused[0]


def _check_reason(error: RowError) -> None:
    if len(error.reason) > SHOWN:
        raise Fault(f"a row's reason of {len(error.reason)} characters") from error


def _check(text: str) -> None:
    if len(text) > LONGEST:
        raise Fault(f"{len(text)} characters")


def _in_training(source: str) -> None:
    tokenizer, files = _demo()
    renderer = Renderer(source, files.bos_token, files.eos_token)
    rows = RowTokenizer(tokenizer, files.bos_token, files.eos_token, renderer)
    template_facts(rows)
    plain = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes"}]
    try:
        rows.encode_examples([Example(messages=plain)], 64)
    except RowError as error:
        _check_reason(error)


@cache
def _demo() -> tuple[Any, TokenizerFiles]:
    files = TokenizerFiles.read(Path(MODEL_DIR))
    return files.load(), files


def make_folder(rng: Random) -> Case:
    """The demo's tokenizer with such a template, as transformers loads it."""
    case = make(rng)
    files = {path.name: path.read_bytes() for path in Path(MODEL_DIR).glob("*.json")}
    source = case.call["source"].encode("utf-8", "surrogatepass")
    return Case({**files, "chat_template.jinja": source}, {"messages": conversation(rng)})


def run_folder(case: Case, room: Room) -> None:
    """Prompts as the worker, the chat and the smoke test's reference write them."""
    from transformers import AutoTokenizer

    from whet.engine.methods.sampling import end_of_turn_id, prompt_ids

    source = (room.files / "chat_template.jinja").read_bytes()
    try:
        source.decode()
    except UnicodeDecodeError:
        return  # the model's files are read before, see the target `tokenizers`
    tokenizer = AutoTokenizer.from_pretrained(room.files)
    json.dumps(tokenizer.chat_template)
    end_of_turn_id(tokenizer)
    prompt_ids(tokenizer, "hello", "be", chat=True)


TARGETS = (
    Target("templates", make, run, share=4, in_ci=12),
    Target("template-prompts", make_folder, run_folder, share=1),
)
