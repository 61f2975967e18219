"""Greedy writing: what a Whisper model takes a batch of sounds to say."""

from __future__ import annotations

from typing import Any

import torch

from ...data.transcripts import Transcripts


@torch.no_grad()
def write_down(
    model: Any, features: torch.Tensor, prefix: list[list[int]], marks: Transcripts, most: int
) -> list[list[int]]:
    """Ids of each row's text, without prefix and end.

    The likeliest token each time, but for those that the model's own generation settings suppress.

    Args:
        model: transformers' Whisper.
        features: [rows, mels, frames].
        prefix: what stands before each row's text, all of one length.
        marks: ids of start and end.
        most: tokens a text may have.
    """
    settings = model.generation_config
    never = torch.tensor(settings.suppress_tokens or [], device=features.device, dtype=torch.long)
    first = torch.tensor(settings.begin_suppress_tokens or [], device=features.device, dtype=torch.long)
    encoded = model.get_encoder()(features.to(model.dtype))
    inputs = torch.tensor([[marks.start, *row] for row in prefix], device=features.device)
    done = torch.zeros(len(inputs), dtype=torch.bool, device=features.device)
    written: list[torch.Tensor] = []
    cache = None
    for place in range(most):
        out = model(encoder_outputs=encoded, decoder_input_ids=inputs, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        logits = out.logits[:, -1].float()
        logits[:, never] = -torch.inf
        if place == 0:
            logits[:, first] = -torch.inf
        tokens = logits.argmax(-1).masked_fill(done, marks.end)
        done |= tokens == marks.end
        if bool(done.all()):
            break
        written.append(tokens)
        inputs = tokens[:, None]
    rows = torch.stack(written, 1).tolist() if written else [[] for _ in prefix]
    return [row[: row.index(marks.end)] if marks.end in row else row for row in rows]
