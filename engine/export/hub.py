"""Upload an export through huggingface_hub: private by default, and no GGUF without its proof. Light.

The token is the hub's own: HF_TOKEN or the cache of `hf auth login`. None is taken as an argument or stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from ..errors import WhetError
from ..settings import settings
from .artifacts import Artifact, list_artifacts
from .verdict import load_verdict

IGNORED = [".*", "**/.*", "*.partial", "optimizer.pt", "checkpoints/**"]

Part = Literal["adapter", "merged", "gguf"]
FOLDERS = {"adapter": ("adapter",), "merged": ("merged", "model"), "gguf": ("gguf", "modelfile", "card")}
"""Part of a run's export -> the kinds of its artefacts; GGUF files go with what lies beside them."""


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
    ignore: Sequence[str] = (),
    api: HubApi | None = None,
) -> str:
    """Upload everything in ``folder`` to the model repository ``repo_id``, which is created if need be.

    Args:
        folder: an export.
        repo_id: ``owner/name``.
        private: of a repository that does not exist yet; an existing one keeps its visibility.
        force: upload GGUF files without a passing verdict.
        message: commit message.
        ignore: patterns of files to leave out, beside hidden and half-written ones.
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
    words = message or f"Upload {folder.name} with whet"
    return _upload(api, folder, repo_id, private, words, [*IGNORED, *ignore])


def list_part(export: Path, part: Part, *, force: bool = False) -> list[Artifact]:
    """What :func:`push_part` would upload. Raises WhetError ``hub.nothing``, and ``hub.unproven`` unless
    ``force``."""
    found = [one for one in list_artifacts(export) if one.kind in FOLDERS[part]]
    if not any(one.kind in (part, "model") for one in found):
        raise WhetError(
            "hub.nothing", f"{export} holds no {part} to upload.", "Export it first with `whet export`."
        )
    if not force:
        _refuse_unproven(unproven(export if part == "gguf" else found[0].path))
    return found


def push_part(
    export: Path,
    part: Part,
    repo_id: str,
    *,
    private: bool = True,
    force: bool = False,
    api: HubApi | None = None,
) -> str:
    """Upload one part of a run's ``export/`` as :func:`push_folder` does; returns the same."""
    found = list_part(export, part, force=force)
    words = f"Upload {part} of {export.parent.name} with whet"
    if part != "gguf":
        return push_folder(found[0].path, repo_id, private=private, force=force, message=words, api=api)
    folders = [f"{name}/**" for name in ("adapter", "merged", "model")]
    return push_folder(export, repo_id, private=private, force=force, message=words, ignore=folders, api=api)


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


def _upload(api: HubApi, folder: Path, repo_id: str, private: bool, message: str, ignored: list[str]) -> str:
    # HTTPError is that of whichever HTTP client this version of huggingface_hub uses.
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError

    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id, folder_path=str(folder), commit_message=message, ignore_patterns=ignored
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
