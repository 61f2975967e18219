"""`train_on_responses_only`: labels on what the assistant writes, found by markers in the token ids.

A marker's ids depend on its neighbours (byte-level BPE merges a newline with what follows it), so a marker is
tokenised in many contexts and every tokenisation is searched for. Markers that match nothing are an error
that names the right ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from datasets import Dataset, IterableDataset

from ..data.masking import IGNORE, Span, labels_of
from ..errors import WhetError
from .notes import say
from .seeing import PictureTrainer
from .template_parts import markers_of

UNSUPERVISED_LIMIT = 0.1
"""Share of rows left without a supervised token above which markers or max_length are taken to be wrong."""

VERDICT = "_found"
"""Working column: what was found in a row."""

LEFT_CONTEXTS = ("", "a", "Z", ".", ".\n", "\n", "\n\n", " ", "1", "é")
RIGHT_CONTEXTS = ("", "a", "Hello", " a", "\n", "\n\n", "1", "-", '"', "(", "`", "é", "你")


@dataclass(frozen=True)
class Markers:
    """Both markers as text and in every tokenisation."""

    instruction_part: str
    response_part: str
    instruction: tuple[tuple[int, ...], ...]
    response: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, tokenizer: Any, instruction_part: str, response_part: str) -> Markers:
        return cls(
            instruction_part,
            response_part,
            marker_variants(tokenizer, instruction_part),
            marker_variants(tokenizer, response_part),
        )


def train_on_responses_only(
    trainer: Any,
    instruction_part: str | None = None,
    response_part: str | None = None,
    *,
    tokenizer: Any = None,
    num_proc: int | None = None,
    force_match: bool = True,
    return_function: bool = False,
) -> Any:
    """Supervise only what follows `response_part`, up to the next `instruction_part`, in training and eval
    rows.

    Works on a trainer whose rows are tokenised (`input_ids`): whet's, or TRL's own. Tokens that were
    unsupervised stay so. Rows that lost their response to truncation are dropped, said aloud.

    Args:
        trainer: a trainer with `train_dataset` and perhaps `eval_dataset`.
        instruction_part: text that opens a user turn; by default derived from the tokenizer's chat template.
        response_part: text that opens an assistant turn; likewise.
        tokenizer: by default the trainer's.
        num_proc: processes for the mapping.
        force_match: accepted for older scripts; markers always have to match.
        return_function: return the batch function instead of changing the trainer's rows.

    Returns:
        The trainer, its datasets replaced.

    Raises:
        WhetError: `data.markers_match_nothing` when a marker is in no row, or more than 10 % of the rows
            are left without a supervised token; `data.not_tokenised` for rows without `input_ids`.
    """
    if isinstance(trainer, PictureTrainer):
        trainer.supervise_responses(instruction_part, response_part)
        return trainer
    tokenizer = tokenizer or trainer.processing_class
    if (instruction_part is None) != (response_part is None):
        raise WhetError(
            "data.one_marker",
            f"instruction_part={instruction_part!r}, response_part={response_part!r}: one marker is missing.",
            "Give both, or neither to take them from the chat template.",
        )
    if instruction_part is None or response_part is None:
        instruction_part, response_part = markers_of(tokenizer)
    markers = Markers.of(tokenizer, instruction_part, response_part)
    if return_function:
        return lambda batch: _mask_batch(batch, markers)
    trainer.train_dataset = _mask_dataset(trainer.train_dataset, markers, tokenizer, "training", num_proc)
    held_out = trainer.eval_dataset
    if isinstance(held_out, dict):
        held_out = {k: _mask_dataset(v, markers, tokenizer, k, num_proc) for k, v in held_out.items()}
    elif held_out is not None:
        held_out = _mask_dataset(held_out, markers, tokenizer, "eval", num_proc)
    trainer.eval_dataset = held_out
    return trainer


def marker_variants(tokenizer: Any, marker: str) -> tuple[tuple[int, ...], ...]:
    """Every id sequence that `marker` becomes between ordinary neighbours, longest first.

    Edge tokens that merge with a neighbour are left out, as long as all of the marker's visible characters
    stay. Without offsets (a slow tokenizer) the marker alone and stripped are tried.
    """
    core_start = len(marker) - len(marker.lstrip())
    core_end = len(marker.rstrip())
    if core_start >= core_end:
        raise WhetError(
            "data.empty_marker", f"The marker {marker!r} is only white space.", "Give visible text."
        )
    if not tokenizer.is_fast:
        texts = (marker, marker.strip())
        found = {tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts}
        return tuple(sorted(found, key=len, reverse=True))
    variants = set()
    contexts = [(left, right) for left in LEFT_CONTEXTS for right in RIGHT_CONTEXTS]
    encoded = tokenizer(
        [left + marker + right for left, right in contexts],
        add_special_tokens=False,
        return_offsets_mapping=True,
    )
    for (left, _), ids, offsets in zip(
        contexts, encoded["input_ids"], encoded["offset_mapping"], strict=True
    ):
        first, last = len(left), len(left) + len(marker)
        inside = [i for i, (a, b) in enumerate(offsets) if first <= a and b <= last and b > a]
        covers = inside and (
            offsets[inside[0]][0] <= first + core_start and offsets[inside[-1]][1] >= first + core_end
        )
        if covers:
            variants.add(tuple(ids[inside[0] : inside[-1] + 1]))
    return tuple(sorted(variants, key=lambda variant: (-len(variant), variant)))


def response_spans(ids: Sequence[int], markers: Markers) -> tuple[list[Span], bool, bool]:
    """Token ranges from a response marker to the next marker; whether a response, an instruction occurs."""
    spans: list[Span] = []
    opened: int | None = None
    saw_response = saw_instruction = False
    at = 0
    while at < len(ids):
        if length := _match(ids, at, markers.response):
            # Two answers in a row: the second one's header is not something the model should write.
            if opened is not None:
                spans.append((opened, at))
            saw_response = True
            at += length
            opened = at
        elif length := _match(ids, at, markers.instruction):
            saw_instruction = True
            if opened is not None:
                spans.append((opened, at))
                opened = None
            at += length
        else:
            at += 1
    if opened is not None:
        spans.append((opened, len(ids)))
    return spans, saw_response, saw_instruction


def _match(ids: Sequence[int], at: int, variants: Iterable[Sequence[int]]) -> int:
    for variant in variants:
        if ids[at] == variant[0] and tuple(ids[at : at + len(variant)]) == variant:
            return len(variant)
    return 0


def _mask_row(
    ids: list[int], old: list[int] | None, lengths: list[int] | None, markers: Markers
) -> tuple[list[int], str]:
    """Labels of one row (packed documents are looked at one by one), and what was found in it.

    The verdict is a subset of the letters ``i`` (instruction marker), ``r`` (response marker) and ``s``
    (a supervised token).
    """
    labels: list[int] = []
    verdict = set()
    edges = accumulate(lengths, initial=0) if lengths else (0, len(ids))
    for first, last in pairwise(edges):
        document = ids[first:last]
        spans, saw_response, saw_instruction = response_spans(document, markers)
        labels += labels_of(document, spans)
        verdict |= {letter for letter, seen in (("r", saw_response), ("i", saw_instruction)) if seen}
    if old is not None:
        labels = [IGNORE if was == IGNORE else label for was, label in zip(old, labels, strict=True)]
    if any(label != IGNORE for label in labels):
        verdict.add("s")
    return labels, "".join(sorted(verdict))


def _mask_batch(batch: dict[str, list[Any]], markers: Markers) -> dict[str, list[Any]]:
    blank = [None] * len(batch["input_ids"])
    rows = [
        _mask_row(list(ids), old, lengths, markers)
        for ids, old, lengths in zip(
            batch["input_ids"], batch.get("labels", blank), batch.get("seq_lengths", blank), strict=True
        )
    ]
    return {"labels": [labels for labels, _ in rows], VERDICT: [verdict for _, verdict in rows]}


def _mask_dataset(
    dataset: Any, markers: Markers, tokenizer: Any, name: str, num_proc: int | None
) -> Dataset | IterableDataset:
    sample: dict[str, Any] = next(iter(dataset), {})
    if "input_ids" not in sample:
        raise WhetError(
            "data.not_tokenised",
            f"The {name} rows have no input_ids (columns: {', '.join(sample) or 'none'}).",
            "Call train_on_responses_only after the trainer is made, without skip_prepare_dataset.",
        )
    if isinstance(dataset, IterableDataset):
        probe = _mask_batch(_columns(dataset.take(200)), markers)
        _refuse_unmatched(probe[VERDICT], markers, tokenizer, name)
        streamed = dataset.map(_mask_batch, batched=True, fn_kwargs={"markers": markers})
        return streamed.filter(lambda row: "s" in row[VERDICT]).remove_columns(VERDICT)
    masked = dataset.map(
        _mask_batch,
        batched=True,
        fn_kwargs={"markers": markers},
        num_proc=num_proc,
        desc=f"Supervising responses in the {name} rows",
    )
    verdicts = list(masked[VERDICT])
    _refuse_unmatched(verdicts, markers, tokenizer, name)
    keep = [row for row, verdict in enumerate(verdicts) if "s" in verdict]
    if lost := len(masked) - len(keep):
        say(f"{lost} of {len(masked)} {name} rows have no supervised token (cut at max_length?); dropped.")
        masked = masked.select(keep)
    return masked.remove_columns(VERDICT)


def _columns(rows: Iterable[dict[str, Any]]) -> dict[str, list[Any]]:
    listed = list(rows)
    return {key: [row[key] for row in listed] for key in listed[0]}


def _refuse_unmatched(verdicts: list[str], markers: Markers, tokenizer: Any, name: str) -> None:
    rows = len(verdicts)
    counts = {letter: sum(letter in verdict for verdict in verdicts) for letter in "irs"}
    if not counts["r"]:
        fact = f"response_part={markers.response_part!r} is in none of the {rows} {name} rows."
    elif not counts["i"]:
        fact = f"instruction_part={markers.instruction_part!r} is in none of the {rows} {name} rows."
    elif rows - counts["s"] > rows * UNSUPERVISED_LIMIT:
        fact = (
            f"{rows - counts['s']} of {rows} {name} rows are left without a supervised token: "
            f"response_part={markers.response_part!r} is in {counts['r']} of them."
        )
    else:
        return
    raise WhetError("data.markers_match_nothing", fact, _right_markers(tokenizer, markers))


def _right_markers(tokenizer: Any, markers: Markers) -> str:
    try:
        instruction, response = markers_of(tokenizer)
    except WhetError as error:
        return f"The chat template cannot name the right ones: {error.message}"
    if (instruction, response) == (markers.instruction_part, markers.response_part):
        return (
            "These are this tokenizer's own markers, so the rows were not rendered with its chat template; "
            "set the template with get_chat_template before rendering, or max_length cut the responses off."
        )
    return (
        f"This tokenizer's template uses instruction_part={instruction!r} and response_part={response!r}; "
        "called without markers, train_on_responses_only takes them itself."
    )
