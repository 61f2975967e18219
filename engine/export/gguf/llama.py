"""llama-cpp-python's model, with the chat template of its file rendered here.

llama-cpp-python compiles every template of a file while it loads it, and Jinja computes what is constant in
one then: without bounds, as it renders it later. Imports llama_cpp: for the processes that hold a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import llama_cpp
from llama_cpp import llama_chat_format as forms

from ...data.chat_templates.renderer import Message, Renderer

TEMPLATE = "tokenizer.chat_template"
UNASKED = dict.fromkeys(("functions", "function_call", "tool_choice"))
"""What llama-cpp-python's chat completion gives a template beside messages and tools, here nothing."""


class Llama(llama_cpp.Llama):
    """As ``llama_cpp.Llama``, its chat completion included, but for who renders the file's template."""

    def __init__(self, path: str, **settings: Any) -> None:
        super().__init__(path, **settings)
        if self.chat_template is not None:
            self.chat_handler = forms.chat_formatter_to_chat_completion_handler(self._prompt)

    @property
    def metadata(self) -> dict[str, str]:
        """The file's, without its chat templates: ``llama_cpp.Llama`` sets it while it loads the file, and
        looks there for what to compile."""
        return self._metadata

    @metadata.setter
    def metadata(self, read: Mapping[str, str]) -> None:
        self.chat_template = read.get(TEMPLATE)
        self._metadata = {name: value for name, value in read.items() if not name.startswith(TEMPLATE)}

    @cached_property
    def renderer(self) -> Renderer:
        """Of the file's own template, which may be anybody's. Raises WhetError ``template.syntax``."""
        bos, eos = map(self._written, (self.token_bos(), self.token_eos()))
        return Renderer(self.chat_template or "", bos, eos)

    def render(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The text of a conversation in the template of a file that has one.

        Args:
            **variables: for the template, as chat completion takes them, ``tools`` among them.

        Raises:
            WhetError: ``template.syntax``, ``template.render``, ``template.costly``.
        """
        given = UNASKED | variables
        tools = given.pop("tools", None)
        return self.renderer.render_as_given(messages, add_generation_prompt, tools, given)

    def _prompt(self, *, messages: Sequence[Message], **variables: Any) -> forms.ChatFormatterResponse:
        end = self.renderer.eos_token
        prompt = self.render(messages, **variables)
        return forms.ChatFormatterResponse(prompt=prompt, stop=[end] if end else [], added_special=True)

    def _written(self, token: int) -> str:
        """A token as the vocabulary writes it; nothing for -1, which is no token."""
        vocab = llama_cpp.llama_model_get_vocab(self.model)
        return "" if token < 0 else llama_cpp.llama_vocab_get_text(vocab, token).decode()
