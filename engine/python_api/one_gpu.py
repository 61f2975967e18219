"""A script that no launcher started trains on one GPU, however many there are."""

from __future__ import annotations

import os
from typing import Any

import torch

from .notes import say


def stay_on_one_gpu(model: Any, device: str) -> None:
    """Keep transformers' trainers from copying a model onto every GPU that one process sees.

    They do so by ``nn.DataParallel``, which TRL's trainers refuse and modules replaced on an instance do not
    survive. A model that says itself where it lies (``hf_device_map``), in other words than the trainer's own
    ``cuda:0``, is left there, on one GPU. Processes of a launcher have a GPU each anyway.

    Args:
        model: what trainers are given: transformers' model, or a SentenceTransformer.
        device: where it lies, e.g. ``cuda:0``.
    """
    found, launched = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", "-1")) != -1
    if found < 2 or launched or not device.startswith("cuda"):
        return
    place = torch.device(device)
    model.hf_device_map = {"": str(place) if place.index else "cuda"}
    if place.index:
        say(
            f"The model lies on {place}, but transformers' trainers use the first GPU that a process sees. "
            f"To train it there: CUDA_VISIBLE_DEVICES={place.index}, without device_map.",
            above=1,
        )
    else:
        say(
            f"{found} GPUs are visible; this process trains on one. `torchrun --nproc-per-node {found}` "
            "starts the script on all of them.",
            above=1,
        )
