"""The chat's voices: a model's, streamed on the fast path, adapter on or off, as transformers answers; and a
file's, as llama-cpp-python does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import llama_cpp
import pytest
import torch
from llama_cpp import llama_chat_format
from peft import LoraConfig, PeftModel, get_peft_model
from support.gguf_faults import DROP, rewrite
from support.tiny_models import build_tiny_model
from transformers import AutoModelForCausalLM

from whet.engine.chat.process import GgufVoice, TransformersVoice
from whet.engine.chat.session import ChatSession, ChatTarget
from whet.engine.data.chat_templates import bounds, find
from whet.engine.errors import WhetError
from whet.engine.export.gguf.convert import convert
from whet.engine.export.gguf.llama import TEMPLATE
from whet.engine.models.fast_path import program_of

MESSAGES = [{"role": "user", "content": "What is a token?"}]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> ChatTarget:
    """A tiny model, and an adapter that changes what it says."""
    folder = tmp_path_factory.mktemp("chat")
    model = AutoModelForCausalLM.from_pretrained(build_tiny_model(folder / "model"))
    adapted: Any = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]))
    with torch.no_grad():
        for name, param in adapted.named_parameters():
            if "lora_B" in name:
                param.normal_(std=0.3)
    adapted.save_pretrained(folder / "adapter")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "adapter" / name).write_bytes((folder / "model" / name).read_bytes())
    return ChatTarget(model=folder / "model", adapter=folder / "adapter")


def own_answer(target: ChatTarget, voice: TransformersVoice, *, adapter: bool) -> str:
    """What transformers itself writes."""
    model: Any = AutoModelForCausalLM.from_pretrained(str(target.model))
    if adapter:
        model = PeftModel.from_pretrained(model, str(target.adapter))
    batch = voice._prompt(MESSAGES)
    ids = model.eval().generate(**batch, max_new_tokens=20, do_sample=False)
    return str(voice.tokenizer.decode(ids[0, batch["input_ids"].shape[1] :], skip_special_tokens=True))


def test_both_voices_answer_as_transformers_does(target: ChatTarget) -> None:
    voice = TransformersVoice(target)
    said = {}
    for who in ("tuned", "base", "tuned"):
        request = {"who": who, "messages": MESSAGES, "max_new_tokens": 20, "temperature": 0.0}
        pieces = list(voice.answer(request))
        said[who] = "".join(text for text, _ in pieces)
        assert len(pieces) > 2, "nothing was streamed"
        assert said[who] == own_answer(target, voice, adapter=who == "tuned")
    assert said["tuned"] != said["base"]
    program = program_of(voice.model)
    assert program is not None and program.decoding is not None and program.decoding.steps > 0


def test_a_session_that_takes_too_long_is_ended(target: ChatTarget) -> None:
    with pytest.raises(WhetError) as loading:
        ChatSession(target, seconds=0.0)
    with ChatSession(target, seconds=300) as session:
        with pytest.raises(WhetError) as answering:
            list(session.ask(MESSAGES, max_new_tokens=400, seconds=0.0))
        assert session._process.poll() is not None
    assert loading.value.code == answering.value.code == "chat.slow"


def test_prompts_are_transformers_own_and_a_template_that_never_ends_is_refused(
    target: ChatTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    voice = TransformersVoice(target)
    own = voice.tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True)["input_ids"]
    assert voice._prompt(MESSAGES)["input_ids"].tolist() == [own]
    voice.tokenizer.chat_template = "{% for a in range(99999) %}" * 2 + "{% endfor %}" * 2
    monkeypatch.setattr(bounds, "SECONDS", 0.2)
    with pytest.raises(WhetError, match="not rendered to its end"):
        voice._prompt(MESSAGES)


@pytest.fixture(scope="module")
def gguf(target: ChatTarget) -> Path:
    """The tiny model as a file, with a shipped template."""
    assert target.model is not None
    whole = convert(target.model, target.model.parent / "whole.gguf", "f16")
    return rewrite(whole, whole.with_name("chat.gguf"), {TEMPLATE: find("qwen-3").source})


def asked(**changes: Any) -> dict[str, Any]:
    return {"messages": MESSAGES, "max_new_tokens": 8, "temperature": 0.0, **changes}


def test_a_gguf_file_answers_as_llama_cpp_python_makes_it(gguf: Path) -> None:
    voice = GgufVoice(ChatTarget(gguf=gguf))
    said = "".join(text for text, _ in voice.answer(asked()))
    own = llama_cpp.Llama(str(gguf), n_ctx=0, verbose=False)
    reply: Any = own.create_chat_completion(MESSAGES, max_tokens=8, temperature=0.0)  # type: ignore[arg-type]
    assert said == reply["choices"][0]["message"]["content"] != ""
    assert voice.llama._input_ids.tolist() == own._input_ids.tolist()
    tools: Any = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    for llama in (voice.llama, own):
        llama.create_chat_completion(MESSAGES, tools=tools, max_tokens=1)  # type: ignore[arg-type]
    assert voice.llama._input_ids.tolist()[:-1] == own._input_ids.tolist()[:-1]
    assert "look" in voice.llama.render(MESSAGES, tools=tools)


@pytest.mark.parametrize(
    ("source", "code"),
    [("{{ 'a' * 20000000 }}", "template.costly"), ("{% nothing %}", "template.syntax")],
)
def test_a_gguf_files_template_is_compiled_and_rendered_in_bounds(
    source: str, code: str, gguf: Path, tmp_path: Path
) -> None:
    """Loading compiles none, this one and those that the file names beside it."""
    named = {TEMPLATE: source, f"{TEMPLATE}.tool_use": "{% nothing %}"}
    voice = GgufVoice(ChatTarget(gguf=rewrite(gguf, tmp_path / "chat.gguf", named)))
    with pytest.raises(WhetError) as caught:
        list(voice.answer(asked()))
    assert caught.value.code == code


def test_a_gguf_file_without_a_template_is_asked_in_llama_cpp_pythons_form(
    gguf: Path, tmp_path: Path
) -> None:
    voice = GgufVoice(ChatTarget(gguf=rewrite(gguf, tmp_path / "chat.gguf", {TEMPLATE: DROP})))
    assert list(voice.answer(asked()))[-1][0] == "" and voice.llama.chat_format == "llama-2"
    prompt = voice.llama.detokenize(voice.llama._input_ids.tolist()).decode(errors="replace")
    assert prompt.startswith("<s>[INST]What is a token?")


def test_a_template_that_llama_cpp_python_knows_by_heart_is_rendered_too(gguf: Path, tmp_path: Path) -> None:
    """Its own form of ChatML opens with an empty system turn, which the template does not write."""
    known = {TEMPLATE: llama_chat_format.CHATML_CHAT_TEMPLATE}
    voice = GgufVoice(ChatTarget(gguf=rewrite(gguf, tmp_path / "chat.gguf", known)))
    list(voice.answer(asked()))
    prompt = voice.llama.tokenize(voice.llama.render(MESSAGES).encode(), add_bos=False, special=True)
    assert voice.llama._input_ids.tolist()[: len(prompt)] == prompt
