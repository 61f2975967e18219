"""What a model directory says about its tokenizer, read without transformers."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import WhetError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NO_LIMIT = 10**9
"""Above this, `model_max_length` is transformers' way to say that nothing is known."""


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer's files and the facts in its configuration."""

    tokenizer_json: Path
    bos_token: str | None = None
    eos_token: str | None = None
    pad_token: str | None = None
    unk_token: str | None = None
    mask_token: str | None = None
    chat_template: str | None = None
    model_max_length: int | None = None
    add_bos_token: bool | None = None
    """None when the configuration is silent; then the post-processor of tokenizer.json decides."""
    added_tokens: tuple[tuple[int, str, bool], ...] = ()
    """Id, text and `special` of the tokens named in the configuration, by id."""
    generation_eos_ids: tuple[int, ...] = ()

    @classmethod
    def read(cls, model_dir: Path) -> TokenizerFiles:
        """Read tokenizer.json's neighbours: configuration, special tokens, generation_config, template.

        Raises:
            WhetError: ``tokenizer.missing`` without any tokenizer; ``tokenizer.slow`` with only a
                SentencePiece or vocabulary file; ``tokenizer.config`` for a broken configuration file.
        """
        path = model_dir / "tokenizer.json"
        if not path.is_file():
            raise _no_tokenizer_json(model_dir)
        try:
            return cls._read(path)
        # Whatever a foreign file says instead of a text or a number shows itself where that is used.
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise WhetError(
                "tokenizer.config",
                f"The files beside {path} say what no tokenizer's do: {type(error).__name__}: {error}",
                "Download the model again.",
            ) from error

    @classmethod
    def _read(cls, path: Path) -> TokenizerFiles:
        model_dir = path.parent
        config = _json(model_dir / "tokenizer_config.json")
        names = {**_json(model_dir / "special_tokens_map.json"), **config}
        explicit = [config[key] for key in ("add_bos_token", "add_eos_token") if config.get(key) is not None]
        added = config.get("added_tokens_decoder") or {}
        limit = config.get("model_max_length")
        eos = _json(model_dir / "generation_config.json").get("eos_token_id")
        return cls(
            tokenizer_json=path,
            bos_token=_token(names.get("bos_token")),
            eos_token=_token(names.get("eos_token")),
            pad_token=_token(names.get("pad_token")),
            unk_token=_token(names.get("unk_token")),
            mask_token=_token(names.get("mask_token")),
            chat_template=_template(model_dir, config),
            model_max_length=int(limit) if limit is not None and limit < NO_LIMIT else None,
            add_bos_token=bool(config.get("add_bos_token")) if explicit else None,
            added_tokens=tuple(
                (int(id), _readable(token["content"]), bool(token.get("special")))
                for id, token in sorted(added.items(), key=lambda item: int(item[0]))
            ),
            generation_eos_ids=tuple(
                map(int, eos if isinstance(eos, list) else [] if eos is None else [eos])
            ),
        )

    def load(self) -> Tokenizer:
        """The tokenizer as transformers would have it: with tokens that only the configuration names, and
        without truncation or padding.

        Raises:
            WhetError: ``tokenizer.broken`` when tokenizer.json cannot be read.
        """
        from tokenizers import AddedToken, Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(self.tokenizer_json))
            known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
            for _, text, special in self.added_tokens:
                if text not in known:
                    tokenizer.add_tokens([AddedToken(text, special=special, normalized=not special)])
            for token in (self.bos_token, self.eos_token, self.unk_token, self.pad_token):
                if token is not None and token not in known:
                    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        except Exception as error:  # the binding raises bare Exception
            raise _broken(self.tokenizer_json, error) from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def spec(self) -> dict[str, Any]:
        """What tokenizer.json says. Raises WhetError ``tokenizer.broken`` where it is no JSON object."""
        try:
            value = json.loads(self.tokenizer_json.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise _broken(self.tokenizer_json, error) from error
        if not isinstance(value, dict):
            raise _broken(self.tokenizer_json, f"it holds a {type(value).__name__}")
        return value

    def digest(self) -> str:
        """Hash of all that decides a text's ids: tokenizer.json's bytes and the configuration's facts."""
        total = hashlib.blake2b(self.tokenizer_json.read_bytes(), digest_size=16)
        facts = [self.bos_token, self.eos_token, self.add_bos_token, self.added_tokens]
        total.update(json.dumps(facts).encode())
        return total.hexdigest()


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise WhetError(
            "tokenizer.config", f"{path} is not valid JSON: {error}", "Download the model again."
        ) from error
    return value if isinstance(value, dict) else {}


def _token(value: Any) -> str | None:
    """A token's text; configurations write it as text or as an object."""
    text = value.get("content") if isinstance(value, dict) else value
    return _readable(text) if isinstance(text, str) and text else None


def _readable(text: str) -> str:
    """``text``; raises ValueError for halves of surrogate pairs, which JSON can hold and no tokenizer."""
    text.encode()
    return text


def _template(model_dir: Path, config: dict[str, Any]) -> str | None:
    """The default chat template: its own file wins over the configuration's field."""
    path = model_dir / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    value = config.get("chat_template") or _json(model_dir / "chat_template.json").get("chat_template")
    if isinstance(value, list):
        value = {one["name"]: one["template"] for one in value}
    if isinstance(value, dict):
        value = value.get("default")
    return _readable(value) if value else None


def _broken(path: Path, error: object) -> WhetError:
    return WhetError(
        "tokenizer.broken",
        f"{path} cannot be read: {error}",
        "Download the model again, or update the tokenizers package.",
    )


def _no_tokenizer_json(model_dir: Path) -> WhetError:
    kinds = ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
    slow = [name for name in kinds if (model_dir / name).is_file()]
    if slow:
        return WhetError(
            "tokenizer.slow",
            f"{model_dir} has {', '.join(slow)} but no tokenizer.json, so its rows cannot be tokenised yet.",
            "The training worker converts it; or save it once with transformers: "
            "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR).",
        )
    return WhetError(
        "tokenizer.missing",
        f"{model_dir} has no tokenizer (tokenizer.json).",
        "Use a model directory with its tokenizer files.",
    )
