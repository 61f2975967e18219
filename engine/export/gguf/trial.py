"""The pre-tokenizer's name by trial: llama.cpp's ids against the tokenizer's own, on the probe corpus."""

from __future__ import annotations

import json
import logging
import tempfile
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...data.tokenizer_files import TokenizerFiles
from ...errors import WhetError
from ..probe_corpus import TOLERATED, probe_texts, with_special_tokens
from .native import run_native
from .pretokenizer import likely_names, other_names
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How one name did: the texts on which llama.cpp's ids differ."""

    pre: str
    differing: list[str]


def choose_pretokenizer(files: TokenizerFiles, vocabulary: Vocabulary) -> str:
    """The name under which llama.cpp tokenises as tokenizer.json does.

    Raises:
        WhetError: ``gguf.unsupported`` when every name differs on more than one probe text in two hundred.
    """
    texts, expected = expected_ids(files)
    with tempfile.TemporaryDirectory() as folder:
        path = write_vocabulary_file(Path(folder) / "vocabulary.gguf", vocabulary)
        if vocabulary.model == "gpt2":
            spec = json.loads(files.tokenizer_json.read_text(encoding="utf-8"))
            names = likely_names(spec)
            outcomes = _try(path, names, texts, expected)
            if all(one.differing for one in outcomes):
                outcomes += _try(path, other_names(spec, names), texts, expected)
        else:
            outcomes = _try(path, ("default",), texts, expected)
    best = min(outcomes, key=lambda one: len(one.differing))
    if len(best.differing) > TOLERATED * len(texts):
        raise WhetError(
            "gguf.unsupported",
            f"No pre-tokenizer of llama.cpp splits text as this tokenizer does: the nearest, {best.pre!r}, "
            f"differs on {len(best.differing)} of {len(texts)} probe texts, e.g. {best.differing[0]!r}.",
            "Export the merged weights instead; models keep their tokenizer there.",
        )
    if best.differing:
        logger.warning("Pre-tokenizer %s differs on %r.", best.pre, best.differing)
    return best.pre


def expected_ids(files: TokenizerFiles) -> tuple[list[str], list[list[int]]]:
    """The probe texts and their ids, without those the tokenizer composes (NFC): llama.cpp composes none."""
    tokenizer = files.load()
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    texts = [text for text in with_special_tokens(probe_texts(), added) if not composed(tokenizer, text)]
    return texts, [one.ids for one in tokenizer.encode_batch(texts, add_special_tokens=False)]


def composed(tokenizer: Tokenizer, text: str) -> bool:
    """Whether the normalizer brings ``text`` into Unicode's composed form (NFC) and does nothing else."""
    whole = unicodedata.normalize("NFC", text)
    normalizer = tokenizer.normalizer
    if whole == text or normalizer is None:
        return False
    # SentencePiece writes spaces as ▁ and puts one in front.
    seen, wanted = (one.replace(" ", "▁") for one in (normalizer.normalize_str(text), whole))
    return bool(seen.removeprefix("▁") == wanted.removeprefix("▁"))


def write_vocabulary_file(path: Path, vocabulary: Vocabulary) -> Path:
    """A GGUF without tensors: llama.cpp tokenises with it when loaded vocabulary-only."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    vocabulary.write(writer, "default")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def _try(path: Path, names: tuple[str, ...], texts: list[str], expected: list[list[int]]) -> list[Outcome]:
    if not names:
        return []
    answer = run_native(
        "whet.engine.export.gguf.vocab_process", {"path": str(path), "texts": texts, "pre": list(names)}
    )
    return [
        Outcome(run["pre"], [t for t, ids, e in zip(texts, run["ids"], expected, strict=True) if ids != e])
        for run in answer["runs"]
        if "ids" in run
    ]
