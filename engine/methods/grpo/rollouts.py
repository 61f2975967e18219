"""Answers to prompts, and what they score: the model writes them itself, or vLLM does.

Everything random is drawn from torch's generators, so that a resumed run writes what the uninterrupted one
would have.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from ...models.fast_path import DecoderProgram, generate, program_of
from ...models.fast_path.decoding import free_bytes
from ...models.loading import ModelHandle
from ...rewards.runner import Rewards
from .section import GRPOSection

OVERLONG = "overlong"
"""Name of the reward that punishes length."""
KEPT_SHARE = 0.02
"""Of the free memory: a cache up to here is not in the way of a training step."""
Row = Mapping[str, Any]
Logps = list[list[float] | None]
Engine = Callable[[list[list[int]]], tuple[list[list[int]], Logps]]
"""Prompts' ids, each as often as it is answered -> ids of the answers, and their log-probabilities."""


@dataclass(frozen=True)
class Answer:
    """One answer to a row's prompt.

    Args:
        row: as stored: ``prompt_ids``, ``prompt`` and ``columns``, the latter two as JSON.
        ids: tokens, the end token included.
        text: without special tokens.
        finished: it ended by itself.
        values: of the rewards, in order; None where one does not apply.
        total: their weighted sum.
        logps: of the tokens as another engine saw them when it drew them.
    """

    row: Row
    ids: list[int]
    text: str
    finished: bool
    values: list[float | None]
    total: float
    logps: list[float] | None = None

    @property
    def prompt(self) -> str | list[dict[str, Any]]:
        """As the data has it."""
        prompt: str | list[dict[str, Any]] = json.loads(self.row["prompt"])
        return prompt


