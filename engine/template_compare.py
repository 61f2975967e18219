"""The prompts of one template against training's, by token ids: equal-looking texts may be other tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from .data.chat_templates.renderer import Renderer
from .data.messages import Message
from .data.tokenization import RowTokenizer, TokenizerFiles
from .errors import WhetError

SHOWN_TOKENS = 6


class Difference(BaseModel):
    """The first place where two token sequences part."""

    model_config = ConfigDict(frozen=True)

    conversation: str
    """``file:line``."""
    at: int
    """Index of the first token that differs."""
    trained: list[str]
    """Tokens from there on, as text."""
    other: list[str]


class Comparison(BaseModel):
    """Training's token ids against those of somebody else's template."""

    model_config = ConfigDict(frozen=True)

    with_what: str
    conversations: int = 0
    same: int = 0
    first: Difference | None = None
    notes: list[str] = Field(default_factory=list)


@dataclass(frozen=True)
class Conversation:
    """Messages up to the answer, and what training makes of them."""

    place: str
    messages: list[Message]
    """Ends with a question."""
    tools: list[Any] | None
    prompt: list[int]
    """Ids that the model is trained to answer."""


def common_start(mine: Sequence[int], its: Sequence[int]) -> int:
    """Tokens that both begin with."""
    pairs = zip(mine, its, strict=False)
    return next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(mine), len(its)))


class Others:
    """Everybody else's rendering of the same conversations."""

    def __init__(self, files: TokenizerFiles, tokenizer: RowTokenizer) -> None:
        self.files, self.tokenizer = files, tokenizer

    def own(self, conversations: Sequence[Conversation]) -> Comparison:
        """The model's own template under its own tokenizer: what is used before training."""
        renderer = Renderer(self.files.chat_template or "", self.files.bos_token, self.files.eos_token)
        texts = [self._rendered(renderer, one) for one in conversations]
        notes = ["Training writes its template into the tokenizer it saves, in place of this one."]
        return self._compared("the model's own template", conversations, self._ids(texts), notes)

    def gguf(self, path: Path, conversations: Sequence[Conversation]) -> Comparison:
        """The template in a GGUF, tokenised by llama.cpp where it is installed."""
        from .export.smoke_metadata import read_metadata

        if not path.is_file():
            raise WhetError("gguf.missing", f"There is no file {path}.", "Give the path of a GGUF file.")
        metadata = read_metadata(path)
        source = metadata.get("tokenizer.chat_template")
        name = f"the template in {path.name}"
        if not source:
            return Comparison(with_what=name, notes=["The file holds no chat template."])
        bos = self._token(metadata.get("tokenizer.ggml.bos_token_id"))
        renderer = Renderer(source, bos, self._token(metadata.get("tokenizer.ggml.eos_token_id")))
        adds = bool(metadata.get("tokenizer.ggml.add_bos_token", False))
        texts = [self._rendered(renderer, one) for one in conversations]
        ids, notes = self._llama_ids(path, texts, bos, adds)
        return self._compared(name, conversations, ids, notes)

    def modelfile(self, path: Path, conversations: Sequence[Conversation]) -> Comparison:
        """An Ollama Modelfile's TEMPLATE; BOS is what the GGUF's metadata would add."""
        from .export.go_template import GoTemplateError
        from .export.modelfile_check import ANSWER_PLACE, read_modelfile
        from .export.ollama_chat import GoChat, render_go

        found = read_modelfile(path)
        name = f"the Modelfile {path.name}"
        ends = self.tokenizer.end_texts
        lacking = [end for end in ends[:1] if end not in found.stops]
        notes = [f"It stops at {', '.join(found.stops) or 'nothing'}, but not at {end}." for end in lacking]
        if found.template is None:
            return Comparison(with_what=name, notes=[*notes, "It has no TEMPLATE: Ollama guesses one."])
        template = found.template.partition(ANSWER_PLACE)[0]
        texts: list[str | None] = []
        try:
            for one in conversations:
                messages = [
                    {key: str(value) for key, value in turn.items() if value is not None}
                    for turn in one.messages
                ]
                texts.append(render_go(GoChat(template, found.system), messages))
        except GoTemplateError as error:
            return Comparison(with_what=name, notes=[*notes, f"Its TEMPLATE cannot be read here: {error}."])
        # llama.cpp adds BOS by itself, as the tokenizer does to plain text.
        bos = self.tokenizer.prefix
        return self._compared(name, conversations, self._ids(texts, bos), notes)

    def _rendered(self, renderer: Renderer, one: Conversation) -> str | None:
        try:
            return renderer.render(one.messages, add_generation_prompt=True, tools=one.tools)
        except WhetError:
            return None

    def _ids(self, texts: Sequence[str | None], prefix: Sequence[int] = ()) -> list[list[int] | None]:
        encode = self.tokenizer.tokenizer.encode
        return [
            None if text is None else [*prefix, *encode(text, add_special_tokens=False).ids] for text in texts
        ]

    def _llama_ids(
        self, path: Path, texts: Sequence[str | None], bos: str | None, adds: bool
    ) -> tuple[list[list[int] | None], list[str]]:
        """Ids as llama.cpp makes them: BOS from the metadata, and not once more from the template."""
        bare = [text.removeprefix(bos) if text is not None and adds and bos else text for text in texts]
        begin = self._id(bos) if adds and bos else None
        prefix = [] if begin is None else [begin]
        if find_spec("llama_cpp") is None:
            note = "Without llama-cpp-python: tokenised by the model's tokenizer, not by the file's."
            return self._ids(bare, prefix), [note]
        from .export.gguf.native import run_native

        request = {"path": str(path), "texts": [text or "" for text in bare], "pre": None}
        run = run_native("whet.engine.export.gguf.vocab_process", request)["runs"][0]
        ids = [
            None if text is None else [*prefix, *made] for text, made in zip(bare, run["ids"], strict=True)
        ]
        ends = set(run["end_of_generation"])
        missing = [text for text in self.tokenizer.end_texts[:1] if self._id(text) not in ends]
        return ids, [f"Generation does not stop at {text} there." for text in missing]

    def _compared(
        self,
        name: str,
        conversations: Sequence[Conversation],
        others: Sequence[list[int] | None],
        notes: list[str],
    ) -> Comparison:
        same, first, refused = 0, None, 0
        for one, other in zip(conversations, others, strict=True):
            if other is None:
                refused += 1
            elif other == one.prompt:
                same += 1
            elif first is None:
                at = common_start(one.prompt, other)
                first = Difference(
                    conversation=one.place,
                    at=at,
                    trained=self._texts(one.prompt[at : at + SHOWN_TOKENS]),
                    other=self._texts(other[at : at + SHOWN_TOKENS]),
                )
        if refused:
            notes = [*notes, f"It refuses {refused} of these conversations."]
        if not conversations:
            notes = [*notes, "The rows are no conversations, so there is nothing to compare."]
        return Comparison(
            with_what=name, conversations=len(conversations), same=same, first=first, notes=notes
        )

    def _texts(self, ids: Sequence[int]) -> list[str]:
        decode = self.tokenizer.tokenizer.decode
        return [decode([id], skip_special_tokens=False) for id in ids]

    def _token(self, id: Any) -> str | None:
        return None if id is None else self.tokenizer.tokenizer.id_to_token(int(id))

    def _id(self, text: str) -> int | None:
        return self.tokenizer.tokenizer.token_to_id(text)
