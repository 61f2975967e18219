"""Models on the hub by words, with what decides whether to take one. Light."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from ..errors import WhetError
from ..settings import settings
from ..surroundings.hub import ENDPOINT

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

PATIENCE = 10.0
"""Seconds for the answer."""

EXPANDED = ["downloads", "gated", "safetensors", "tags"]
LICENCE_TAG = "license:"


class HubModel(BaseModel):
    """One text-generation model of the hub."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    parameters: int | None = Field(description="Of its safetensors files; None: the hub does not tell.")
    downloads: int = Field(description="Of the last month.")
    gated: bool = Field(description="Asks for a login and an accepted licence.")
    licence: str | None


def search_hub(query: str, limit: int = 20) -> list[HubModel]:
    """Text-generation models whose name holds ``query``, the most downloaded first.

    Raises:
        WhetError: ``hub.offline`` where the network is not to be used, ``hub.unreachable`` with the reason.
    """
    if settings().offline:
        raise WhetError(
            "hub.offline",
            f"whet is offline, so the hub is not searched for {query!r}.",
            "Unset WHET_OFFLINE and HF_HUB_OFFLINE to search it.",
        )
    from huggingface_hub import ModelInfo
    from huggingface_hub.errors import HTTPError
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    # Its list_models() asks an absent hub for half a minute; a person waits for this one.
    wanted: dict[str, str | int | list[str]] = {
        "search": query,
        "pipeline_tag": "text-generation",
        "sort": "downloads",
        "limit": limit,
        "expand": EXPANDED,
    }
    url = f"{os.environ.get('HF_ENDPOINT', ENDPOINT).rstrip('/')}/api/models"
    try:
        answer = get_session().get(url, params=wanted, headers=build_hf_headers(), timeout=PATIENCE)
        hf_raise_for_status(answer)
        found = [ModelInfo(**one) for one in answer.json()]
    except (HTTPError, OSError, ValueError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WhetError(
            "hub.unreachable",
            f"The hub gives no answer: {why}.",
            "Check the network, or type a model's whole id.",
        ) from error
    return [_model(one) for one in found]


def _model(info: ModelInfo) -> HubModel:
    licences = [tag.removeprefix(LICENCE_TAG) for tag in info.tags or () if tag.startswith(LICENCE_TAG)]
    return HubModel(
        name=info.id,
        parameters=info.safetensors.total if info.safetensors is not None else None,
        downloads=info.downloads or 0,
        gated=bool(info.gated),
        licence=licences[0] if licences else None,
    )
