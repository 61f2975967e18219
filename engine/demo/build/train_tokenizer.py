"""Trains the demo's byte-level BPE tokenizer, shaped like Llama 3's, and saves it as transformers does."""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from whet.engine.demo import MODEL_DIR
from whet.engine.demo.build.corpus import documents
from whet.engine.demo.build.dataset import first_rows

BOS, END_OF_TEXT, END_OF_TURN = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"
HEADER_START, HEADER_END, PAD = "<|start_header_id|>", "<|end_header_id|>", "<|finetune_right_pad_id|>"
SPECIAL_TOKENS = [BOS, END_OF_TEXT, HEADER_START, HEADER_END, END_OF_TURN, PAD]
VOCABULARY = 1536
"""Six times 256, special tokens included."""

# Llama 3's rule for cutting text: contractions, words, up to three digits, punctuation, line ends, spaces.
# GGUF names this rule `llama-bpe`, so exported files need no rule of their own.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def training_texts(seed: int, count: int = 20_000) -> Iterable[str]:
    """Text of the corpus and of the training questions, so that neither is spelled letter by letter."""
    for document in islice(documents(seed), count):
        if isinstance(document, str):
            yield document
        else:
            yield from (message["content"] for message in document)
    for row in first_rows():
        yield from (message["content"] for message in row)


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of exactly `VOCABULARY` ids; special tokens come last. Plain text gets a BOS."""
    core = Tokenizer(models.BPE(ignore_merges=True))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    ))  # fmt: skip
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    core.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, core.token_to_id(BOS))]
            ),
        ]
    )
    if core.get_vocab_size() != VOCABULARY:
        raise ValueError(
            f"the corpus gives {core.get_vocab_size()} ids, not {VOCABULARY}: train on more text"
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=END_OF_TURN,
        pad_token=PAD,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = (MODEL_DIR / "chat_template.jinja").read_text(encoding="utf-8")
    return tokenizer


def write(folder: Path, seed: int) -> PreTrainedTokenizerFast:
    """Train and save into `folder`: tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    tokenizer = train_tokenizer(training_texts(seed))
    tokenizer.save_pretrained(folder)
    return tokenizer
