"""What embedding models of every family have: pooling, dense layers behind it, no head. Light."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ....data.tokenizer_files import TokenizerFiles
from ....errors import WhetError
from ....models.sentence_folder import SentenceFolder, is_embedding_model, read_sentence_folder
from ..descriptor import Architecture, Spelling, Tensor
from ..model_config import ModelConfig
from ..special_roles import added_around_text

if TYPE_CHECKING:
    from gguf import GGUFWriter

    from ..vocabulary import Vocabulary

MOST_DENSE = 2
"""llama.cpp has room for ``dense_2`` and ``dense_3``."""
BARE_NAMES = (
    ("layers.", "model.layers."),
    ("embed_tokens.", "model.embed_tokens."),
    ("norm.", "model.norm."),
)
"""Without a head, transformers saves a decoder's tensors without the ``model.`` in front."""
DENSE = tuple(
    Tensor(f"dense_{number}.weight", (Spelling(f"{number}_Dense.linear.weight"),), required=False)
    for number in range(2, 2 + MOST_DENSE)
)


def sentence_of(config: ModelConfig) -> SentenceFolder:
    """Of a config that is known to have a folder."""
    assert config.folder is not None
    return read_sentence_folder(config.folder)


def write_pooling(writer: GGUFWriter, config: ModelConfig) -> None:
    from gguf import PoolingType

    writer.add_pooling_type(PoolingType[sentence_of(config).pooling.upper()])


def write_dense(writer: GGUFWriter, config: ModelConfig) -> None:
    for number, dense in enumerate(sentence_of(config).dense, 2):
        writer.add_dense_features_dims(f"dense_{number}", dense.inputs, dense.outputs)


def bidirectional(writer: GGUFWriter, config: ModelConfig) -> None:
    writer.add_causal_attention(False)


def pools_otherwise(config: ModelConfig) -> str | None:
    """Why the folder's modules, or what it does to a text before the tokenizer, have no place in a GGUF."""
    if config.folder is None:
        return None
    try:
        sentence = read_sentence_folder(config.folder)
    except WhetError as error:
        return error.message
    if sentence.lowercase and not _tokenizer_lowers(config.folder / "tokenizer.json"):
        return "The text is lowercased in front of the tokenizer (do_lower_case), which a GGUF cannot say."
    return None


def _tokenizer_lowers(path: Any) -> bool:
    normalizer = json.loads(path.read_text(encoding="utf-8")).get("normalizer") or {}
    steps = [normalizer, *normalizer.get("normalizers", ())]
    return any(step.get("type") == "Lowercase" or step.get("lowercase") for step in steps)


def no_dense(config: ModelConfig) -> str | None:
    """For architectures whose dense layers llama.cpp does not read."""
    if config.folder is None or not sentence_of(config).dense:
        return None
    return "llama.cpp computes no dense layer behind the pooling of this architecture (a Dense module)."


def dense_otherwise(config: ModelConfig) -> str | None:
    """Dense layers that llama.cpp would compute as something else."""
    if config.folder is None:
        return None
    layers = sentence_of(config).dense
    if any(one.bias or one.activation != "Identity" for one in layers):
        return "llama.cpp multiplies by dense layers only: these have a bias or an activation."
    names = [one.folder.name for one in layers]
    width = int(config["hidden_size"])
    fits = not layers or (layers[0].inputs == layers[-1].outputs == width)
    if not fits or names != [f"{number}_Dense" for number in range(2, 2 + len(layers))] or len(layers) == 1:
        return (
            f"llama.cpp computes two dense layers, 2_Dense and 3_Dense, from width {width} to {width}; this "
            f"model has {', '.join(names)}."
        )
    return None


def framed(vocabulary: Vocabulary, config: ModelConfig) -> Vocabulary:
    """The tokens around a text as encoding shows them, and no chat template.

    Decoders that embed end a text with a token of their own choice, which is the one that is pooled, and
    encoders with byte-level tokenizers have CLS and SEP where others have BOS and EOS.
    """
    assert config.folder is not None
    if vocabulary.model in ("gpt2", "llama"):
        files = TokenizerFiles.read(config.folder)
        around = added_around_text(files.load(), files, "t5")  # one token on each side at most, as there
        ids = vocabulary.ids | around.roles
        vocabulary = replace(vocabulary, add_bos=around.add_bos, add_eos=around.add_eos, ids=ids)
    return replace(vocabulary, chat_template=None)


def attends_both_ways(config: ModelConfig) -> str | None:
    """Decoders turned into encoders, by a switch or by code of their own."""
    if not config.get("is_causal", True) or config.get("use_bidirectional_attention"):
        return "llama.cpp attends backwards only in this architecture, this model both ways (is_causal)."
    if config.get("auto_map"):
        return "The model comes with code of its own (auto_map), which may compute something else."
    return None


def as_embedding(decoder: Architecture) -> Architecture:
    """The same decoder without its head, pooled: for folders that sentence-transformers saved."""
    return replace(
        decoder,
        applies=lambda config: config.folder is not None and is_embedding_model(config.folder),
        head="none",
        refusals=(pools_otherwise, no_dense, attends_both_ways, *decoder.refusals),
        keys=(*decoder.keys, write_pooling),
        aliases=(*decoder.aliases, *BARE_NAMES),
        ignored=(*decoder.ignored, "lm_head.*"),
        vocabulary=framed,
    )
