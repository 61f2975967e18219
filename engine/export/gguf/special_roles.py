"""Which ids play a special role, and what a tokenizer puts around a text: found by encoding. Light."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...data.chat_templates.renderer import Renderer
from ...data.tokenizer_files import TokenizerFiles
from ...errors import WhetError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ROLE_KEYS = {
    "bos": "bos", "eos": "eos", "eot": "eot", "eom": "eom", "pad": "padding", "unk": "unknown",
    "sep": "seperator", "mask": "mask",
}  # fmt: skip
"""Role -> the word in ``tokenizer.ggml.{}_token_id``; "seperator" is the format's spelling."""


@dataclass(frozen=True)
class Around:
    """What encoding puts in front of a text and after it."""

    add_bos: bool
    add_eos: bool
    roles: dict[str, int]
    """Ids of the tokens in front and behind, by the role llama.cpp takes them from."""


def added_around_text(tokenizer: Tokenizer, files: TokenizerFiles, kind: str) -> Around:
    """Whether BOS and EOS are put around plain text: found by encoding, unless the configuration says it.

    Encoders begin with their "bos" whatever its name ([CLS], <s>); WordPiece ones end with "sep".

    Raises:
        WhetError: ``gguf.unsupported`` when llama.cpp's frame for this kind is not the tokenizer's.
    """
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    full = tokenizer.encode("a", add_special_tokens=True).ids
    front = full[: full.index(bare[0])] if bare and bare[0] in full else []
    back = full[len(front) + len(bare) :]
    if kind == "bert":
        return _wordpiece_frame(tokenizer, front, back)
    if kind == "t5":
        if len(front) > 1 or len(back) > 1:
            raise _frame_refused(tokenizer, front, back)
        roles = dict(zip(("bos", "eos"), (front, back), strict=True))
        return Around(bool(front), bool(back), {role: ids[0] for role, ids in roles.items() if ids})
    bos, eos = (None if t is None else tokenizer.token_to_id(t) for t in (files.bos_token, files.eos_token))
    add_bos = bool(front) and front[0] == bos
    return Around(
        add_bos if files.add_bos_token is None else files.add_bos_token, bool(back) and back[-1] == eos, {}
    )


def _wordpiece_frame(tokenizer: Tokenizer, front: list[int], back: list[int]) -> Around:
    """llama.cpp always puts one token in front of WordPiece text and one after it."""
    if len(front) != 1 or len(back) != 1:
        raise _frame_refused(tokenizer, front, back)
    return Around(True, False, {"bos": front[0], "sep": back[0]})


def _frame_refused(tokenizer: Tokenizer, front: list[int], back: list[int]) -> WhetError:
    before, after = ([tokenizer.id_to_token(id) for id in ids] for ids in (front, back))
    return WhetError(
        "gguf.unsupported",
        f"This tokenizer puts {before} before a text and {after} after it; llama.cpp puts one token on "
        "each side of an encoder's text.",
        "Export the merged weights instead; models keep their tokenizer there.",
    )


def special_ids(tokenizer: Tokenizer, files: TokenizerFiles, around: Around) -> dict[str, int]:
    """Ids by role. EOT ends a turn of the chat template, EOM is a further id that generation stops at."""
    roles = {
        "bos": files.bos_token,
        "eos": files.eos_token,
        "pad": files.pad_token,
        "unk": files.unk_token,
        "mask": files.mask_token,
    }
    found = {role: tokenizer.token_to_id(text) for role, text in roles.items() if text is not None}
    ids = {role: id for role, id in found.items() if id is not None} | around.roles
    end = _end_of_turn(tokenizer, files)
    stops = [id for id in (end, *files.generation_eos_ids) if id is not None and id != ids.get("eos")]
    return ids | dict(zip(("eot", "eom"), dict.fromkeys(stops), strict=False))


def _end_of_turn(tokenizer: Tokenizer, files: TokenizerFiles) -> int | None:
    if files.chat_template is None:
        return None
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    renderer = Renderer(files.chat_template, files.bos_token, files.eos_token, added)
    try:
        end = renderer.end_token
    except WhetError as error:
        if error.code != "template.render":
            raise
        return None  # The template wants another conversation than a question and an answer.
    return tokenizer.token_to_id(end) if end is not None else None
