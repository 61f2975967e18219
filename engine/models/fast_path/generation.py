"""``generate`` of a model on the fast path: transformers' own, with our forward passes in its inner loop.

transformers prepares inputs, settings, logits processors and stopping criteria as ever, and hands them to
:class:`_Loop` through its ``custom_generate`` argument. So temperature, top-k, top-p, min-p, penalties, stop
tokens and streamers mean what they mean there, and draw the same random numbers. What the loop cannot do
(several beams, assistants, caches of the caller's) runs on transformers' own code, with a warning that says
why.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from inspect import signature
from types import MethodType
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin

from ..writing_memory import CACHE_SHARE
from .apply import causal_model, program_of
from .attention_half import AttentionHalf
from .decoding import Decoding, cache_bytes, free_bytes
from .mlp_half import MlpHalf
from .moe_half import MoeHalf
from .packed import pack_padded
from .program import DecoderProgram

HEEDED = {
    "inputs",
    "input_ids",
    "attention_mask",
    "generation_config",
    "logits_processor",
    "stopping_criteria",
    "prefix_allowed_tokens_fn",
    "streamer",
}
"""Arguments that are no settings and that the loop, or what comes before it, heeds."""

HEEDED_VALUES: Mapping[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "use_cache": (True,),
    "cache_implementation": (),
    "use_mtp": (False,),
    "prompt_lookup_num_tokens": (),
    "speculation_type": (),
    "assistant_early_exit": (),
    "penalty_alpha": (0.0,),
    "dola_layers": (),
    "constraints": (),
    "force_words_ids": (),
    "guidance_scale": (1, 1.0),
    "token_healing": (False,),
    "stop_strings": (),
    "prefill_chunk_size": (),
    "return_dict_in_generate": (False,),
    "low_memory": (False,),
}
"""Settings that change what the loop has to do -> values, beside None, with which it is as it is here."""

UNSAID_LENGTH = 20
"""Tokens that transformers writes when nothing says how many."""


def bind_generate(model: Any) -> Any:
    """Give this instance :func:`generate`; its class stays as it is."""
    model.generate = MethodType(generate, model)
    return model


def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
    """transformers' ``generate``, on whet's kernels with a static cache and a CUDA graph.

    Takes and returns what the class's own ``generate`` does. Rows may be padded on either side: padding is
    taken out before the model sees it. The adapter is on or off as it is in the model.
    """
    plain = type(self).generate
    program = program_of(self)
    if program is None:
        return plain(self, *args, **kwargs)
    bound = signature(GenerationMixin.generate).bind(self, *args, **kwargs).arguments
    given = {name: value for name, value in bound.items() if name not in ("self", "kwargs")}
    given |= bound.get("kwargs", {})
    reason = why_plain(self, program, given)
    if reason is not None:
        warnings.warn(f"generate runs transformers' own code, which is slower: {reason}.", stacklevel=2)
        return plain(self, *args, **kwargs)
    return plain(self, *args, custom_generate=_Loop(program, given.get("streamer")), **kwargs)


def why_plain(model: Any, program: DecoderProgram, given: Mapping[str, Any]) -> str | None:
    """Why a generation cannot run in the loop; None: it can.

    Args:
        model: whose ``generation_config`` fills what is not given.
        program: of the model.
        given: arguments of ``generate`` by name.
    """
    known = GenerationConfig().to_dict().keys() | HEEDED_VALUES.keys() | HEEDED
    for name, value in given.items():
        if value is not None and name not in known:
            return f"{name} is given"
    settings = _settings(model, given)
    for name, values in HEEDED_VALUES.items():
        if name in settings and settings[name] not in values:
            return f"{name} is {settings[name]}"
    mask = given.get("attention_mask")
    if mask is not None and (mask.dim() != 2 or not bool(mask.any(1).all())):
        return "the attention mask has a row without tokens, or is no matrix"
    prompt, device = given.get("input_ids", given.get("inputs")), program.norm.weight.device
    if prompt is not None and prompt.device.type != device.type:
        return f"the prompt is on {prompt.device}, the model on {device}"
    rows, width = (1, 1) if prompt is None else prompt.shape
    total = width + int(settings.get("max_new_tokens", settings.get("max_length", UNSAID_LENGTH)))
    rows *= int(settings.get("num_return_sequences", 1))
    return (
        _program_refusal(model, program)
        or _rotary_refusal(program, width, total)
        or _memory_refusal(program, rows, total)
    )


def _settings(model: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """What is set: by an argument, else by the given configuration, else by the model's own."""
    configs = (causal_model(model).generation_config, given.get("generation_config"))
    layers = [config.to_dict() for config in configs if config is not None]
    return {name: value for layer in (*layers, given) for name, value in layer.items() if value is not None}


