"""Upload an export through huggingface_hub: private by default, and no GGUF without its proof. Light.

The token is the hub's own: HF_TOKEN or the cache of `hf auth login`. None is taken as an argument or stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from ..errors import WhetError
from ..settings import settings
from .verdict import load_verdict

IGNORED = [".*", "**/.*", "*.partial", "optimizer.pt", "checkpoints/**"]


class HubApi(Protocol):
    """The two calls used of :class:`huggingface_hub.HfApi`."""

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> Any: ...

    def upload_folder(
        self, *, repo_id: str, folder_path: str, commit_message: str, ignore_patterns: list[str]
    ) -> Any: ...


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool = True,
    force: bool = False,
    message: str | None = None,
    api: HubApi | None = None,
) -> str:
    """Upload everything in ``folder`` to the model repository ``repo_id``, which is created if need be.

    Args:
        folder: an export.
        repo_id: ``owner/name``.
        private: of a repository that does not exist yet; an existing one keeps its visibility.
        force: upload GGUF files without a passing verdict.
        message: commit message.
        api: something like HfApi; by default the real one with the hub's own token.

    Returns:
        The repository's address.

    Raises:
        WhetError: ``hub.unproven`` naming the files, ``hub.offline``, ``hub.no_token``, ``hub.refused``,
            ``hub.no_folder``.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        raise WhetError(
            "hub.no_folder", f"{folder} holds nothing to upload.", "Export first with `whet export`."
        )
    if not force:
        _refuse_unproven(unproven(folder))
    if settings().offline:
        raise WhetError(
            "hub.offline",
            f"Uploading {repo_id} needs the network, and WHET_OFFLINE or HF_HUB_OFFLINE is set.",
            "Unset it, or copy the folder by other means.",
        )
    if api is None:
        api = _real_api()
    return _upload(api, folder, repo_id, private, message or f"Upload {folder.name} with whet")


def unproven(folder: Path) -> list[tuple[str, str]]:
    """GGUF files and merged weights in ``folder`` that may not be pushed, each with the reason."""
    found = []
    for gguf in sorted(folder.rglob("*.gguf")):
        verdict = load_verdict(gguf)
        if verdict is None:
            found.append((gguf.name, "no verdict of exactly this file"))
        elif verdict.status == "fail":
            found.append((gguf.name, f"failed: {verdict.failures()[0].summary}"))
    for weights in sorted(folder.rglob("config.json")):
        verdict = load_verdict(weights.parent)
        if verdict is not None and verdict.status == "fail":
            found.append((weights.parent.name, f"failed: {verdict.failures()[0].summary}"))
    return found


def _refuse_unproven(found: Sequence[tuple[str, str]]) -> None:
    if found:
        named = "; ".join(f"{name} ({reason})" for name, reason in found)
        raise WhetError(
            "hub.unproven",
            f"Not uploaded, since {len(found)} file(s) are unproven: {named}.",
            "Prove them with `whet smoke FILE --reference MODEL`, or upload anyway with force=True.",
        )


def _real_api() -> HubApi:
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise WhetError(
            "hub.no_token",
            "There is no Hugging Face token.",
            "Set HF_TOKEN to one with write access, or run `hf auth login`.",
        )
    api: HubApi = HfApi(library_name="whet")
    return api


def _upload(api: HubApi, folder: Path, repo_id: str, private: bool, message: str) -> str:
    # HTTPError is that of whichever HTTP client this version of huggingface_hub uses.
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError

    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id, folder_path=str(folder), commit_message=message, ignore_patterns=IGNORED
        )
    except (HfHubHTTPError, HFValidationError) as error:
        raise WhetError(
            "hub.refused",
            f"The hub refused {repo_id}: {str(error).strip().splitlines()[0]}",
            "Does the token have write access to that owner, and is the name owner/name?",
        ) from error
    except (HTTPError, ConnectionError, TimeoutError) as error:
        raise WhetError(
            "hub.offline", f"The hub cannot be reached: {error}.", "Check the network and try again."
        ) from error
    return str(url)
