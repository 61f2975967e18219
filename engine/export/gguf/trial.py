"""A vocabulary by trial: llama.cpp's ids against the tokenizer's own, on the probe corpus, name by name."""

from __future__ import annotations

import json
import logging
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...data.tokenizer_files import TokenizerFiles
from ...errors import WhetError
from ..probe_corpus import probe_texts, with_special_tokens
from .known_differences import KnownDifferences
from .native import run_native
from .pretokenizer import likely_names, other_names
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How one name did on the probe texts."""

    pre: str
    unexplained: list[str]
    """Texts on which llama.cpp's ids differ, and no known difference says why."""
    explained: Counter[str]
    """How many texts each known difference covers."""


def choose_pretokenizer(files: TokenizerFiles, vocabulary: Vocabulary) -> str:
    """The name under which llama.cpp tokenises as tokenizer.json does, on every probe text.

    Kinds without named rules are tried the same way, under "default". Texts that a known difference covers
    (known_differences.py) are logged with their number.

    Raises:
        WhetError: ``gguf.unsupported`` when every name differs on a text without a known cause.
    """
    best = try_names(files, vocabulary)
    if best.unexplained:
        count = len(best.unexplained)
        raise WhetError(
            "gguf.unsupported",
            f"No pre-tokenizer of llama.cpp splits text as this tokenizer does: the nearest, {best.pre!r}, "
            f"differs on {count} probe texts, e.g. {min(best.unexplained, key=len)!r}.",
            "Export the merged weights instead; models keep their tokenizer there.",
        )
    if best.explained:
        logger.warning("llama.cpp is known to tokenise these probe texts otherwise: %s", dict(best.explained))
    return best.pre


def try_names(files: TokenizerFiles, vocabulary: Vocabulary) -> Outcome:
    """The best name's outcome: the likely names one by one, and only then all the others."""
    tokenizer = files.load()
    texts, expected = expected_ids(tokenizer)
    known = KnownDifferences(tokenizer)

    with tempfile.TemporaryDirectory() as folder:
        path = write_vocabulary_file(Path(folder) / "vocabulary.gguf", vocabulary)

        def outcomes(names: tuple[str, ...]) -> list[Outcome]:
            answers = _ids_by_name(path, names, texts)
            return [
                Outcome(pre, *known.split(_differing(texts, expected, ids))) for pre, ids in answers.items()
            ]

        if vocabulary.model != "gpt2":
            return outcomes(("default",))[0]
        spec = json.loads(files.tokenizer_json.read_text(encoding="utf-8"))
        likely = likely_names(spec)
        tried: list[Outcome] = []
        for name in likely:
            tried += outcomes((name,))
            if tried and not tried[-1].unexplained:
                return tried[-1]
        tried += outcomes(other_names(spec, likely))
    return min(tried, key=lambda one: (len(one.unexplained), one.explained.total()))


def _differing(texts: list[str], expected: list[list[int]], ids: list[list[int]]) -> list[str]:
    return [text for text, wanted, given in zip(texts, expected, ids, strict=True) if wanted != given]


def expected_ids(tokenizer: Tokenizer) -> tuple[list[str], list[list[int]]]:
    """The probe texts and the ids that the tokenizer gives them."""
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    texts = with_special_tokens(probe_texts(), added)
    return texts, [one.ids for one in tokenizer.encode_batch(texts, add_special_tokens=False)]


def write_vocabulary_file(path: Path, vocabulary: Vocabulary) -> Path:
    """A GGUF without tensors: llama.cpp tokenises with it when loaded vocabulary-only."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    vocabulary.write(writer, "default")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def _ids_by_name(path: Path, names: tuple[str, ...], texts: list[str]) -> dict[str, list[list[int]]]:
    """llama.cpp's ids under each name that it knows."""
    if not names:
        return {}
    answer = run_native(
        "whet.engine.export.gguf.vocab_process", {"path": str(path), "texts": texts, "pre": list(names)}
    )
    return {run["pre"]: run["ids"] for run in answer["runs"] if "ids" in run}
