"""Broken set-ups of the data phase: labels, lengths, begins and ends."""

from __future__ import annotations

from pathlib import Path

from faults.data_set_ups import (
    CHATML,
    LLAMA_3,
    LLAMA_3_TEMPLATE,
    chat,
    chatml,
    chats,
    edit,
    every,
    llama,
    look,
    model_under,
    rewritten,
)
from faults.harness import Fault, Looked

from whet.engine.findings import Finding
from whet.engine.recipe import Recipe

# --- D01


def no_label_between_tags(folder: Path) -> Looked:
    tagged = LLAMA_3_TEMPLATE.replace("{% endfor %}", "{% generation %}{% endgeneration %}{% endfor %}")
    return look(llama(folder, tagged), chats())


def questions_without_answers(folder: Path) -> Looked:
    return look(llama(folder), every(5, chats(), lambda row: {"messages": row["messages"][:1]}))


def drops_of_answers(folder: Path) -> Looked:
    """One digit is asked of a long text: next to nothing carries a label."""
    story = "The model reads rows and learns to answer. " * 28
    return look(llama(folder), [chat(f"{n} {story}", "7") for n in range(120)])


# --- D02, D03

LONG = "a small rank is enough " * 12
VERY_LONG = "a small rank is enough " * 150


def answers_behind_the_cut(folder: Path) -> Looked:
    rows = every(4, chats(), lambda row: chat(LONG + row["messages"][0]["content"], "Seven."))
    return look(llama(folder), rows, model__max_length=64)


def questions_longer_than_the_model(folder: Path) -> Looked:
    rows = every(10, chats(), lambda row: chat(VERY_LONG + row["messages"][0]["content"], "Seven."))
    return look(llama(folder), rows)


def a_length_for_another_data_set(folder: Path) -> Looked:
    """The question alone fills what is left of every row."""
    return look(llama(folder), chats(), model__max_length=8)


def answers_cut_in_two(folder: Path) -> Looked:
    rows = every(4, chats(), lambda row: chat(row["messages"][0]["content"], "It is " + LONG))
    return look(llama(folder), rows, model__max_length=64)


def answers_longer_than_the_model(folder: Path) -> Looked:
    rows = every(10, chats(), lambda row: chat(row["messages"][0]["content"], "It is " + VERY_LONG))
    return look(chatml(folder), rows)


# --- D04


def more_than_the_positions(folder: Path) -> Looked:
    return look(llama(folder), chats(), model__max_length=100_000)


def tokenizer_with_a_shorter_limit(folder: Path) -> Looked:
    rows = every(10, chats(), lambda row: chat(row["messages"][0]["content"], "It is " + LONG))
    return look(llama(folder, model_max_length=64), rows)


# --- D05, D06


def template_writes_bos_twice(folder: Path) -> Looked:
    return look(llama(folder, "{{ bos_token }}" + LLAMA_3_TEMPLATE), chats())


def rendered_texts_with_two_bos(folder: Path) -> Looked:
    texts = [f"The model read row {n} and then learnt to answer it well." for n in range(150)]
    twice = [{"text": "<|begin_of_text|><|begin_of_text|>" + text} for text in texts]
    return look(llama(folder), twice, rewritten(folder, [{"text": text} for text in texts]))


def written_template_without_bos(folder: Path) -> Looked:
    """A base model, and a template that somebody wrote into the recipe."""
    return look(llama(folder, None), chats(), data__template=LLAMA_3_TEMPLATE.removeprefix("{{ bos_token }}"))


def chosen_template_without_bos(folder: Path) -> Looked:
    model = model_under(
        folder, (*LLAMA_3, *CHATML), "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", None, {}
    )
    return look(model, chats(), data__template="chatml")


# --- D07, D17


