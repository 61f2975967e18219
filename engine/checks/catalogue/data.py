"""Data and template: rows, markers, lengths, ends."""

from __future__ import annotations

from .entry import Entry

ENTRIES: tuple[Entry, ...] = (
    Entry(
        id="D01",
        title="No answer is supervised",
        symptom="The loss is exactly 0, the log shows no tokens, or training stops with a division by zero.",
        seen="Every row is rendered, masked and tokenised before any weights are loaded, and its labels are "
        "counted. No supervised token at all is an error; rows without one, or fewer than 1 % of all "
        "tokens, are a warning.",
        why="Whatever marks the answers does not match the text: markers of another template, generation "
        "tags around the wrong part, or rows that simply hold no answer. Answers that were there and got "
        "cut off are D02.",
        fix="Let the template say where answers are: leave markers out (`train_on_responses_only(trainer)` "
        "without arguments does, in scripts), or take the patch that removes broken generation tags. Rows "
        "without a reply are left out; `data.drop: [empty]` says that you know. For text without turns: "
        "`method.supervise: all`.",
    ),
    Entry(
        id="D02",
        title="The cut takes the whole answer",
        symptom="As D01, the loss is 0 for some rows or all of them, although the markers are right.",
        seen="A row's labels are counted before and after the cut at `model.max_length`. The finding gives "
        "how many rows lose all of them, and the lengths that 50, 95 and 99 % of the rows stay below.",
        why="Rows are cut at the right end, and with a long question nothing of the answer is left.",
        fix="Raise `model.max_length` as the patch says, at most to the model's positions. Beyond these: "
        "shorten the questions, or `data.drop: [cut]`.",
    ),
    Entry(
        id="D03",
        title="Answers end in mid-sentence",
        symptom="The trained model breaks off, or talks on and on: many rows never showed it an end.",
        seen="Rows that are cut at `model.max_length` and keep a part of their answer without its end token.",
        why="The cut at the maximum length falls into the answer.",
        fix="Raise `model.max_length`, or leave such rows out: `data.drop: [cut]`.",
    ),
    Entry(
        id="D04",
        title="The maximum length is not what was asked",
        symptom="Rows are shorter than set, or prompts are cut by another tool although training took them.",
        seen="The recipe's `model.max_length`, the model's positions and the tokenizer's own limit are "
        "compared with each other and with the longest row. In scripts, `max_length` of the configuration "
        "counts, else `max_seq_length` of the loaded model.",
        why="Four places say how long a row may be, and each tool believes another one.",
        fix="Set `model.max_length` to the number in the patch, or correct `model_max_length` in "
        "tokenizer_config.json where the tokenizer is wrong.",
    ),
    Entry(
        id="D05",
        title="Two beginnings",
        symptom="Training looks fine, answers are somewhat worse than they should be.",
        seen="The first two ids of each row, after everything that changes a row, are both BOS.",
        why="A rendered text already begins with BOS and something adds another: a template that writes it "
        "twice, or rows that were rendered with BOS before.",
        fix="Remove the literal token from the rows, or use the template that the patch names. whet itself "
        "adds BOS only where there is none; in your own code pass `add_special_tokens=False` with rendered "
        "text.",
    ),
    Entry(
        id="D06",
        title="No beginning",
        symptom="A base model such as Gemma trains with a high loss and answers with nonsense.",
        seen="The tokenizer puts BOS before plain text, and more than half of the conversations do not begin "
        "with it.",
        why="The model never saw a text without BOS; the chat template in force does not write it.",
        fix="The patch puts `{{- bos_token }}` before the template, once. llama.cpp adds BOS by itself and "
        "would otherwise ask with another prompt than was trained.",
    ),
    Entry(
        id="D07",
        title="Generation never stops",
        symptom="Answers are right and then go on: the next question is invented, or text repeats.",
        seen="The last supervised token of each row is no end token. A pad token that is also the end token "
        "is a note.",
        why="What ends an answer was never learnt: the template writes no end token, plain text has no EOS, "
        "or a collator took the end token for padding because both have the same id.",
        fix="Use a template that ends the assistant's turn (the patch names one), or give the tokenizer an "
        "`eos_token`. whet masks padding by attention, not by id; for trainers that do otherwise set a pad "
        "token of its own.",
    ),
    Entry(
        id="D08",
        title="Generation stops at another token",
        symptom="The model writes its end-of-turn token as text and goes on, though it was trained to stop.",
        seen="The id that ends trained answers is compared with `eos_token_id` of generation_config.json, or "
        "of config.json without one.",
        why="Chat models end turns with one token and texts with another; only the latter is configured.",
        fix="`model.end_tokens` as in the patch: both ids are written into the generation_config.json saved "
        "with the weights. A template named in `data.template` brings its own along.",
    ),
    Entry(
        id="D09",
        title="No template, or none that asks",
        symptom="`apply_chat_template` fails, or the model answers by writing the next question.",
        seen="The rows are conversations and neither model nor recipe has a template; or rendering with and "
        "without generation prompt gives the same text, though training has a header before each answer.",
        why="Base models ship no template. Hand-made ones often forget `add_generation_prompt`.",
        fix="Take the template that the patch names: it fits the vocabulary. One without a generation prompt "
        "is repaired by the patch, which adds what training has in that place.",
    ),
    Entry(
        id="D10",
        title="Good loss, bad answers",
        symptom="Loss falls as it should, and the model answers as if it had learnt little.",
        seen="For every conversation the prompt of its last answer is rendered as it will be at inference; "
        "the training text must begin with it. `whet template` shows both. Answers whose thinking the "
        "template drops, since a later question follows, are counted.",
        why="The template writes something else when it asks than when it shows an answer: an opened "
        "thought, a system message, trimmed spaces. The model is then asked what it was never taught. An "
        "answer without its thinking would teach to answer without thinking: it is left as context.",
        fix="The patch changes the prompt to what training has in its place, or names a template that "
        "renders both alike. `data.reasoning: each` makes a row of every answer, with its thinking.",
    ),
    Entry(
        id="D11",
        title="The model writes markers as text",
        symptom="Answers contain a literal `{instruction}`, `<|im_start|>` or `[INST]`.",
        seen="Markers of known templates and, outside of code, common placeholders are searched in every "
        "row; whether this vocabulary has them as one token decides. The finding names the format they were "
        "written for.",
        why="Rows were rendered for another model, a placeholder was never filled in, or special tokens "
        "stand inside messages. Split into pieces, a marker is text to be learnt.",
        fix="Give conversations as messages and let the template write the markers. Where few rows are "
        "concerned: `data.drop: [markers]`.",
    ),
    Entry(
        id="D12",
        title="Odd, empty, repeated or leaked rows",
        symptom="The model falls silent, recites, or its held-out loss is better than its answers.",
        seen="Roles must follow user, assistant, user, ... after at most one system message (tool turns are "
        "free). Replies without text, repeated rows and held-out rows among the training rows are found by "
        "the hash of their content.",
        why="Data is collected from several places, filtered by scripts and split late.",
        fix="`data.drop` leaves such rows out: `odd`, `empty`, `duplicates`, `leaked`. Where the held-out "
        "file is the training file, hold rows out with `data.eval_fraction` instead.",
    ),
    Entry(
        id="D13",
        title="A template of another family",
        symptom="Loss starts high, and answers are full of broken markers.",
        seen="The template is rendered and its markers are looked up: each must be one token of this "
        "vocabulary. `[INST]`, which is plain text to Llama 2, must stand in the model's own template. The "
        "text is compared with the known templates, and the nearest is named.",
        why="A Llama template on a Qwen model, say: each marker becomes six or eight ordinary tokens, which "
        "the model was never trained on as markers.",
        fix="Use the template that the patch names, or leave `data.template` out for the model's own. "
        "`whet template MODEL DATA` shows the tokens.",
    ),
    Entry(
        id="D14",
        title="False negatives, or no prompts, in embedding data",
        symptom="Retrieval gets worse by training, although the loss falls.",
        seen="For losses with in-batch negatives: where `method.no_duplicates` is off, rows whose anchor or "
        "positive stands in another row are counted, and a finding says how many are expected to meet one in "
        "a batch of the plan's size, from 1 % on. Prompts of a model that is known by its name to expect "
        "them (E5, BGE, mxbai, EmbeddingGemma, Qwen3-Embedding, Nomic) are looked for in its folder and in "
        "the recipe; one in the recipe that differs from the folder's is a note.",
        why="Two rows with the same answer count as each other's wrong answers; models trained with prompts "
        "expect them.",
        fix="`method.no_duplicates: true`, and the prompts that the patch names. Those of the model's folder "
        'are used by themselves; `""` says that none is meant.',
    ),
    Entry(
        id="D15",
        title="Unreadable or mixed data",
        symptom="A loader fails on row 48,213, columns are not found, or half of the file is ignored.",
        seen="Rows are recognised as text, Alpaca, ShareGPT, messages or prompt and completion, with the "
        "share that fits; preference data, rated answers, pairs and triplets are recognised and named. Each "
        "row that cannot be used is reported by file, line and reason.",
        why="Files are concatenated, exported from spreadsheets, or made for another method.",
        fix="The patch maps columns (`data.format`, `data.columns`) or skips what cannot be read "
        "(`data.bad_rows: skip`). `whet data SOURCE` lists the rows.",
    ),
    Entry(
        id="D16",
        title="Too little data, or data that leaks",
        symptom="The model recites its training rows, copies from the question, or a held-out loss says "
        "nothing about its use.",
        seen="Rows are counted: fewer than 100 are an error, fewer than 1,000 a note. In four fifths of the "
        "rows the answer (not always the same one) stands in its prompt word for word; or the held-out "
        "answers are in a language that is hardly trained on. Limits for GRPO come with reinforcement "
        "learning.",
        why="Small sets are learnt by heart. A prompt that holds its answer teaches copying; an evaluation "
        "in another language measures another task.",
        fix="Collect more rows, or write variations of those you have and check them; accept a small set by "
        "name with `accept: [D16]`. Take answers out of prompts. Hold rows of the training data out with "
        "`data.eval_fraction`.",
    ),
    Entry(
        id="D17",
        title="Two ends",
        symptom="Answers stop too early, or an odd token stands at their end.",
        seen="The last two supervised tokens of a row, white space left out, are both end tokens.",
        why="The template writes one and the row brings one along, or a tokeniser adds EOS to text that was "
        "already rendered.",
        fix="Remove the literal token from the rows (`data.drop: [markers]` where few have it), or use the "
        "template that the patch names. whet adds EOS to plain text only where no end token stands.",
    ),
)
