"""Every template prints its format's text, and supervises exactly what the assistant writes."""

from __future__ import annotations

import pytest

from whet.engine.data.chat_templates import TEMPLATES, find
from whet.engine.data.chat_templates.renderer import Renderer, strip_generation_tags
from whet.engine.errors import WhetError

BOS, EOS = "<s>", "</s>"
SPECIALS = ("<|eot_id|>", "<|im_start|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<start_of_turn>")

SYSTEM = {"role": "system", "content": "Be short."}
USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello."}
AGAIN = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
CONVERSATION = [SYSTEM, USER, ASSISTANT, *AGAIN]

LLAMA_31_SYSTEM = (
    "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: 26 Jul 2024\n\n"
)
LLAMA_3_TURNS = (
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n2+2?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n4<|eot_id|>"
)
CHATML_TURNS = (
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
    "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"
)
GEMMA_TURNS = (
    "Hi<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n"
    "<start_of_turn>user\n2+2?<end_of_turn>\n<start_of_turn>model\n4<end_of_turn>\n"
)
VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions."
)
ALPACA_SYSTEM = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)

# With and without a system message, as the formats' own documentation prints them.
EXPECTED = {
    "llama-3": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe short.<|eot_id|>" + LLAMA_3_TURNS,
        "<s>" + LLAMA_3_TURNS,
    ),
    "llama-3.1": (
        f"<s>{LLAMA_31_SYSTEM}Be short.<|eot_id|>{LLAMA_3_TURNS}",
        f"<s>{LLAMA_31_SYSTEM}<|eot_id|>{LLAMA_3_TURNS}",
    ),
    "llama-2": (
        "<s>[INST] <<SYS>>\nBe short.\n<</SYS>>\n\nHi [/INST] Hello. </s><s>[INST] 2+2? [/INST] 4 </s>",
        "<s>[INST] Hi [/INST] Hello. </s><s>[INST] 2+2? [/INST] 4 </s>",
    ),
    "chatml": ("<|im_start|>system\nBe short.<|im_end|>\n" + CHATML_TURNS, CHATML_TURNS),
    "qwen-2.5": (
        "<|im_start|>system\nBe short.<|im_end|>\n" + CHATML_TURNS,
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        + CHATML_TURNS,
    ),
    "qwen-3": tuple(
        (system + CHATML_TURNS).replace("4<|im_end|>", "<think>\n\n</think>\n\n4<|im_end|>")
        for system in ("<|im_start|>system\nBe short.<|im_end|>\n", "")
    ),
    "mistral": (
        "<s>[INST] Be short.\n\nHi[/INST] Hello.</s>[INST] 2+2?[/INST] 4</s>",
        "<s>[INST] Hi[/INST] Hello.</s>[INST] 2+2?[/INST] 4</s>",
    ),
    **dict.fromkeys(
        ("gemma", "gemma-2", "gemma-3"),
        tuple(f"<s><start_of_turn>user\n{system}{GEMMA_TURNS}" for system in ("Be short.\n\n", "")),
    ),
    "phi-3": (
        "<|system|>\nBe short.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello.<|end|>\n"
        "<|user|>\n2+2?<|end|>\n<|assistant|>\n4<|end|>\n</s>",
        "<|user|>\nHi<|end|>\n<|assistant|>\nHello.<|end|>\n"
        "<|user|>\n2+2?<|end|>\n<|assistant|>\n4<|end|>\n</s>",
    ),
    "phi-4": tuple(
        system + "<|im_start|>user<|im_sep|>Hi<|im_end|><|im_start|>assistant<|im_sep|>Hello.<|im_end|>"
        "<|im_start|>user<|im_sep|>2+2?<|im_end|><|im_start|>assistant<|im_sep|>4<|im_end|>"
        for system in ("<|im_start|>system<|im_sep|>Be short.<|im_end|>", "")
    ),
    "alpaca": tuple(
        f"<s>{system}\n\n### Instruction:\nHi\n\n### Response:\nHello.</s>"
        "\n\n### Instruction:\n2+2?\n\n### Response:\n4</s>"
        for system in ("Be short.", ALPACA_SYSTEM)
    ),
    "vicuna": tuple(
        f"<s>{system} USER: Hi ASSISTANT: Hello.</s>USER: 2+2? ASSISTANT: 4</s>"
        for system in ("Be short.", VICUNA_SYSTEM)
    ),
    "zephyr": tuple(
        system + "<|user|>\nHi</s>\n<|assistant|>\nHello.</s>\n<|user|>\n2+2?</s>\n<|assistant|>\n4</s>\n"
        for system in ("<|system|>\nBe short.</s>\n", "")
    ),
    "unsloth": tuple(
        f"<s>{system}\n>>> User: Hi\n>>> Assistant: Hello.</s>\n>>> User: 2+2?\n>>> Assistant: 4</s>\n"
        for system in ("Be short.", "You are a helpful assistant to the user")
    ),
}

THOUGHTS = [
    USER,
    {"role": "assistant", "content": "<think>\nA greeting.\n</think>\n\nHello."},
    AGAIN[0],
    {"role": "assistant", "content": "<think>\nSum.\n</think>\n\n4"},
]
CONVERSATIONS = {
    "whole": CONVERSATION,
    "no system": CONVERSATION[1:],
    "one turn": CONVERSATION[1:3],
    "spaces": [USER, {"role": "assistant", "content": "  Hello.\n"}, *AGAIN],
    "markers": [USER, {"role": "assistant", "content": "Say user, [INST] or {{ braces }}."}],
    "repeated": [USER, {"role": "assistant", "content": "Hi"}, USER, {"role": "assistant", "content": "Hi"}],
    "empty": [USER, {"role": "assistant", "content": ""}],
    "not ascii": [USER, {"role": "assistant", "content": "Ä 👍🏽 你好"}],
    "ends with a question": [USER, ASSISTANT, AGAIN[0]],
    "thoughts": THOUGHTS,
    "stray tag": [USER, {"role": "assistant", "content": "no </think> opening"}],
}


