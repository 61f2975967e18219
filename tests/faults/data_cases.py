"""Broken set-ups of the data phase: real files, a real tiny model under real tokenizers, real plans."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from faults.harness import Fault, Looked, planned
from support.plan_inputs import machine
from support.tiny_models import build_tiny_model
from support.tiny_tokenizers import byte_level

from whet.engine.findings import Finding
from whet.engine.recipe import Recipe
from whet.engine.recipe_files import patched

Row = dict[str, Any] | str
LLAMA_3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")

LLAMA_3_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' "
    "+ m['content'] + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CHATML_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@lru_cache(maxsize=1)
def _weights() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="whet-fault-model-"))
    return build_tiny_model(folder / "model", "llama")


def llama(folder: Path, template: str | None = LLAMA_3_TEMPLATE, **tokenizer: Any) -> Path:
    """The tiny Llama under a Llama 3 tokenizer, which puts BOS before plain text."""
    return _model(folder, LLAMA_3, "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", template, tokenizer)


def chatml(folder: Path, template: str | None = CHATML_TEMPLATE, **tokenizer: Any) -> Path:
    """The same weights under a ChatML tokenizer without BOS."""
    return _model(folder, CHATML, None, "<|endoftext|>", "<|im_end|>", template, tokenizer)


def _model(
    folder: Path,
    specials: tuple[str, ...],
    bos: str | None,
    eos: str,
    end: str,
    template: str | None,
    settings: dict[str, Any],
) -> Path:
    path = folder / "model"
    shutil.copytree(_weights(), path)
    tokenizer = byte_level(specials, prefix=bos)
    tokenizer.save(str(path / "tokenizer.json"))
    values = {
        "bos_token": bos,
        "eos_token": eos,
        "chat_template": template,
        "model_max_length": 512,
        **settings,
    }
    kept = {key: value for key, value in values.items() if value is not None}
    (path / "tokenizer_config.json").write_text(json.dumps(kept))
    ids = {"bos_token_id": bos and tokenizer.token_to_id(bos), "pad_token_id": None}
    for name, ends in (("config.json", tokenizer.token_to_id(eos)), ("generation_config.json", None)):
        both = [tokenizer.token_to_id(eos), tokenizer.token_to_id(end)]
        edit(path / name, eos_token_id=ends if ends is not None else both, **ids)
    return path


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def chats(count: int = 150, answer: Callable[[int], str] = "The sum is {}.".format) -> list[Row]:
    """Distinct conversations; ``answer`` makes a reply of the row's number."""
    return [chat(f"What is {n} plus {n + 1}?", answer(2 * n + 1)) for n in range(count)]


def chat(*turns: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[at % 2], "content": turn} for at, turn in enumerate(turns)]}


