"""The far end of a chat: holds the models, reads requests and writes pieces of answers as JSON lines.

Started by :class:`whet.engine.chat.session.ChatSession` with the target as its one argument.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any, Protocol

from ..data.chat_templates.of_tokenizer import rendered
from ..errors import WhetError
from ..importing import importing
from ..models.capped_attention import attention_of
from .session import ChatTarget


class Voice(Protocol):
    """A model that answers: yields pieces of text, returns whether it stopped by itself."""

    def answer(self, request: dict[str, Any]) -> Iterator[tuple[str, bool]]: ...


class TransformersVoice:
    """A transformers model, with its adapter on or off."""

    def __init__(self, target: ChatTarget) -> None:
        with importing():
            import torch
            from peft import PeftModel
            from transformers import AutoModelForCausalLM, AutoTokenizer

            from ..models.fast_path import apply_fast_path, bind_generate

        cuda = torch.cuda.is_available()
        dtype = torch.bfloat16 if cuda and torch.cuda.is_bf16_supported() else torch.float32
        assert target.model is not None
        source = target.adapter or target.model
        self.tokenizer: Any = AutoTokenizer.from_pretrained(
            str(source), local_files_only=True, trust_remote_code=False
        )
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            str(target.model),
            dtype=dtype,
            device_map={"": "cuda:0" if cuda else "cpu"},
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            **attention_of(target.model),
        )
        if target.adapter is not None:
            if not (target.adapter / "adapter_model.safetensors").is_file():
                raise ValueError(f"{target.adapter} holds no adapter_model.safetensors.")
            self.model = PeftModel.from_pretrained(self.model, str(target.adapter))
        self.model.eval().requires_grad_(False)
        apply_fast_path(self.model, dtype)  # a model that it does not know generates as ever
        bind_generate(self.model)

    def answer(self, request: dict[str, Any]) -> Iterator[tuple[str, bool]]:
        from transformers import TextIteratorStreamer

        batch = self._prompt(request["messages"])
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        sampling: dict[str, Any] = {"do_sample": False}
        if request["temperature"] > 0:
            sampling = {"do_sample": True, "temperature": request["temperature"]}
        produced: list[Any] = []
        base = request["who"] == "base"

        def generate() -> None:
            limit = request["max_new_tokens"]
            try:
                with self.model.disable_adapter() if base else contextlib.nullcontext():
                    produced.append(
                        self.model.generate(**batch, max_new_tokens=limit, streamer=streamer, **sampling)
                    )
            finally:
                streamer.end()  # a failed generation must not leave the reader waiting

        thread = threading.Thread(target=generate)
        thread.start()
        for piece in streamer:
            yield piece, False
        thread.join()
        new_tokens = produced[0].shape[1] - batch["input_ids"].shape[1]
        yield "", new_tokens < request["max_new_tokens"]

    def _prompt(self, messages: list[dict[str, str]]) -> Any:
        """Token ids; a model without a chat template goes on from the text itself."""
        if self.tokenizer.chat_template is None:
            text = "".join(message["content"] for message in messages)
            return self.tokenizer(text, return_tensors="pt").to(self.model.device)
        text = rendered(self.tokenizer, messages, add_generation_prompt=True)
        return self.tokenizer(text, add_special_tokens=False, return_tensors="pt").to(self.model.device)


class GgufVoice:
    """A GGUF file under llama.cpp, through the template inside the file."""

    def __init__(self, target: ChatTarget) -> None:
        from ..export.gguf.llama import Llama

        self.llama = Llama(str(target.gguf), n_ctx=0, verbose=False)

    def answer(self, request: dict[str, Any]) -> Iterator[tuple[str, bool]]:
        reason = None
        chunks: Any = self.llama.create_chat_completion(
            messages=request["messages"],
            max_tokens=request["max_new_tokens"],
            temperature=request["temperature"],
            stream=True,
        )
        for chunk in chunks:
            choice = chunk["choices"][0]
            reason = choice["finish_reason"] or reason
            yield choice["delta"].get("content") or "", False
        yield "", reason == "stop"


def main() -> None:
    """Load what the target names, say ready, then answer until the input ends."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print; standard output is for JSON lines alone

    def say(message: dict[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    target = ChatTarget.model_validate_json(sys.argv[1])
    try:
        transformers_voice = TransformersVoice(target) if target.model else None
        gguf_voice = GgufVoice(target) if target.gguf else None
    except WhetError as error:
        say({"error": error.as_dict()})
        return
    except (OSError, ValueError) as error:
        say({"error": WhetError("chat.load", f"The model did not load: {error}").as_dict()})
        return
    say({"ready": target.voices})
    for line in sys.stdin:
        request = json.loads(line)
        voice: Voice | None = gguf_voice if request["who"] == "gguf" else transformers_voice
        if voice is None:
            unknown = WhetError("chat.voice", f"{request['who']} is not loaded.", f"Have: {target.voices}.")
            say({"error": unknown.as_dict()})
            continue
        ended = False
        try:
            for text, stopped in voice.answer(request):
                ended = ended or stopped
                if text:
                    say({"who": request["who"], "text": text})
        except WhetError as error:
            say({"error": error.as_dict()})
            continue
        say({"who": request["who"], "end": True, "stopped": ended})


if __name__ == "__main__":
    main()
