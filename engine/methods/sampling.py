"""The same prompts, answered before training and at each evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from ..data.chat_templates.of_tokenizer import rendered
from ..models.fast_path import generate, program_of
from ..models.loading import ModelHandle
from ..recipe import SamplingSection
from ..runs.context import RunContext
from ..runs.events import PhaseEvent, SampleEvent
from .random_numbers import preserved_rng
from .rank_agreement import first_says

SENTINEL = "sentinel"


@dataclass(frozen=True)
class Answer:
    """What the model wrote to one prompt."""

    prompt: str
    text: str
    stopped: bool
    """It ended its turn by itself."""


def stop_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end an answer: generation_config's, the tokenizer's eos, and the template's end of turn."""
    configured = model.generation_config.eos_token_id
    found = list(configured) if isinstance(configured, list | tuple) else [configured]
    found += [tokenizer.eos_token_id, end_of_turn_id(tokenizer)]
    return sorted({int(token) for token in found if token is not None})


def end_of_turn_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token that the chat template writes behind an assistant's text, or None."""
    if tokenizer.chat_template is None:
        return None
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": SENTINEL}]
    text = rendered(tokenizer, turns)
    if SENTINEL not in text:
        return None  # a template that leaves answers out; rows of it have nothing to learn
    behind = tokenizer.encode(text[text.rindex(SENTINEL) + len(SENTINEL) :], add_special_tokens=False)
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return next((token for token in behind if token in special), None)


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: str, system: str | None, *, chat: bool
) -> list[int]:
    """A user's turn in the chat template with the assistant's begun; or, without chat, the bare text."""
    if not chat:
        return list(tokenizer.encode(prompt))
    turns = [{"role": "system", "content": system}] if system else []
    turns.append({"role": "user", "content": prompt})
    text = rendered(tokenizer, turns, add_generation_prompt=True)
    return list(tokenizer.encode(text, add_special_tokens=False))  # the template writes BOS itself


def answers(
    handle: ModelHandle,
    section: SamplingSection,
    *,
    chat: bool,
    system: str | None = None,
    seed: int = 0,
    prompts: Sequence[str] | None = None,
    together: bool = False,
) -> Iterator[Answer]:
    """Answer each prompt on its own (no padding), greedily unless the section has a temperature.

    A model on the fast path answers there. With a temperature every call draws the same random numbers, so
    answers differ by the weights only. The generators' states are left as they were, and so is the model's
    training mode.

    ``together`` is for a model that several processes hold in shares: all of them answer, and go on until the
    last one has, since each forward pass needs all.
    """
    model, tokenizer = handle.model, handle.tokenizer
    stops = stop_ids(model, tokenizer)
    settings = GenerationConfig(
        max_new_tokens=section.max_new_tokens,
        do_sample=section.temperature > 0,
        temperature=section.temperature or 1.0,
        top_k=0,
        top_p=1.0,
        repetition_penalty=1.0,
        eos_token_id=stops,
        pad_token_id=handle.pad_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    training = model.training
    model.eval()
    cast = torch.autocast(handle.device.type, handle.dtype, enabled=handle.dtype != torch.float32)
    try:
        for prompt in section.prompts if prompts is None else prompts:
            ids_1T = torch.tensor([prompt_ids(tokenizer, prompt, system, chat=chat)], device=handle.device)
            with preserved_rng(handle.device), torch.no_grad(), cast:
                torch.manual_seed(seed)
                output_1T = generate(
                    model,
                    input_ids=ids_1T,
                    attention_mask=torch.ones_like(ids_1T),
                    generation_config=settings,
                    synced_gpus=together or None,
                )
            written = output_1T[0, ids_1T.shape[1] :].tolist()
            text = str(tokenizer.decode(written, skip_special_tokens=True)).strip()
            yield Answer(prompt, text, stopped=bool(written) and written[-1] in stops)
    finally:
        model.train(training)
        program = program_of(model)
        if program is not None:
            program.decoding = None  # training wants the memory of the cache


def sample_events(
    context: RunContext, handle: ModelHandle, step: int, *, chat: bool, together: bool = False
) -> None:
    """Answer a recipe's prompts, where it has any, and say what came; a request to stop ends it.

    Args:
        context: of the run.
        handle: the model as it is after ``step``.
        step: optimizer steps so far.
        chat: whether prompts go through the chat template.
        together: see :func:`answers`; then all stop answering at the same prompt.
    """
    agree = first_says if together else bool
    recipe = context.recipe
    if not recipe.sampling.prompts:
        return
    context.emit(PhaseEvent(phase="sample", detail=f"step {step}"))
    seed, system = recipe.training.seed, recipe.data.system
    for answer in answers(handle, recipe.sampling, chat=chat, system=system, seed=seed, together=together):
        context.emit(SampleEvent(step=step, prompt=answer.prompt, answer=answer.text, stopped=answer.stopped))
        if agree(context.stop_requested() is not None):
            return
