"""Run llama.cpp's own converter on model folders, in a process of its own.

argv: ``vendor/llama.cpp`` of llama-cpp-python's sources. stdin: JSON list of [model folder, file to write].
stdout: JSON list with null or what went wrong, for each.

The converter knows a tokenizer by the hash of what it makes of one text, and refuses all others; a tiny one
is made known here, and where a family wants a SentencePiece file, the byte-level vocabulary is read instead.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any


def upstream(vendor: Path, jobs: list[tuple[Path, Path]]) -> list[str | None]:
    """Convert each (model, out) to 16 bits; None, or why there is no file."""
    request = json.dumps([[str(model), str(out)] for model, out in jobs])
    command = [sys.executable, "-P", __file__, str(vendor)]
    done = subprocess.run(command, input=request, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    answers: list[str | None] = json.loads(done.stdout.splitlines()[-1])
    return answers


def main(vendor: str) -> None:
    sys.path.insert(0, vendor)
    import convert_hf_to_gguf  # type: ignore[import-not-found]
    from conversion import base, bert, gemma, phi  # type: ignore[import-not-found]

    def known(self: Any, tokenizer: Any) -> str:
        return "llama-bpe"

    base.TextModel.get_vocab_base_pre = known
    for family in (gemma.GemmaModel, gemma.Gemma2Model, gemma.Gemma3Model, phi.Phi3MiniModel):
        family.set_vocab = byte_level_too(family.set_vocab)
    # It imports protobuf, which nothing here needs otherwise.
    bert.BertModel._xlmroberta_set_vocab = without_vocabulary
    logging.disable()
    print(json.dumps([convert(convert_hf_to_gguf, model, out) for model, out in json.load(sys.stdin)]))


def without_vocabulary(self: Any) -> None:
    """Tensors and hyperparameters only."""


def byte_level_too(sentencepiece: Any) -> Any:
    """A family's own reading of the vocabulary where there is a SentencePiece file."""

    def set_vocab(self: Any) -> None:
        if (self.dir_model / "tokenizer.model").is_file():
            sentencepiece(self)
        else:
            self._set_vocab_gpt2()

    return set_vocab


def convert(converter: Any, model: str, out: str) -> str | None:
    sys.argv = ["convert", model, "--outfile", out, "--outtype", "f16", "--model-name", "m"]
    try:
        converter.main()
    # Whatever a foreign program raises is what the table says of the case.
    except (Exception, SystemExit) as error:
        return f"{type(error).__name__}: {error}"
    return None


if __name__ == "__main__":
    main(sys.argv[1])
