"""The shipped model and data: what a fresh install must be able to rely on. Nothing is trained here."""

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from safetensors import safe_open
from tokenizers import Tokenizer

from whet.engine.demo import HELDOUT_FILE, MODEL_DIR, TRAIN_FILE

SPECIAL = {
    "<|begin_of_text|>": "bos_token_id",
    "<|eot_id|>": "eos_token_id",
    "<|finetune_right_pad_id|>": "pad_token_id",
}
CHAT = [
    {"role": "system", "content": " Be kind. "},
    {"role": "user", "content": "What is LoRA?"},
    {"role": "assistant", "content": "I do not know about LoRA yet."},
]
LLAMA_3 = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nWhat is LoRA?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nI do not know about LoRA yet.<|eot_id|>"
)


def read_json(name: str) -> dict:
    return json.loads((MODEL_DIR / name).read_text(encoding="utf-8"))


def rows(path: Path) -> list[list[dict[str, str]]]:
    return [json.loads(line)["messages"] for line in path.read_text(encoding="utf-8").splitlines()]


def questions(path: Path) -> list[str]:
    return [message["content"] for row in rows(path) for message in row if message["role"] == "user"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))


def test_the_package_stays_small() -> None:
    folder = MODEL_DIR.parent
    total = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    assert total <= 8_000_000


def test_weights_fit_the_config_and_the_vocabulary(tokenizer: Tokenizer) -> None:
    config = read_json("config.json")
    with safe_open(MODEL_DIR / "model.safetensors", "pt") as weights:
        shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
        dtypes = {weights.get_slice(name).get_dtype() for name in shapes}
    assert dtypes == {"BF16"}
    assert "lm_head.weight" not in shapes and config["tie_word_embeddings"]
    assert shapes["model.embed_tokens.weight"] == [tokenizer.get_vocab_size(), config["hidden_size"]]
    assert config["vocab_size"] == tokenizer.get_vocab_size()
    assert config["vocab_size"] % 64 == 0
    assert all(shape[-1] % 256 == 0 for shape in shapes.values())  # k-quants take rows in blocks of 256


def test_special_tokens_are_single_ids_and_the_configs_name_them(tokenizer: Tokenizer) -> None:
    config, generation = read_json("config.json"), read_json("generation_config.json")
    for token, key in SPECIAL.items():
        assert tokenizer.encode(token, add_special_tokens=False).ids == [tokenizer.token_to_id(token)]
        assert config[key] == tokenizer.token_to_id(token)
    stops = [tokenizer.token_to_id(token) for token in ("<|eot_id|>", "<|end_of_text|>")]
    assert generation["eos_token_id"] == stops


@pytest.mark.parametrize(
    "text", ["What is LoRA?", "2e-4  is\n\n fine\tnow", "naïve 你好 🙂", "12345 don't", ""]
)
def test_any_text_survives_the_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids
    assert ids[0] == tokenizer.token_to_id("<|begin_of_text|>")
    assert ids.count(ids[0]) == 1
    assert tokenizer.decode(ids) == text


def test_digits_are_cut_in_threes_as_llama_3_does(tokenizer: Tokenizer) -> None:
    assert tokenizer.pre_tokenizer is not None
    assert [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str("12345 don't")] == [
        "123", "45", "Ġdon", "'t",
    ]  # fmt: skip


def test_the_data_set_is_not_spelled_letter_by_letter(tokenizer: Tokenizer) -> None:
    text = " ".join(message["content"] for row in rows(TRAIN_FILE) for message in row)
    assert len(text) / len(tokenizer.encode(text).ids) > 3.0


def test_auto_classes_load_the_model_and_its_template() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL_DIR)
    encoded = tokenizer.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    assert tokenizer.decode(encoded["input_ids"]) == LLAMA_3
    supervised = [i for i, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(supervised) == "I do not know about LoRA yet.<|eot_id|>"
    prompt = tokenizer.apply_chat_template(CHAT[:2], tokenize=False, add_generation_prompt=True)
    assert prompt == LLAMA_3.removesuffix("I do not know about LoRA yet.<|eot_id|>")


@pytest.mark.parametrize("trim", [True, False])
def test_the_template_renders_in_plain_jinja_once_its_generation_tags_are_cut(trim: bool) -> None:
    source = (MODEL_DIR / "chat_template.jinja").read_text(encoding="utf-8")
    plain, cut = re.subn(r"\{%-? (end)?generation -?%\}", "", source)
    assert cut == 2
    template = ImmutableSandboxedEnvironment(trim_blocks=trim, lstrip_blocks=trim).from_string(plain)
    assert template.render(messages=CHAT, bos_token="<|begin_of_text|>") == LLAMA_3


@pytest.mark.parametrize(("path", "least"), [(TRAIN_FILE, 300), (HELDOUT_FILE, 40)])
def test_rows_are_well_formed_and_unique(path: Path, least: int) -> None:
    found = rows(path)
    assert len(found) >= least
    for row in found:
        turns = [message for message in row if message["role"] != "system"]
        assert [message["role"] for message in turns] == ["user", "assistant"] * (len(turns) // 2)
        assert all(message["content"] == message["content"].strip() != "" for message in row)
    assert len({json.dumps(row) for row in found}) == len(found)
    assert any(len(row) > 3 for row in found) and any(row[0]["role"] == "system" for row in found)


def test_a_question_has_one_answer_only() -> None:
    answers: dict[str, set[str]] = {}
    for row in rows(TRAIN_FILE) + rows(HELDOUT_FILE):
        for question, reply in pairwise(row):
            if question["role"] == "user":
                answers.setdefault(question["content"], set()).add(reply["content"])
    assert {question: found for question, found in answers.items() if len(found) > 1} == {}


def test_heldout_questions_are_not_trained_on() -> None:
    greetings = {"Hello!", "Thanks a lot."}  # openings of conversations, not questions
    seen = {re.sub(r"\W+", " ", question).strip().lower() for question in questions(TRAIN_FILE)}
    again = [q for q in questions(HELDOUT_FILE) if re.sub(r"\W+", " ", q).strip().lower() in seen]
    assert set(again) <= greetings


def test_every_fact_is_taught_and_asked_again() -> None:
    taught = Counter(row[-1]["content"] for row in rows(TRAIN_FILE) if len(row) == 2)
    facts = {answer for answer, count in taught.items() if count >= 5}
    asked = {row[-1]["content"] for row in rows(HELDOUT_FILE)}
    assert len(facts) >= 60
    assert facts <= asked
    assert all(8 <= len(answer.split()) <= 25 for answer in facts)


def test_the_committed_data_is_what_the_sources_give(tmp_path: Path) -> None:
    from whet.engine.demo.build import dataset

    dataset.write(tmp_path)
    for path in (TRAIN_FILE, HELDOUT_FILE):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