def write(path: Path, rows: Iterable[Row]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def look(
    model: Path, rows: Iterable[Row], by_hand: Callable[[Finding, Recipe], Recipe] | None = None, **patch: Any
) -> Looked:
    """The plan of these rows on this model, for a CPU machine that lacks nothing."""
    data = write(model.parent / "rows.jsonl", rows)
    plain = Recipe.model_validate({"model": {"name": str(model)}, "data": {"train": str(data)}})
    recipe = patched(plain, {key.replace("__", "."): value for key, value in patch.items()})
    mended = None if by_hand is None else lambda finding: by_hand(finding, recipe)
    return planned(recipe, mended, machine=machine())


def rewritten(path: Path, rows: Iterable[Row]) -> Callable[[Finding, Recipe], Recipe]:
    """Mends by hand: the file gets these rows."""

    def mend(finding: Finding, recipe: Recipe) -> Recipe:
        write(path / "rows.jsonl", rows)
        return recipe

    return mend


def every(step: int, rows: list[Row], change: Callable[[dict[str, Any]], Row]) -> list[Row]:
    """Every ``step``-th row changed."""
    return [change(row) if n % step == 0 and isinstance(row, dict) else row for n, row in enumerate(rows)]


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
    model = _model(
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


# --- D09, D10


def no_template(folder: Path) -> Looked:
    return look(llama(folder, None), chats())


def no_generation_prompt(folder: Path) -> Looked:
    return look(chatml(folder, CHATML_TEMPLATE.partition("{% if")[0]), chats())


def prompt_opens_a_thought(folder: Path) -> Looked:
    thinking = CHATML_TEMPLATE.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n")
    return look(chatml(folder, thinking), chats())


def prompt_with_a_system_message_of_its_own(folder: Path) -> Looked:
    system = "{% if add_generation_prompt %}{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}"
    return look(chatml(folder, system + CHATML_TEMPLATE), chats())


# --- D11, D13


def placeholders_left_over(folder: Path) -> Looked:
    rows = every(4, chats(), lambda row: chat("{instruction}", row["messages"][1]["content"]))
    return look(llama(folder), rows)


def rendered_for_another_family(folder: Path) -> Looked:
    rendered = [
        {"text": f"<|im_start|>user\nWhat is {n}?<|im_end|>\n<|im_start|>assistant\nIt is {n}.<|im_end|>"}
        for n in range(150)
    ]
    return look(llama(folder), rendered, rewritten(folder, chats()))


def special_tokens_in_messages(folder: Path) -> Looked:
    rows = every(4, chats(), lambda row: chat("<|eot_id|> and now?", row["messages"][1]["content"]))
    return look(llama(folder), rows)


def chatml_chosen_for_llama(folder: Path) -> Looked:
    return look(llama(folder), chats(), data__template="chatml")


def model_ships_a_foreign_template(folder: Path) -> Looked:
    return look(llama(folder, "{{ bos_token }}" + CHATML_TEMPLATE), chats())


# --- D12


def rows_repeated(folder: Path) -> Looked:
    return look(llama(folder), [*chats(), *chats(40)])


def empty_replies(folder: Path) -> Looked:
    return look(llama(folder), every(10, chats(), lambda row: chat(row["messages"][0]["content"], " ")))


def system_message_in_the_middle(folder: Path) -> Looked:
    def interrupted(row: dict[str, Any]) -> Row:
        question, answer = row["messages"]
        return {"messages": [question, {"role": "system", "content": "Be brief."}, answer]}

    return look(llama(folder), every(10, chats(), interrupted))


def held_out_rows_are_trained_on(folder: Path) -> Looked:
    held_out = write(folder / "eval.jsonl", [*chats(10), chat("And now?", "Nothing.")])
    return look(llama(folder), chats(), data__eval=str(held_out))


# --- D15


def broken_lines(folder: Path) -> Looked:
    return look(llama(folder), every(40, chats(), lambda row: '{"messages": [{"role": "user"'))


def columns_of_unknown_name(folder: Path) -> Looked:
    return look(llama(folder), [{"question": f"What is {n}?", "answer": f"It is {n}."} for n in range(150)])


def preference_rows(folder: Path) -> Looked:
    rows = [
        {"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "I cannot say."} for n in range(150)
    ]
    return look(llama(folder), rows)


def two_layouts_in_one_file(folder: Path) -> Looked:
    rows = every(3, chats(), lambda row: {"instruction": "Say it.", "output": row["messages"][1]["content"]})
    return look(llama(folder), [*rows, *chats(220)[150:]])


# --- D16

SENTENCES = {
    "English": "This is the answer that you were looking for, and it was number {} of all these.",
    "German": "Das ist die Antwort, nach der wir suchen, und sie ist nicht nur die Nummer {}.",
}


def forty_rows(folder: Path) -> Looked:
    return look(llama(folder), chats(40), rewritten(folder, chats(150)))


def answers_in_their_prompts(folder: Path) -> Looked:
    def rows(hint: bool) -> list[Row]:
        asked = "What is the answer?" + " (Reference: {})" * hint
        answers = [SENTENCES["English"].format(n) for n in range(150)]
        return [chat(f"{n}: {asked.format(answer)}", answer) for n, answer in enumerate(answers)]

    return look(llama(folder), rows(hint=True), rewritten(folder, rows(hint=False)))


def held_out_in_another_language(folder: Path) -> Looked:
    held_out = write(folder / "eval.jsonl", chats(60, SENTENCES["German"].format))
    return look(llama(folder), chats(150, SENTENCES["English"].format), data__eval=str(held_out))


FAULTS: tuple[Fault, ...] = (
    Fault("D01", "generation tags around nothing", no_label_between_tags, "generation tags", "error"),
    Fault("D01", "questions without answers", questions_without_answers, {"data.drop": ["empty"]}),
    Fault("D01", "one supervised token in two hundred", drops_of_answers, {"method.supervise": "all"}),
    Fault("D02", "answers behind the cut", answers_behind_the_cut, "Raise model.max_length"),
    Fault("D02", "questions longer than the model", questions_longer_than_the_model, {"data.drop": ["cut"]}),
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
    Fault("D09", "no template", no_template, {"data.template": "llama-3.1"}, "error"),
    Fault("D09", "no generation prompt", no_generation_prompt, "assistant\\n"),
    Fault("D10", "prompt opens a thought", prompt_opens_a_thought, "the very text"),
    Fault(
        "D10",
        "prompt with a system message of its own",
        prompt_with_a_system_message_of_its_own,
        {"data.template": "chatml"},
    ),
    Fault("D11", "placeholders left over", placeholders_left_over, {"data.drop": ["markers"]}),
    Fault("D11", "rendered for another family", rendered_for_another_family, "as messages"),
    Fault("D11", "special tokens in messages", special_tokens_in_messages, {"data.drop": ["markers"]}),
    Fault("D12", "rows repeated", rows_repeated, {"data.drop": ["duplicates"]}),
    Fault("D12", "empty replies", empty_replies, {"data.drop": ["empty"]}),
    Fault("D12", "system message in the middle", system_message_in_the_middle, {"data.drop": ["odd"]}),
    Fault("D12", "held-out rows are trained on", held_out_rows_are_trained_on, {"data.drop": ["leaked"]}),
    Fault("D13", "ChatML chosen for Llama", chatml_chosen_for_llama, {"data.template": None}, "error"),
    Fault(
        "D13",
        "model ships a foreign template",
        model_ships_a_foreign_template,
        {"data.template": "llama-3.1"},
    ),
    Fault("D15", "broken lines", broken_lines, {"data.bad_rows": "skip"}, "error"),
    Fault(
        "D15",
        "columns of unknown name",
        columns_of_unknown_name,
        {
            "data.format": "prompt_completion",
            "data.columns": {"prompt": "question", "completion": "answer"},
        },
        "error",
    ),
    Fault(
        "D15",
        "preference rows",
        preference_rows,
        {"data.format": "prompt_completion", "data.columns": {"prompt": "prompt", "completion": "chosen"}},
        "error",
    ),
    Fault("D15", "two layouts in one file", two_layouts_in_one_file, {"data.bad_rows": "skip"}, "error"),
    Fault("D16", "forty rows", forty_rows, "Collect at least 100", "error"),
    Fault("D16", "answers in their prompts", answers_in_their_prompts, "out of the prompt"),
    Fault(
        "D16",
        "held out in another language",
        held_out_in_another_language,
        {"data.eval": None, "data.eval_fraction": 0.05},
    ),
    Fault("D17", "template ends twice", template_ends_twice, {"data.template": "llama-3"}),
    Fault("D17", "replies bring their own end", replies_bring_their_own_end, {"data.drop": ["markers"]}),
)