def template_without_an_end(folder: Path) -> Looked:
    plain = (
        "{{ bos_token }}{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    return look(llama(folder, plain), chats())


def texts_without_eos(folder: Path) -> Looked:
    model = chatml(folder, None, eos_token=None)

    def give_eos(finding: Finding, recipe: Recipe) -> Recipe:
        edit(model / "tokenizer_config.json", eos_token="<|endoftext|>")
        return recipe

    texts = [{"text": f"The model read row {n} and then learnt to answer."} for n in range(150)]
    (model / "tokenizer_config.json").write_text("{}")
    return look(model, texts, give_eos)


def padding_is_the_end_of_turn(folder: Path) -> Looked:
    """No harm here, and D07 with trainers that mask padding by its id."""
    model = chatml(folder, eos_token="<|im_end|>", pad_token="<|im_end|>")

    def give_pad(finding: Finding, recipe: Recipe) -> Recipe:
        edit(model / "tokenizer_config.json", pad_token="<|endoftext|>")
        return recipe

    return look(model, chats(), give_pad)


def collator_takes_the_end_for_padding(folder: Path) -> Looked:
    """A script's own collator, with the common `tokenizer.pad_token = tokenizer.eos_token`."""
    from transformers import AutoTokenizer, DataCollatorForLanguageModeling

    from whet.engine.python_api.collators import collator_findings

    tokenizer = AutoTokenizer.from_pretrained(chatml(folder, eos_token="<|im_end|>"))

    def tried(pad: str) -> Looked:
        tokenizer.pad_token = pad
        collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
        return Looked(collator_findings(collator, tokenizer), lambda finding: tried("<|endoftext|>"))

    return tried(tokenizer.eos_token)


def texts_with_two_ends(folder: Path) -> Looked:
    """Rendered once with EOS, then joined with another."""
    texts = [f"The model read row {n} and then learnt to answer." for n in range(150)]
    twice = [{"text": f"{text}<|end_of_text|><|end_of_text|>"} for text in texts]
    return look(llama(folder), twice, rewritten(folder, [{"text": text} for text in texts]))


def template_ends_twice(folder: Path) -> Looked:
    tagged = (
        "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + "
        "'<|end_header_id|>\n\n' }}{% generation %}{{ m['content'] + '<|eot_id|>' + eos_token }}"
        "{% endgeneration %}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    )
    return look(llama(folder, tagged), chats())


def replies_bring_their_own_end(folder: Path) -> Looked:
    ended = every(3, chats(), lambda row: chat(row["messages"][0]["content"], "Seven.<|im_end|>"))
    return look(chatml(folder), [*ended, *chats(160)[150:]])


# --- D08


def generation_config_lacks_the_end_of_turn(folder: Path) -> Looked:
    model = chatml(folder)
    edit(model / "generation_config.json", eos_token_id=CHATML.index("<|endoftext|>"))
    return look(model, chats())


def texts_end_where_generation_does_not(folder: Path) -> Looked:
    model = llama(folder)
    edit(model / "generation_config.json", eos_token_id=LLAMA_3.index("<|eot_id|>"))
    texts = [{"text": f"The model read row {n} and then learnt to answer."} for n in range(150)]
    return look(model, texts)


FAULTS: tuple[Fault, ...] = (
    Fault("D01", "generation tags around nothing", no_label_between_tags, "generation tags", "error"),
    Fault("D01", "questions without answers", questions_without_answers, {"data.drop": ["empty"]}),
    Fault("D01", "one supervised token in two hundred", drops_of_answers, {"method.supervise": "all"}),
    Fault("D02", "answers behind the cut", answers_behind_the_cut, "Raise model.max_length"),
    Fault("D02", "questions longer than the model", questions_longer_than_the_model, {"data.drop": ["cut"]}),
    Fault(
        "D02",
        "a length for another data set",
        a_length_for_another_data_set,
        "Raise model.max_length",
        "error",
    ),
    Fault("D03", "answers cut in two", answers_cut_in_two, "Raise model.max_length"),
    Fault("D03", "answers longer than the model", answers_longer_than_the_model, {"data.drop": ["cut"]}),
    Fault("D04", "more than the positions", more_than_the_positions, {"model.max_length": 512}),
    Fault("D04", "tokenizer with a shorter limit", tokenizer_with_a_shorter_limit, {"model.max_length": 64}),
    Fault(
        "D05", "template writes BOS twice", template_writes_bos_twice, {"data.template": "llama-3"}, "error"
    ),
    Fault("D05", "rendered texts with two BOS", rendered_texts_with_two_bos, "Remove the literal", "error"),
    Fault(
        "D06",
        "written template without BOS",
        written_template_without_bos,
        {"data.template": "{{- bos_token }}" + LLAMA_3_TEMPLATE.removeprefix("{{ bos_token }}")},
    ),
    Fault("D06", "chosen template without BOS", chosen_template_without_bos, "once, at the beginning"),
    Fault("D07", "template without an end", template_without_an_end, {"data.template": "llama-3.1"}, "error"),
    Fault("D07", "padding is the end of turn", padding_is_the_end_of_turn, "pad token of its own", "note"),
    Fault("D07", "texts without EOS", texts_without_eos, "eos_token", "error"),
    Fault(
        "D07",
        "collator takes the end for padding",
        collator_takes_the_end_for_padding,
        "pad_token of its own",
    ),
    Fault(
        "D08",
        "generation config lacks the end of turn",
        generation_config_lacks_the_end_of_turn,
        {"model.end_tokens": ["<|im_end|>"]},
    ),
    Fault(
        "D08",
        "texts end where generation does not",
        texts_end_where_generation_does_not,
        {"model.end_tokens": ["<|end_of_text|>"]},
    ),
    Fault("D17", "texts with two ends", texts_with_two_ends, "Remove the literal"),
    Fault("D17", "template ends twice", template_ends_twice, {"data.template": "llama-3"}),
    Fault("D17", "replies bring their own end", replies_bring_their_own_end, {"data.drop": ["markers"]}),
)
