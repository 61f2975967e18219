"""The chat's transformers voice: streamed on the fast path, adapter on or off, as transformers answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from support.tiny_models import build_tiny_model
from transformers import AutoModelForCausalLM

from whet.engine.chat.process import GgufVoice, TransformersVoice
from whet.engine.chat.session import ChatSession, ChatTarget
from whet.engine.data.chat_templates import bounds
from whet.engine.errors import WhetError
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


def test_prompts_are_transformers_own_and_a_template_that_never_ends_is_refused(target: ChatTarget) -> None:
    voice = TransformersVoice(target)
    own = voice.tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True)["input_ids"]
    assert voice._prompt(MESSAGES)["input_ids"].tolist() == [own]
    voice.tokenizer.chat_template = "{% for a in range(99999) %}" * 2 + "{% endfor %}" * 2
    with pytest.raises(WhetError, match="more than 3 seconds"):
        voice._prompt(MESSAGES)


class Llama:
    """As much of llama_cpp's as a chat uses, of a file without an end token."""

    def __init__(self, path: str, **options: Any) -> None:
        self.metadata = {"tokenizer.chat_template": path}

    def token_bos(self) -> int:
        return 1

    def token_eos(self) -> int:
        return -1

    def detokenize(self, tokens: list[int], special: bool) -> bytes:
        return b"<s>" if tokens == [1] and special else b""

    def create_chat_completion(self, **request: Any) -> Iterator[dict[str, Any]]:
        yield {"choices": [{"delta": {"content": "a"}, "finish_reason": "stop"}]}


def test_a_gguf_files_template_has_its_tokens_and_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama_cpp.Llama", Llama)
    asked = {"messages": MESSAGES, "max_new_tokens": 1, "temperature": 0.0}
    source = "{% if bos_token == '<s>' %}{{ bos_token + messages[0].content + eos_token }}{% endif %}"
    voice = GgufVoice(ChatTarget(gguf=Path(source)))
    assert voice.renderer is not None
    assert voice.renderer.render(MESSAGES) == "<s>What is a token?"
    assert list(voice.answer(asked)) == [("a", False), ("", True)]
    monkeypatch.setattr(bounds, "SECONDS", 0.2)
    endless = source.replace("{{", "{% for a in range(99999) %}" * 2 + "{% endfor %}" * 2 + "{{")
    with pytest.raises(WhetError, match="not rendered to its end"):
        list(GgufVoice(ChatTarget(gguf=Path(endless))).answer(asked))