def renderer_of(name: str, tags: bool = True) -> Renderer:
    source = find(name).source
    return Renderer(source if tags else strip_generation_tags(source), BOS, EOS, SPECIALS)


def supervised(renderer: Renderer, messages: list[dict[str, str]]) -> list[str]:
    rendered = renderer.render_with_spans(messages)
    return [rendered.text[start:end] for start, end in rendered.spans]


def test_every_template_is_compared() -> None:
    assert set(EXPECTED) == set(TEMPLATES)


@pytest.mark.parametrize("name", TEMPLATES)
def test_text_is_the_formats_text(name: str) -> None:
    renderer = renderer_of(name)
    assert renderer.render(CONVERSATION) == EXPECTED[name][0]
    assert renderer.render(CONVERSATION[1:]) == EXPECTED[name][1]


@pytest.mark.parametrize("name", TEMPLATES)
def test_supervised_are_the_answers_through_their_end_token(name: str) -> None:
    renderer, end = renderer_of(name), find(name).end_of_turn or EOS
    answers = supervised(renderer, CONVERSATION)
    first, second = (answer.replace("<think>\n\n</think>\n\n", "") for answer in answers)
    assert first.replace(" ", "") == f"Hello.{end}"
    assert second.replace(" ", "") == f"4{end}"
    assert renderer.end_of_turn == end


@pytest.mark.parametrize("case", CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_spans_do_not_need_the_tags(name: str, case: str) -> None:
    messages = CONVERSATIONS[case]
    tagged, bare = renderer_of(name), renderer_of(name, tags=False)
    assert "generation %}" not in bare.source
    assert tagged.render_with_spans(messages) == bare.render_with_spans(messages)
    assert tagged.render_with_spans(messages).text == tagged.render(messages)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_is_the_beginning_of_the_trained_text(name: str) -> None:
    renderer = renderer_of(name)
    prompt = renderer.render(CONVERSATION[:-1], add_generation_prompt=True)
    rendered = renderer.render_with_spans(CONVERSATION)
    assert rendered.text.startswith(prompt)
    assert rendered.spans[-1][0] == len(prompt)


@pytest.mark.parametrize("name", TEMPLATES)
def test_parts_stand_in_the_text_and_before_the_spans(name: str) -> None:
    template, text = find(name), EXPECTED[name][0]
    assert text.count(template.instruction_part) == 2
    assert text.count(template.response_part) == 2
    start = renderer_of(name).render_with_spans(CONVERSATION).spans[0][0]
    assert text[:start].endswith(template.response_part)
    assert all(marker in text for marker in template.info.markers)


WITH_TOOLS = ("qwen-2.5", "qwen-3", "llama-3.1")


@pytest.mark.parametrize("name", sorted({*TEMPLATES} - {*WITH_TOOLS}))
def test_tools_are_refused_rather_than_dropped(name: str) -> None:
    with pytest.raises(WhetError, match="no tool calls") as error:
        renderer_of(name).render([USER], tools=[{"name": "search"}])
    assert error.value.code == "template.render"
    with pytest.raises(WhetError, match="no tool calls"):
        renderer_of(name).render([USER, {"role": "tool", "content": "4"}])


def test_qwen_3_keeps_thoughts_of_the_last_answer_only_and_learns_no_answer_without_its_own() -> None:
    renderer = renderer_of("qwen-3")
    assert supervised(renderer, THOUGHTS) == ["<think>\nSum.\n</think>\n\n4<|im_end|>"]
    assert "<|im_start|>assistant\nHello.<|im_end|>" in renderer.render_with_spans(THOUGHTS).text
    separate = [AGAIN[0], {**AGAIN[1], "reasoning_content": "Sum."}]
    assert supervised(renderer, separate) == ["<think>\nSum.\n</think>\n\n4<|im_end|>"]
    quiet = renderer.render([USER], add_generation_prompt=True, enable_thinking=False)
    assert quiet.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_llama_31_takes_a_date() -> None:
    text = renderer_of("llama-3.1").render(CONVERSATION, date_string="1 Jan 2026")
    assert "Today Date: 1 Jan 2026\n\nBe short.<|eot_id|>" in text


@pytest.mark.parametrize("name", ["gemma", "gemma-2", "gemma-3", "mistral", "llama-2"])
def test_formats_that_need_alternation_say_so(name: str) -> None:
    with pytest.raises(WhetError, match="alternate"):
        renderer_of(name).render([USER, USER])


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        *(
            ("llama3", "llama-3"),
            ("llama-31", "llama-3.1"),
            ("llama3.1", "llama-3.1"),
            ("Llama_3.2", "llama-3.1"),
        ),
        *(("qwen2.5", "qwen-2.5"), ("qwen25", "qwen-2.5"), ("qwen3", "qwen-3"), ("gemma3", "gemma-3")),
        *(("gemma2", "gemma-2"), ("phi4", "phi-4"), ("phi-3.5", "phi-3"), ("chat_ml", "chatml")),
        *(
            ("llama2", "llama-2"),
            ("Mistral", "mistral"),
            ("ALPACA", "alpaca"),
            ("llama-3-instruct", "llama-3"),
        ),
    ],
)
def test_usual_spellings(spelling: str, name: str) -> None:
    assert find(spelling).name == name


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(WhetError, match="Did you mean") as error:
        find("lama-3.1")
    assert error.value.code == "template.unknown"
    assert "llama-3.1" in error.value.hint and "zephyr" in error.value.hint
