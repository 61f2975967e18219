"""Tokenise with llama.cpp. Request: path, texts, pre (names to try, or null for the file's own)."""

from __future__ import annotations

from typing import Any

from ...errors import WhetError
from .native import LlamaLog, Progress, import_llama_cpp


def main(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Answers with ``runs``: one entry a name, its ids per text and what became of the special tokens.

    A name that llama.cpp does not know gives an ``error`` in its entry instead. Ids are those of
    ``add_special=False, parse_special=True``: special tokens written in a text are recognised, none is added.
    """
    import_llama_cpp()
    log = LlamaLog()
    names: list[str | None] = request["pre"] or [None]
    return {"runs": [_tokenize(request["path"], request["texts"], name, log) for name in names]}


def _tokenize(path: str, texts: list[str], pre: str | None, log: LlamaLog) -> dict[str, Any]:
    import llama_cpp

    from .llama import Llama

    overrides: dict[str, bool | int | float | str] | None = {"tokenizer.ggml.pre": pre} if pre else None
    log.lines.clear()
    try:
        llama = Llama(path, vocab_only=True, kv_overrides=overrides, verbose=True)
    except ValueError as error:
        if pre is None:
            raise WhetError("gguf.unreadable", f"llama.cpp cannot load {path}: {log.reason()}") from error
        return {"pre": pre, "error": log.reason()}
    vocab = llama_cpp.llama_model_get_vocab(llama.model)
    assert vocab is not None
    count = llama.n_vocab()
    return {
        "pre": pre,
        "ids": [llama.tokenize(text.encode(), add_bos=False, special=True) for text in texts],
        "n_vocab": count,
        "bos": llama_cpp.llama_vocab_bos(vocab),
        "eos": llama_cpp.llama_vocab_eos(vocab),
        "eot": llama_cpp.llama_vocab_eot(vocab),
        "pad": llama_cpp.llama_vocab_pad(vocab),
        "add_bos": llama_cpp.llama_vocab_get_add_bos(vocab),
        "add_eos": llama_cpp.llama_vocab_get_add_eos(vocab),
        "end_of_generation": [i for i in range(count) if llama_cpp.llama_vocab_is_eog(vocab, i)],
    }
