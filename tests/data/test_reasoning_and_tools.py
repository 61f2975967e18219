"""What is learnt of rows with thinking and tool calls, by the templates that the models ship.

The templates are those that TRL has of the models, so that nothing here is of our own making; where TRL has
one with generation tags too, what it encloses is held against ours.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import trl
from datasets import Dataset
from support.tiny_models import build_tiny_model
from support.tiny_tokenizers import byte_level

from whet.engine.data.chat_templates import find
from whet.engine.data.chat_templates.renderer import Renderer, strip_generation_tags
from whet.engine.data.formats import Example, learnt_parts, to_example
from whet.engine.data.messages import canonical_messages
from whet.engine.data.rows import RawRow, RowError
from whet.engine.data.sources import iter_rows
from whet.engine.data.token_store import prepare
from whet.engine.data.tokenization import RowTokenizer
from whet.engine.errors import WhetError
from whet.engine.methods.sft.loading import open_rows
from whet.engine.recipe import DataSection, Recipe

FOLDER = Path(trl.__file__).parent / "chat_templates"
EOS = {
    "qwen2_5": "<|im_end|>", "qwen3": "<|im_end|>", "qwen3_5_think": "<|im_end|>",
    "nemotron_3_nano": "<|im_end|>", "deepseekv3": "<｜end▁of▁sentence｜>",
    "deepseek_r1_distill": "<｜end▁of▁sentence｜>", "gptoss": "<|return|>", "glm4moe": "<|endoftext|>",
    "llama3_1": "<|eot_id|>", "gemma4": "<turn|>", "phi3": "<|endoftext|>",
}  # fmt: skip
SPECIAL = (
    "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<think>", "</think>", "<|start|>",
    "<|end|>", "<|call|>", "<|return|>", "<|channel|>", "<|message|>", "<|user|>", "<|assistant|>",
    "<|observation|>",
    "<|eot_id|>", "<|eom_id|>", "<|start_header_id|>", "<|end_header_id|>", "<turn|>", "<|turn>",
    "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁end｜>", "<｜tool▁outputs▁begin｜>",
    "<tool_call|>", "<|tool_call>", "<|tool_response>", "<tool_response|>",
)  # fmt: skip

ASK = {"role": "user", "content": "Weather in Rome?"}
SUNNY = {"role": "assistant", "content": "It is sunny."}
SUM, FOUR = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}
RESULT = {"role": "tool", "name": "get_weather", "tool_call_id": "c1", "content": "RESULT 21 C"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "DEFINED",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]


def calling(*cities: str, **more: Any) -> dict[str, Any]:
    calls = [
        {"id": f"c{n}", "type": "function", "function": {"name": "get_weather", "arguments": {"city": city}}}
        for n, city in enumerate(cities, 1)
    ]
    return {"role": "assistant", "content": "", "tool_calls": calls, **more}


def thinking(message: dict[str, Any], thought: str) -> dict[str, Any]:
    return {**message, "reasoning_content": thought}


ROWS: dict[str, list[dict[str, Any]]] = {
    "thinking": [ASK, thinking(SUNNY, "Look."), SUM, thinking(FOUR, "Add.")],
    "block": [ASK, {**SUNNY, "content": "<think>\nLook.\n</think>\n\nIt is sunny."}],
    "call": [ASK, calling("Rome"), RESULT, SUNNY],
    "two calls": [ASK, calling("Rome", "Oslo"), RESULT, {**RESULT, "tool_call_id": "c2"}, SUNNY],
    "text and call": [ASK, calling("Rome", content="Let me look."), RESULT, SUNNY],
    "thinking and call": [ASK, thinking(calling("Rome"), "Use it."), RESULT, thinking(SUNNY, "Say it.")],
    "call, then a question": [ASK, calling("Rome"), RESULT, SUNNY, SUM, FOUR],
    "call at the end": [ASK, calling("Rome")],
}

HERMES = '<tool_call>\n{{"name": "get_weather", "arguments": {{"city": "{}"}}}}\n</tool_call>'
CODER = "<tool_call>\n<function=get_weather>\n<parameter=city>\n{}\n</parameter>\n</function>\n</tool_call>"
V3 = (
    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n"
    '```json\n{{"city": "{}"}}\n```<｜tool▁call▁end｜>'
)
HARMONY = ' to=functions.get_weather<|channel|>commentary json<|message|>{"city": "Rome"}<|call|>'
GLM = "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>{}</arg_value>\n</tool_call>"
LLAMA = '{"name": "get_weather", "parameters": {"city": "Rome"}}<|eot_id|>'
END, EOT, V3_END = "<|im_end|>", "<|eot_id|>", "<｜end▁of▁sentence｜>"
FINAL, ANALYSIS = "<|channel|>final<|message|>", "<|channel|>analysis<|message|>"
ONE, BOTH = HERMES.format("Rome"), f"{HERMES.format('Rome')}\n{HERMES.format('Oslo')}"
V3_ONE = f"<｜tool▁calls▁begin｜>{V3.format('Rome')}<｜tool▁calls▁end｜>{V3_END}"
NO_THOUGHT = "<think>\n\n</think>\n\n"

LEARNT: dict[str, dict[str, list[str] | str]] = {
    "qwen2_5": {
        "thinking": [f"<think>\nAdd.\n</think>\n\n4{END}"],
        "block": [f"<think>\nLook.\n</think>\n\nIt is sunny.{END}"],
        "call": [ONE + END, f"It is sunny.{END}"],
        "two calls": [BOTH + END, f"It is sunny.{END}"],
        "text and call": [f"Let me look.\n{ONE}{END}", f"It is sunny.{END}"],
        "thinking and call": [f"<think>\nSay it.\n</think>\n\nIt is sunny.{END}"],
        "call, then a question": [ONE + END, f"It is sunny.{END}", f"4{END}"],
        "call at the end": [ONE + END],
    },
    "qwen3": {
        "thinking": [f"<think>\nAdd.\n</think>\n\n4{END}"],
        "block": [f"<think>\nLook.\n</think>\n\nIt is sunny.{END}"],
        "call": [ONE + END, f"{NO_THOUGHT}It is sunny.{END}"],
        "two calls": [BOTH + END, f"{NO_THOUGHT}It is sunny.{END}"],
        "text and call": [f"Let me look.\n{ONE}{END}", f"{NO_THOUGHT}It is sunny.{END}"],
        "thinking and call": [
            f"<think>\nUse it.\n</think>\n\n{ONE}{END}", f"<think>\nSay it.\n</think>\n\nIt is sunny.{END}"
        ],
        "call, then a question": [ONE + END, f"It is sunny.{END}", f"{NO_THOUGHT}4{END}"],
        "call at the end": [f"{NO_THOUGHT}{ONE}{END}"],
    },
    # The generation prompt opens the thinking.
    "qwen3_5_think": {
        "thinking": [f"Add.\n</think>\n\n4{END}"],
        "call": [f"\n</think>\n\n{CODER.format('Rome')}{END}", f"\n</think>\n\nIt is sunny.{END}"],
        "thinking and call": [
            f"Use it.\n</think>\n\n{CODER.format('Rome')}{END}", f"Say it.\n</think>\n\nIt is sunny.{END}"
        ],
        "call, then a question": [
            f"{CODER.format('Rome')}{END}", f"It is sunny.{END}", f"\n</think>\n\n4{END}"
        ],
    },
    "deepseekv3": {
        "call": [V3_ONE, f"It is sunny.{V3_END}"],
        "text and call": [f"Let me look.{V3_ONE}", f"It is sunny.{V3_END}"],
        "two calls": [
            f"<｜tool▁calls▁begin｜>{V3.format('Rome')}\n{V3.format('Oslo')}<｜tool▁calls▁end｜>{V3_END}",
            f"It is sunny.{V3_END}",
        ],
    },
    # It drops all thinking, and its prompt opens one.
    "deepseek_r1_distill": {
        "thinking": [f"Add.\n</think>\n\n4{V3_END}"],
        "block": [f"Look.\n</think>\n\nIt is sunny.{V3_END}"],
        "call": "no tool calls",
    },
    "gptoss": {
        "thinking": [f"{ANALYSIS}Add.<|end|><|start|>assistant{FINAL}4<|return|>"],
        "block": [f"{ANALYSIS}Look.<|end|><|start|>assistant{FINAL}It is sunny.<|return|>"],
        "call": [HARMONY, f"{FINAL}It is sunny.<|return|>"],
        "two calls": "one tool call a message",
        "text and call": [HARMONY, f"{FINAL}It is sunny.<|return|>"],
        "thinking and call": [f"{ANALYSIS}Say it.<|end|><|start|>assistant{FINAL}It is sunny.<|return|>"],
        "call, then a question": [HARMONY, f"{FINAL}It is sunny.<|end|>", f"{FINAL}4<|return|>"],
        "call at the end": [HARMONY],
    },
    # Its turns end with the token of the next one.
    "glm4moe": {
        "thinking": ["\n<think>Add.</think>\n4<|user|>"],
        "block": ["\n<think>Look.</think>\nIt is sunny.<|user|>"],
        "call": [
            f"\n<think></think>\n{GLM.format('Rome')}<|observation|>",
            "\n<think></think>\nIt is sunny.<|user|>",
        ],
        "thinking and call": [
            f"\n<think>Use it.</think>\n{GLM.format('Rome')}<|observation|>",
            "\n<think>Say it.</think>\nIt is sunny.<|user|>",
        ],
        "call at the end": [f"\n<think></think>\n{GLM.format('Rome')}<|observation|>"],
    },
    "llama3_1": {
        "thinking": [f"<think>\nAdd.\n</think>\n\n4{EOT}"],
        "block": [f"<think>\nLook.\n</think>\n\nIt is sunny.{EOT}"],
        "call": [LLAMA, f"It is sunny.{EOT}"],
        "two calls": "single tool-calls",
        "thinking and call": [f"<think>\nSay it.\n</think>\n\nIt is sunny.{EOT}"],
        "call, then a question": [LLAMA, f"It is sunny.{EOT}", f"4{EOT}"],
        "call at the end": [LLAMA],
    },
    "gemma4": {
        "thinking": "drops the thinking of message 4",
        "call": [
            '<|tool_call>call:get_weather{city:<|"|>Rome<|"|>}<tool_call|><|tool_response>',
            "It is sunny.<turn|>",
        ],
        "text and call": "mixes its tool calls",
    },
    "phi3": {"thinking": ["<think>\nAdd.\n</think>\n\n4<|end|>"], "call": "no tool calls"},
}  # fmt: skip
CASES = [(name, row) for name, rows in LEARNT.items() for row in rows]


@cache
def renderer_of(name: str) -> Renderer:
    source = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    return Renderer(source, "<s>", EOS[name.removesuffix("_training")], SPECIAL)


def learnt(renderer: Renderer, messages: list[dict[str, Any]]) -> list[str]:
    tools = TOOLS if any("tool_calls" in message for message in messages) else None
    rendered = renderer.render_with_spans(canonical_messages(messages, "messages"), tools=tools)
    return [rendered.text[start:end] for start, end in rendered.spans]


@pytest.mark.parametrize(("name", "row"), CASES)
def test_learnt_is_what_the_model_writes(name: str, row: str) -> None:
    """Thinking, answer and calls through the end of turn; not what tools are and what they said."""
    expected = LEARNT[name][row]
    if isinstance(expected, str):
        with pytest.raises(WhetError, match=expected):
            learnt(renderer_of(name), ROWS[row])
        return
    found = learnt(renderer_of(name), ROWS[row])
    assert found == expected
    assert not any(told in "".join(found) for told in ("RESULT", "DEFINED", "Weather in"))


@pytest.mark.parametrize("row", ["call", "two calls", "text and call", "call at the end"])
@pytest.mark.parametrize(
    "name", ["qwen2_5", "qwen3_5_think", "deepseekv3", "gptoss", "glm4moe", "nemotron_3_nano"]
)
def test_trls_generation_tags_enclose_it_too(name: str, row: str) -> None:
    """Theirs also hold the header before a turn or the space behind it."""
    if isinstance(LEARNT.get(name, {}).get(row), str):
        pytest.skip("refused: the template would lose a call")
    ours, theirs = (learnt(renderer_of(one), ROWS[row]) for one in (name, f"{name}_training"))
    assert len(ours) == len(theirs)
    for mine, its in zip(ours, theirs, strict=True):
        assert mine.strip() in its


def test_arguments_may_be_json_and_calls_of_any_spelling() -> None:
    """OpenAI's JSON, bare calls, the legacy field, ShareGPT's roles with tools as JSON: the same row."""
    call = {"name": "get_weather", "arguments": {"city": "Rome"}}
    spelt: list[Any] = [
        {"tool_calls": [{"type": "function", "function": {**call, "arguments": '{"city": "Rome"}'}}]},
        {"tool_calls": [call]},
        {"tool_calls": [{"name": "get_weather", "arguments": None, "parameters": {"city": "Rome"}}]},
        {"tool_calls": '[{"name": "get_weather", "arguments": {"city": "Rome", "unit": null}}]'},
        {"function_call": {**call, "arguments": '{"city": "Rome"}'}},
    ]
    rows = [[ASK, {"role": "assistant", "content": None, **one}, RESULT, SUNNY] for one in spelt]
    rows.append(
        [
            {"from": "human", "value": ASK["content"]},
            {"from": "function_call", "value": '{"name": "get_weather", "arguments": {"city": "Rome"}}'},
            {"from": "observation", "value": RESULT["content"]},
            {"from": "gpt", "value": SUNNY["content"]},
        ]
    )
    for name in ("qwen3_5_think", "deepseekv3", "qwen2_5"):
        expected = learnt(renderer_of(name), ROWS["call"])
        assert [learnt(renderer_of(name), row) for row in rows] == [expected] * len(rows)


SECTION = DataSection.model_validate({"train": "rows.jsonl"})


def example_of(messages: Any, section: DataSection = SECTION, **more: Any) -> Example:
    return to_example(RawRow("rows.jsonl", 1, {"messages": messages, **more}), "messages", section)


def test_tools_may_be_json_or_bare() -> None:
    bare = TOOLS[0]["function"]
    tools = [example_of([ASK, SUNNY], tools=one).tools for one in (TOOLS, [bare], json.dumps([bare]), "", [])]
    assert tools == [TOOLS, TOOLS, TOOLS, None, None]


def test_rows_from_a_columnar_file_are_the_same_rows(tmp_path: Path) -> None:
    """Arrow gives every struct the fields of all."""
    number = {"type": "number"}
    inner = {"type": "object", "properties": {"a": number, "b": number}}
    other = {"type": "function", "function": {"name": "add", "description": "Sum.", "parameters": inner}}
    adding = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": [{"of": 2}]}}}
    rows = [
        {"messages": ROWS["call"], "tools": TOOLS},
        {"messages": [SUM, {"role": "assistant", "content": "", "tool_calls": [adding]}], "tools": [other]},
    ]
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = []
    for file in ("rows.parquet", "rows.jsonl"):
        section = DataSection.model_validate({"train": str(tmp_path / file)})
        read = [row for row in iter_rows(str(tmp_path / file), section, "train") if isinstance(row, RawRow)]
        examples = [to_example(row, "messages", section) for row in read]
        found.append([renderer_of("qwen3").render(one.messages or [], tools=one.tools) for one in examples])
    assert found[0] == found[1] and "null" not in "".join(found[0])


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        ({"tool_calls": [{"arguments": {}}]}, "without a name"),
        ({"tool_calls": ["search"]}, "is str"),
        ({"tool_calls": [{"name": "f", "arguments": 3}]}, "calls f with int"),
        ({"tool_calls": [{"name": "f", "arguments": {"a": ["b\0"]}}]}, "NUL"),
        ({"content": "x", "reasoning_content": "\ufdd2"}, "noncharacters"),
    ],
)
def test_a_broken_call_is_a_bad_row(turn: dict[str, Any], said: str) -> None:
    with pytest.raises(RowError, match=f"message 2.*{said}"):
        example_of([ASK, {"role": "assistant", **turn}])


def test_rows_that_differ_in_calls_or_thinking_are_no_duplicates() -> None:
    rows = [[ASK, calling("Rome")], [ASK, calling("Oslo")], [ASK, SUNNY], [ASK, thinking(SUNNY, "Look.")]]
    assert len({example_of(row).content() for row in rows}) == 4


def tokenizer_of(name: str) -> RowTokenizer:
    tokenizer = byte_level()
    tokenizer.add_tokens([token for token in SPECIAL if token not in ("<think>", "</think>")])
    return RowTokenizer(tokenizer, "<s>", EOS[name], renderer_of(name))


def parts(messages: Any, name: str, reasoning: str) -> list[str]:
    """What is learnt of each row that a conversation becomes."""
    tokenizer = tokenizer_of(name)
    section = SECTION.model_copy(update={"reasoning": reasoning})
    rows = tokenizer.encode_examples(learnt_parts(example_of(messages, section), section))
    return [
        tokenizer.tokenizer.decode([t for t in row.labels if t >= 0], skip_special_tokens=False)
        for row in rows
    ]


def test_each_answer_can_be_a_row_with_its_thinking() -> None:
    row = [*ROWS["thinking and call"], SUM, thinking(FOUR, "Add.")]
    last = f"<think>\nAdd.\n</think>\n\n4{END}"
    assert parts(row, "qwen3", "auto") == [last]
    assert parts(row, "qwen3", "each") == [
        f"<think>\nUse it.\n</think>\n\n{ONE}{END}", f"<think>\nSay it.\n</think>\n\nIt is sunny.{END}", last
    ]  # fmt: skip
    assert parts(row, "qwen3", "drop") == [f"{ONE}{END}It is sunny.{END}{NO_THOUGHT}4{END}"]


def test_answers_left_as_context_are_told() -> None:
    tokenizer = tokenizer_of("qwen3")
    told = {name: tokenizer.prepare(example_of(row)).context for name, row in ROWS.items()}
    assert {name for name, context in told.items() if context} == {"thinking"}
    section = SECTION.model_copy(update={"reasoning": "each"})
    parts_of = learnt_parts(example_of(ROWS["thinking"], section), section)
    assert not any(tokenizer.prepare(part).context for part in parts_of)


def test_each_answers_row_begins_with_the_prompt_of_inference() -> None:
    section = SECTION.model_copy(update={"reasoning": "each"})
    for name in ("qwen3", "deepseek_r1_distill", "gptoss"):
        renderer = renderer_of(name)
        for one in learnt_parts(example_of(ROWS["thinking"], section), section):
            assert one.messages is not None
            rendered = renderer.render_with_spans(one.messages)
            prompt = renderer.render(one.messages[:-1], add_generation_prompt=True)
            assert rendered.text[: rendered.spans[-1][0]] == prompt


def test_a_conversation_is_held_out_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its shorter parts would tell what the longer ones are measured by."""
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    model = build_tiny_model(tmp_path / "model", "qwen3")
    rows = [{"messages": [ASK, {**SUNNY, "content": f"It is {n}."}, SUM, FOUR]} for n in range(40)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = {"train": str(file), "reasoning": "each", "eval_fraction": 0.3}
    recipe = Recipe.model_validate({"model": {"name": str(model), "max_length": 256}, "data": data})
    prepared = prepare(recipe, model)
    report = prepared.report
    assert report.eval is not None and report.train.rows + report.eval.rows == 80
    assert report.train.rows % 2 == report.eval.rows % 2 == 0 and report.eval.rows > 0
    assert prepared.eval is not None
    splits = (prepared.eval, prepared.train)
    held, trained = ({tuple(row["input_ids"][:60]) for row in open_rows(one)} for one in splits)
    assert held.isdisjoint(trained)


def test_all_tokens_learnt_means_calls_and_thinking_too() -> None:
    tokenizer = tokenizer_of("qwen2_5")
    text = tokenizer.prepare(example_of(ROWS["thinking"]), "all").text
    assert "<think>\nAdd.\n</think>\n\n4" in text
    with pytest.raises(RowError, match="no tool calls"):
        tokenizer_of("phi3").prepare(example_of(ROWS["call at the end"]), "all")


OURS = {"qwen-2.5": "qwen2_5", "qwen-3": "qwen3", "llama-3.1": "llama3_1"}
"""Ours that have tool calls, and the models' own."""


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("name", OURS)
def test_our_own_templates_write_what_the_models_do(name: str, row: str) -> None:
    """With generation tags and, as other engines read them, without."""
    own, tools = renderer_of(OURS[name]), TOOLS if "call" in row else None
    source = find(name).source
    for text in (source, strip_generation_tags(source)):
        ours = Renderer(text, "<s>", EOS[OURS[name]], SPECIAL)
        for system in ([], [{"role": "system", "content": "Be short."}]):
            messages = canonical_messages([*system, *ROWS[row]], "messages")
            if LEARNT[OURS[name]].get(row) == "single tool-calls":
                with pytest.raises(WhetError, match="one tool call"):
                    ours.render(messages, tools=tools)
                continue
            assert ours.render(messages, tools=tools) == own.render(messages, tools=tools)
            asked = [one.render(messages[:-1], True, tools=tools) for one in (ours, own)]
            assert asked[0] == asked[1]
            assert learnt(ours, messages) == learnt(own, messages)


def test_our_other_templates_lose_no_call() -> None:
    with pytest.raises(WhetError, match="no tool calls") as lost:
        learnt(Renderer(find("chatml").source, None, END, SPECIAL), [ASK, calling("Rome")])
    assert lost.value.code in ("template.lost", "template.render")


@pytest.mark.parametrize("name", ["gptoss", "glm4moe"])
def test_a_call_at_the_end_of_a_row_ends_it(name: str) -> None:
    """Its own end token is none of an answer's."""
    tokenizer = tokenizer_of(name)
    row = tokenizer.encode_examples([example_of(ROWS["call at the end"], tools=TOOLS)])[0]
    assert row.labels[-1] in tokenizer.call_end_ids and row.labels[-1] not in tokenizer.end_ids
    answer = tokenizer.encode_examples([example_of([ASK, SUNNY])])[0]
    assert answer.labels[-1] in tokenizer.end_ids