class Rollouts:
    """Answers and scores rows.

    Args:
        handle: the model that trains, in whatever mode.
        section: the recipe's.
        rewards: their process, which need not run yet.
        stops: tokens that end an answer.
        at_once: most answers that the model writes together; all where not given.
    """

    engine: Engine | None = None
    """Writes in place of the model itself."""

    def __init__(
        self,
        handle: ModelHandle,
        section: GRPOSection,
        rewards: Rewards,
        stops: Sequence[int],
        at_once: int | None = None,
    ) -> None:
        self.handle, self.section, self.rewards, self.at_once = handle, section, rewards, at_once
        self.stops = frozenset(stops)
        self.buffer = section.knobs.overlong_buffer
        self._warned: dict[str, bool] = {}
        self._users = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """The rewards' process lives while somebody is inside. Raises what it raises when it starts."""
        if self._users == 0:
            self.rewards.start()
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if self._users == 0:
                self.rewards.close()

    @property
    def names(self) -> list[str]:
        """Of the rewards, the punishment of length among them."""
        return [*self.rewards.names, *([OVERLONG] if self.buffer else [])]

    @property
    def weights(self) -> list[float]:
        """Theirs."""
        return [*self.rewards.weights, *([1.0] if self.buffer else [])]

    def new_warnings(self) -> list[str]:
        """What the rewards warned of for the first time since the last call."""
        new = [warning for warning, said in self._warned.items() if not said]
        self._warned = dict.fromkeys(self._warned, True)
        return new

    def answer(self, rows: Sequence[Row], *, greedy: bool = False) -> list[Answer]:
        """One answer for each row; a row that stands there several times gets as many.

        Raises WhetError ``reward.*`` as :meth:`whet.engine.rewards.runner.Rewards.score`.
        """
        prompts = [list(row["prompt_ids"]) for row in rows]
        ids, logps = self._write(prompts, greedy)
        texts = self.handle.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return self._scored(rows, ids, logps, texts)

    def _write(self, prompts: list[list[int]], greedy: bool) -> tuple[list[list[int]], Logps]:
        if self.engine is not None and not greedy:
            return self.engine(prompts)
        settings = generation_settings(self.section, self.handle, sorted(self.stops), greedy=greedy)
        ids = written(self.handle.model, self.handle.dtype, prompts, settings, self.at_once)
        return ids, [None] * len(ids)

    def _scored(
        self, rows: Sequence[Row], ids: list[list[int]], logps: Logps, texts: list[str]
    ) -> list[Answer]:
        prompts = [json.loads(row["prompt"]) for row in rows]
        columns = [json.loads(row["columns"]) for row in rows]
        names = dict.fromkeys(name for one in columns for name in one)
        said = [
            text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        scores = self.rewards.score(
            prompts, said, {name: [one.get(name) for one in columns] for name in names}, ids
        )
        for warning in scores.warnings:
            self._warned.setdefault(warning, False)
        found = []
        for number, (row, tokens, text) in enumerate(zip(rows, ids, texts, strict=True)):
            values = [scores.values[name][number] for name in scores.names]
            total = scores.total[number]
            finished = tokens[-1] in self.stops
            if self.buffer:
                punished = overlong(len(tokens), finished, self.section.max_completion_length, self.buffer)
                values.append(punished)
                total += punished
            found.append(Answer(row, tokens, text, finished, values, total, logps[number]))
        return found


def overlong(length: int, finished: bool, longest: int, buffer: int) -> float:
    """0 to -1 over the last ``buffer`` tokens (arXiv:2503.14476, equation 13); -1 where it was cut off."""
    if not finished:
        return -1.0
    return min(0.0, (longest - buffer - length) / buffer)


def generation_settings(
    section: GRPOSection, handle: ModelHandle, stops: Sequence[int], *, greedy: bool
) -> GenerationConfig:
    """The section's sampling; the likeliest tokens where ``greedy``."""
    drawn: dict[str, Any] = {
        "do_sample": True,
        "temperature": section.temperature,
        "top_p": section.top_p,
        "top_k": section.top_k,
        "min_p": section.min_p,
    }
    return GenerationConfig(
        max_new_tokens=section.max_completion_length,
        repetition_penalty=section.repetition_penalty,
        eos_token_id=list(stops),
        pad_token_id=handle.pad_id,
        bos_token_id=handle.tokenizer.bos_token_id,
        **({"do_sample": False} if greedy else drawn),
    )


@torch.no_grad()
def written(
    model: Any,
    dtype: torch.dtype,
    prompts: list[list[int]],
    settings: GenerationConfig,
    at_once: int | None = None,
) -> list[list[int]]:
    """Ids of an answer to each prompt, up to and including its end; the model's mode is as before.

    On a GPU they are written on the fast path, where the model is on it; a cache that counts is given back
    for the training step.

    Args:
        model: transformers' causal model, or PEFT's wrapper around one.
        dtype: what it computes in.
        prompts: ids, none empty.
        settings: with a padding token and the end tokens.
        at_once: most that are written together; all where not given. Turns of one size share a cache and its
            CUDA graph, so these are as equal as can be, and all prompts are padded to one width.
    """
    device, stops = model.device, frozenset(settings.eos_token_id)
    ids_BT, mask_BT = _padded(prompts, int(settings.pad_token_id))
    size = -(-len(prompts) // -(-len(prompts) // at_once)) if at_once else len(prompts)
    turns = zip(ids_BT.split(size), mask_BT.split(size), strict=True)
    # On a CPU transformers' own loop is twice as fast: 64 x 32 tokens of the demo in 1.8 s, not 4.1.
    write = generate if device.type == "cuda" else type(model).generate
    answers: list[list[int]] = []
    training = model.training
    model.eval()
    try:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            for ids, mask in turns:
                found = write(
                    model,
                    input_ids=ids.to(device),
                    attention_mask=mask.to(device),
                    generation_config=settings,
                )
                answers += [_ended(row, stops) for row in found[:, ids.shape[1] :].tolist()]
    finally:
        model.train(training)
        _give_back(program_of(model), device)
    return answers


def _padded(prompts: list[list[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (B, T) with their padding on the left, and the mask of what is none."""
    width = max(map(len, prompts))
    ids_BT = torch.full((len(prompts), width), pad_id, dtype=torch.int64)
    mask_BT = torch.zeros_like(ids_BT)
    for row, prompt in enumerate(prompts):
        ids_BT[row, width - len(prompt) :] = torch.tensor(prompt)
        mask_BT[row, width - len(prompt) :] = 1
    return ids_BT, mask_BT


def _give_back(program: DecoderProgram | None, device: torch.device) -> None:
    """A small cache stays for the next time, with its CUDA graph."""
    decoding = None if program is None else program.decoding
    if program is not None and decoding is not None and decoding.nbytes > KEPT_SHARE * free_bytes(device):
        program.decoding = None


def _ended(ids: list[int], stops: frozenset[int]) -> list[int]:
    """Up to the first end token."""
    end = next((place for place, token in enumerate(ids) if token in stops), len(ids) - 1)
    return ids[: end + 1]
