"""Broken set-ups of the data phase: templates, and the rows themselves."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from faults.data_set_ups import (
    CHATML_TEMPLATE,
    LLAMA_3_TEMPLATE,
    Row,
    chat,
    chatml,
    chats,
    every,
    llama,
    look,
    rewritten,
    write,
)
from faults.harness import Fault, Looked

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


def instructions_written_into_the_questions(folder: Path) -> Looked:
    """Alpaca's frame was rendered once already, and its text put into messages."""

    def framed(row: dict[str, Any]) -> Row:
        question, answer = (turn["content"] for turn in row["messages"])
        return chat(f"Do as told.\n\n### Instruction:\n{question}\n\n### Response:\n", answer)

    return look(llama(folder), every(1, chats(), framed), rewritten(folder, chats()))


def mistral_chosen_for_llama(folder: Path) -> Looked:
    """Markers that are plain text to some, and mean nothing here."""
    return look(llama(folder), chats(), data__template="mistral")


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


def questions_left_open(folder: Path) -> Looked:
    """Conversations that were cut off behind a question."""
    return look(
        llama(folder),
        every(3, chats(), lambda row: {"messages": [*row["messages"], *chat("And?")["messages"]]}),
    )


def instructions_in_a_turn_of_their_own(folder: Path) -> Looked:
    """Everywhere: leaving such rows out would leave nothing."""
    ask = {"role": "user", "content": "Be brief."}
    rows = every(1, chats(), lambda row: {"messages": [ask, *row["messages"]]})
    return look(llama(folder), rows, rewritten(folder, chats()))


def empty_cells(folder: Path) -> Looked:
    """A sheet whose answers were not all filled in."""
    cells = [
        ("prompt", "completion"),
        *((f"What is {n}?", f"It is {n}." if n % 9 else "") for n in range(150)),
    ]
    with open(folder / "rows.csv", "w", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows(cells)
    return look(llama(folder), [], data__train=str(folder / "rows.csv"))


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


def array_cut_off(folder: Path) -> Looked:
    """A JSON array whose download broke off."""
    (folder / "rows.json").write_text(json.dumps(chats(160))[:-150], encoding="utf-8")
    return look(llama(folder), [], data__train=str(folder / "rows.json"))


def quote_never_closed(folder: Path) -> Looked:
    """One quotation mark is missing; the lines after it belong to nobody."""
    lines = [f'"What is {n}?","It is {n}."' if n != 50 else '"What is 50?","It is 50.' for n in range(150)]
    (folder / "rows.csv").write_text("\n".join(["prompt,completion", *lines]) + "\n", encoding="utf-8")
    return look(llama(folder), [], data__train=str(folder / "rows.csv"))


def instructions_that_the_template_refuses(folder: Path) -> Looked:
    """As the templates do that Gemma's first models ship."""
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
    system = {"role": "system", "content": "Be brief."}
    rows = every(3, chats(), lambda row: {"messages": [system, *row["messages"]]})
    return look(llama(folder, refuses + LLAMA_3_TEMPLATE), rows)


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
    Fault(
        "D11",
        "instructions written into the questions",
        instructions_written_into_the_questions,
        "as messages",
    ),
    Fault("D12", "questions left open", questions_left_open, {"data.drop": ["odd"]}),
    Fault("D12", "instructions in a turn of their own", instructions_in_a_turn_of_their_own, "Merge these"),
    Fault("D12", "empty cells of a sheet", empty_cells, {"data.drop": ["empty"]}),
    Fault("D12", "rows repeated", rows_repeated, {"data.drop": ["duplicates"]}),
    Fault("D12", "empty replies", empty_replies, {"data.drop": ["empty"]}),
    Fault("D12", "system message in the middle", system_message_in_the_middle, {"data.drop": ["odd"]}),
    Fault("D12", "held-out rows are trained on", held_out_rows_are_trained_on, {"data.drop": ["leaked"]}),
    Fault("D13", "Mistral chosen for Llama", mistral_chosen_for_llama, {"data.template": None}, "error"),
    Fault("D13", "ChatML chosen for Llama", chatml_chosen_for_llama, {"data.template": None}, "error"),
    Fault(
        "D13",
        "model ships a foreign template",
        model_ships_a_foreign_template,
        {"data.template": "llama-3.1"},
    ),
    Fault(
        "D15",
        "instructions that the template refuses",
        instructions_that_the_template_refuses,
        {"data.template": "llama-3"},
        "error",
    ),
    Fault("D15", "an array cut off", array_cut_off, {"data.bad_rows": "skip"}, "error"),
    Fault("D15", "a quote never closed", quote_never_closed, {"data.bad_rows": "skip"}, "error"),
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
)
