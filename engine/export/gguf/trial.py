"""A vocabulary by trial: llama.cpp's ids against the tokenizer's own, on the probe corpus, name by name."""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...data.tokenizer_files import TokenizerFiles
from ...errors import WhetError
from ..probe_corpus import probe_texts, with_special_tokens
from .known_differences import KnownDifferences
from .native import run_native
from .pretokenizer import likely_names, other_names
from .pruning import pruned
from .space_prefix import space_prefix
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer

logger = logging.getLogger(__name__)

JOINED = 16
"""Texts put together for a quick trial: llama.cpp compiles a rule's expressions anew for each text."""
MOST_OTHERS = 3
"""Names that fit a cut-down vocabulary and are tried on the whole one; rules of one kind differ in little."""


@dataclass(frozen=True)
class Outcome:
    """How one name did on the probe texts."""

    pre: str
    unexplained: list[str]
    """Texts on which llama.cpp's ids differ, and no known difference says why."""
    explained: Counter[str]
    """How many texts each known difference covers."""

    @property
    def badness(self) -> tuple[int, int]:
        return len(self.unexplained), self.explained.total()


def choose_pretokenizer(
    files: TokenizerFiles, vocabulary: Vocabulary, tokenizer: Tokenizer | None = None
) -> str:
    """The name under which llama.cpp tokenises as tokenizer.json does, on every probe text.

    Kinds without named rules are tried the same way, under "default". Texts that a known difference covers
    (known_differences.py) are logged with their number. ``tokenizer`` may be given when loaded already.

    Raises:
        WhetError: ``gguf.unsupported`` when every name differs on a text without a known cause.
    """
    best = try_names(files, vocabulary, tokenizer)
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


def try_names(files: TokenizerFiles, vocabulary: Vocabulary, tokenizer: Tokenizer | None = None) -> Outcome:
    """The best name's outcome: the likely names one by one, and only then those a quick trial favours."""
    tokenizer = tokenizer or files.load()
    lead = space_prefix(tokenizer, files).lead if vocabulary.model == "llama" else ""
    trial = Trial(tokenizer, vocabulary, probe_forms(tokenizer, lead))
    if vocabulary.model != "gpt2":
        return trial.of(("default",))[0]
    spec = files.spec()
    likely = likely_names(spec)
    best = _first_exact(trial, likely)
    if best is None or best.unexplained:
        other = _first_exact(trial, _favoured(spec, likely))
        best = min((one for one in (best, other) if one is not None), key=lambda one: one.badness)
    return best


def _first_exact(trial: Trial, names: tuple[str, ...]) -> Outcome | None:
    """The first name without unexplained differences, otherwise the best of them."""
    tried: list[Outcome] = []
    for name in names:
        tried += trial.of((name,))
        if tried and not tried[-1].unexplained:
            return tried[-1]
    return min(tried, key=lambda one: one.badness, default=None)


def _favoured(spec: dict[str, Any], tried: tuple[str, ...]) -> tuple[str, ...]:
    """Names not tried yet, the best first, by a trial on a cut-down vocabulary."""
    tokenizer, vocabulary = pruned(spec)
    texts = probe_texts()
    joined = ["\n".join(texts[at : at + JOINED]) for at in range(0, len(texts), JOINED)]
    outcomes = Trial(tokenizer, vocabulary, joined).of(other_names(spec, tried))
    ranked = sorted(outcomes, key=lambda one: one.badness)
    exact = [one for one in ranked if not one.unexplained] or ranked[:1]
    return tuple(one.pre for one in exact[:MOST_OTHERS])


class Trial:
    """Both sides' ids of the same texts."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: Vocabulary, texts: list[str]) -> None:
        self.texts, self.vocabulary = texts, vocabulary
        self.expected = [one.ids for one in tokenizer.encode_batch(texts, add_special_tokens=False)]
        self.known = KnownDifferences(tokenizer, vocabulary.add_space_prefix is not False)

    def of(self, names: tuple[str, ...]) -> list[Outcome]:
        """One outcome for each name that llama.cpp knows."""
        with tempfile.TemporaryDirectory() as folder:
            path = write_vocabulary_file(Path(folder) / "vocabulary.gguf", self.vocabulary)
            request = {"path": str(path), "texts": self.texts, "pre": list(names)}
            answer = run_native("whet.engine.export.gguf.vocab_process", request)
        runs = [run for run in answer["runs"] if "ids" in run]
        return [Outcome(run["pre"], *self.known.split(self._differing(run["ids"]))) for run in runs]

    def _differing(self, ids: list[list[int]]) -> list[str]:
        both = zip(self.texts, self.expected, ids, strict=True)
        return [text for text, wanted, given in both if wanted != given]


def probe_forms(tokenizer: Tokenizer, lead: str = "") -> list[str]:
    """The probe texts and forms with the tokenizer's added tokens, each behind ``lead``."""
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    return [lead + text for text in with_special_tokens(probe_texts(), added)]


def write_vocabulary_file(path: Path, vocabulary: Vocabulary) -> Path:
    """A GGUF without tensors: llama.cpp tokenises with it when loaded vocabulary-only."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    if vocabulary.name_mark:
        writer.add_name(vocabulary.name_mark)
    vocabulary.write(writer, "default")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path