def _program_refusal(model: Any, program: DecoderProgram) -> str | None:
    for layer in program.layers:
        if isinstance(layer.mlp, MoeHalf):
            return "a mixture of experts writes on transformers' own module"
        if not isinstance(layer.attention, AttentionHalf) or not isinstance(layer.mlp, MlpHalf):
            return f"not all layers are fused ({program.report})"
    if not program.is_current():
        return "the model changed since it was put on the fast path"
    device = program.norm.weight.device.type
    if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) != program.dtype:
        return f"autocast asks for {torch.get_autocast_dtype(device)}, the fast path is in {program.dtype}"
    if any(
        module.training for module in model.modules() if isinstance(module, torch.nn.Dropout) and module.p
    ):
        return "dropout is on"
    return None


def _rotary_refusal(program: DecoderProgram, width: int, total: int) -> str | None:
    """Frequencies that follow the length must be the same for the prompt and for the whole."""
    if not program.settings.rope_follows_length:
        return None
    short, whole = (program.table("", longest).cos_PW for longest in (width, total))
    if not torch.equal(short, whole[: len(short)]):
        return f"rotary frequencies change between {width} and {total} tokens"
    return None


def _memory_refusal(program: DecoderProgram, rows: int, total: int) -> str | None:
    """The cache is made for all tokens at once; transformers' grows with those that are written."""
    needed, free = cache_bytes(program, rows, total), free_bytes(program.norm.weight.device)
    if program.decoding is not None:
        free += program.decoding.nbytes
    if needed > CACHE_SHARE * free:
        return (
            f"a cache for {rows} x {total} tokens takes {needed / 2**30:.1f} of {free / 2**30:.1f} free GiB"
        )
    return None


class _Loop:
    """What transformers calls in place of its own decoding loop."""

    def __init__(self, program: DecoderProgram, streamer: Any) -> None:
        # transformers does not pass the streamer on to a loop of the caller's
        self.program, self.streamer = program, streamer

    def __call__(
        self,
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: GenerationConfig,
        **inputs: Any,
    ) -> torch.Tensor:
        with torch.autocast(input_ids.device.type, enabled=False):  # types are the program's own
            return self._run(
                input_ids,
                inputs.get("attention_mask"),
                logits_processor,
                stopping_criteria,
                generation_config,
            )

    def _run(
        self,
        prompts_BT: torch.Tensor,
        mask_BT: torch.Tensor | None,
        processors: Any,
        criteria: Any,
        config: Any,
    ) -> torch.Tensor:
        rows, width = prompts_BT.shape
        longest = max(config.max_length, width + 1)
        decoding = self._decoding(rows, longest)
        packed, _ = pack_padded(prompts_BT, None if mask_BT is None else mask_BT.to(prompts_BT.device))
        logits_BV = decoding.prefill(self.program, packed)
        ids_BL = prompts_BT.new_empty(rows, longest)
        ids_BL[:, :width] = prompts_BT
        finished_B = torch.zeros(rows, dtype=torch.bool, device=prompts_BT.device)
        pad = 0 if config.pad_token_id is None else int(config.pad_token_id)
        seen = _Seen(rows, prompts_BT.device)
        length = width
        while True:
            scores_BV = processors(ids_BL[:, :length], logits_BV)
            chosen_B = _choose(scores_BV, bool(config.do_sample)).masked_fill_(finished_B, pad)
            ids_BL[:, length] = chosen_B
            length += 1
            finished_B |= criteria(ids_BL[:, :length], None)
            seen.take(chosen_B, finished_B)
            if length < longest:
                # Begun before the host knows whether it is wanted, so that the GPU need not wait for it.
                logits_BV = decoding.step(self.program, chosen_B)
            tokens, all_finished = seen.read()
            if self.streamer is not None:
                self.streamer.put(tokens)
            if all_finished or length == longest:
                break
        if self.streamer is not None:
            self.streamer.end()
        return ids_BL[:, :length]

    def _decoding(self, rows: int, places: int) -> Decoding:
        program = self.program
        program.refresh()
        if program.decoding is None or not program.decoding.serves(program, rows, places):
            program.decoding = None  # frees its buffers before others are made
            program.decoding = Decoding(program, rows, places)
        return program.decoding


def _choose(scores_BV: torch.Tensor, sample: bool) -> torch.Tensor:
    """The next token of each row, drawn or the likeliest."""
    if not sample:
        return scores_BV.argmax(-1)
    return torch.multinomial(torch.softmax(scores_BV, dim=-1), num_samples=1).squeeze(1)


class _Seen:
    """A step's tokens and which rows are finished, on their way to the host."""

    def __init__(self, rows: int, device: torch.device) -> None:
        pinned = device.type == "cuda"
        self.tokens = torch.empty(rows, dtype=torch.int64, pin_memory=pinned)
        self.finished = torch.empty(rows, dtype=torch.bool, pin_memory=pinned)
        self.arrived = torch.cuda.Event() if pinned else None

    def take(self, tokens_B: torch.Tensor, finished_B: torch.Tensor) -> None:
        """Begin the copy."""
        self.tokens.copy_(tokens_B, non_blocking=True)
        self.finished.copy_(finished_B, non_blocking=True)
        if self.arrived is not None:
            self.arrived.record()

    def read(self) -> tuple[torch.Tensor, bool]:
        """The tokens, and whether all rows are finished."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.tokens.clone(), bool(self.finished.all())
