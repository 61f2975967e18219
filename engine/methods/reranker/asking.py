"""Rerankers that answer yes or no: how Qwen3-Reranker and its like are asked, and which folder is one. Light.

The score is the logit of "yes" less that of "no" where the answer would begin. The question is written by a
chat template over the roles ``query`` and ``document``, which sentence-transformers fills and which is saved
with the model, so that plain ``CrossEncoder`` asks alike.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ...data.tokenizer_files import TokenizerFiles
from ...errors import WhetError
from ...models.sentence_folder import answers

if TYPE_CHECKING:
    from ...recipe import Recipe
    from .section import RerankerSection

YES, NO = "yes", "no"
SYSTEM = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)
BEFORE = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n<Instruct>: "
AFTER = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
CAUSAL = "ForCausalLM"


def written(query: str, document: str, instruction: str) -> str:
    """A pair as the model reads it, for counting and showing; :func:`template` writes the same."""
    return f"{BEFORE}{instruction}\n<Query>: {query}\n<Document>: {document}{AFTER}"


def template(instruction: str) -> str:
    """The chat template that writes a pair; a system message takes the instruction's place."""
    role = '{{{{ messages | selectattr("role", "eq", "{}") | map(attribute="content") | first }}}}'
    said = (
        '{% set given = messages | selectattr("role", "eq", "system") | map(attribute="content") | list %}'
        f"{BEFORE}{{{{ given[0] if given else {json.dumps(instruction)} }}}}\n"
    )
    # A line break at a template's very end would be dropped, so what follows is an expression.
    end = f"{{{{ {json.dumps(AFTER)} }}}}"
    return f"{said}<Query>: {role.format('query')}\n<Document>: {role.format('document')}{end}"


def asks(section: RerankerSection, folder: Path, name: str) -> bool:
    """Whether the answer's head is kept: as asked, else for a causal language model that says it is a
    reranker, by its modules or by its name."""
    if section.head != "auto":
        return section.head == "yes_no"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    classes = config.get("architectures") or [""]
    return str(classes[0]).endswith(CAUSAL) and (answers(folder) or "reranker" in name.lower())


def wrapping(recipe: Recipe, folder: Path) -> Callable[[str, str], str] | None:
    """What writes a pair of a recipe; None where query and document go in as they are."""
    section = recipe.method
    if section.kind != "reranker" or not asks(section, folder, recipe.model.name):
        return None
    instruction = section.instruction
    return lambda query, document: written(query, document, instruction)


def answer_ids(folder: Path) -> tuple[int, int]:
    """Ids of "yes" and "no". Raises WhetError ``reranker.head`` where they are no tokens of the model."""
    tokenizer = TokenizerFiles.read(folder).load()
    yes, no = tokenizer.token_to_id(YES), tokenizer.token_to_id(NO)
    if yes is None or no is None:
        raise WhetError(
            "reranker.head",
            f"method.head=yes_no reads the logits of {YES!r} and {NO!r}, which are no tokens of this model.",
            "Set method.head=score, which starts a head of one score.",
        )
    return yes, no
