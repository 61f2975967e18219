"""Pushing what a model's own saving writes: the methods that models of several kinds are given alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from peft import PeftModel

from .spellings import refuse_token


def push_to_hub(
    self: Any,
    repo_id: str,
    tokenizer: Any = None,
    private: bool = True,
    commit_message: str | None = None,
    token: str | None = None,
) -> str:
    """Upload the adapter, or the weights of a fully trained model; private unless `private=False`.

    Returns:
        The repository's address.

    Raises:
        WhetError: `python_api.token` and those of :mod:`..export.hub`.
    """
    method = "lora" if isinstance(self, PeftModel) else "merged_16bit"
    address: str = self.push_to_hub_merged(repo_id, tokenizer, method, private, commit_message, token)
    return address


def push_to_hub_merged(
    self: Any,
    repo_id: str,
    tokenizer: Any = None,
    save_method: str = "merged_16bit",
    private: bool = True,
    commit_message: str | None = None,
    token: str | None = None,
) -> str:
    """Write as the model's `save_pretrained_merged` does, then upload; private unless `private=False`.

    Returns:
        The repository's address.

    Raises:
        WhetError: those of `save_pretrained_merged` and :mod:`..export.hub`.
    """
    refuse_token("token", token)
    return push_written(
        lambda folder: self.save_pretrained_merged(folder, tokenizer, save_method),
        repo_id,
        private,
        commit_message,
    )


def push_written(
    write: Callable[[Path], Any],
    repo_id: str,
    private: bool,
    message: str | None,
    name: str = "model",
) -> str:
    """Upload what ``write`` puts into the new folder it is given, and return the repository's address.

    Args:
        write: takes the folder, which does not exist yet.
        repo_id: ``owner/name``.
        private: see :func:`..export.hub.push_folder`.
        message: of the commits.
        name: of the folder: a card that is written for it, and the commits without a message, say it.

    Raises:
        WhetError: those of ``write`` and of :func:`..export.hub.push_folder`.
    """
    from ..export.hub import push_folder

    with TemporaryDirectory(prefix="whet-push-") as parent:
        folder = Path(parent) / name
        write(folder)
        return push_folder(folder, repo_id, private=private, message=message)
