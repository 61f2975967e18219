"""The model hub as this process would reach it; tokens are looked for and never kept. Light."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from ..hardware import free_disk
from ..settings import TRUE_WORDS
from .facts import Hub, Reach

ENDPOINT = "https://huggingface.co"
OFFLINE_FLAGS = ("WHET_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
TOKEN_FLAGS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
PATIENCE = 4.0
"""Seconds for the answer, name resolution included."""


def read_hub() -> Hub:
    """What is known without asking the network."""
    cache = hub_cache()
    source, hidden = _token_source()
    partial = [file.stat().st_size for file in cache.glob("*--*/blobs/*.incomplete")]
    return Hub(
        endpoint=os.environ.get("HF_ENDPOINT", ENDPOINT).rstrip("/"),
        offline_by=[flag for flag in OFFLINE_FLAGS if os.environ.get(flag, "").lower() in TRUE_WORDS],
        token_from=source,
        second_token=hidden,
        cache=cache,
        cache_free=free_disk(cache),
        cache_writable=_writable(cache),
        partial_files=len(partial),
        partial_bytes=sum(partial),
    )


def hub_home() -> Path:
    """The hub client's folder, by its own variables."""
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    return Path(os.environ.get("HF_HOME", default)).expanduser().absolute()


def hub_cache() -> Path:
    """Where the hub's client keeps downloads, by its own variables."""
    old = os.environ.get("HUGGINGFACE_HUB_CACHE", hub_home() / "hub")
    return Path(os.environ.get("HF_HUB_CACHE", old)).expanduser().absolute()


def token() -> str | None:
    """The token the hub's client would send; for redaction and for asking whose it is, never to be shown."""
    for flag in TOKEN_FLAGS:
        if value := os.environ.get(flag, "").strip():
            return value
    return stored_token()


def token_file() -> Path:
    """Where `hf auth login` leaves the token."""
    return Path(os.environ.get("HF_TOKEN_PATH", hub_home() / "token")).expanduser().absolute()


def ask_hub(hub: Hub) -> Reach:
    """Ask the hub whose token this is, which also tells whether it is there; takes at most ``PATIENCE``."""
    if hub.offline_by:
        return Reach(reachable=False, why=f"{' and '.join(hub.offline_by)} forbids the network")
    command = [sys.executable, "-P", "-m", "whet.engine.surroundings.hub_process"]
    try:
        done = subprocess.run(
            command, input=hub.endpoint, capture_output=True, text=True, timeout=PATIENCE, encoding="utf-8"
        )
    except subprocess.TimeoutExpired:
        return Reach(reachable=False, why=f"no answer within {PATIENCE:.0f} s")
    if done.returncode:
        return Reach(reachable=False, why=done.stderr.strip().rpartition("\n")[2][:200])
    return Reach.model_validate(json.loads(done.stdout))


def _token_source() -> tuple[str | None, str | None]:
    """Where the token comes from, and a file with another one that it hides."""
    stored = stored_token()
    named = next((flag for flag in TOKEN_FLAGS if os.environ.get(flag, "").strip()), None)
    if named is None:
        return (str(token_file()) if stored else None), None
    other = stored is not None and stored != os.environ[named].strip()
    return named, str(token_file()) if other else None


def stored_token() -> str | None:
    """What `hf auth login` left, used or hidden by a variable."""
    file = token_file()
    return file.read_text(encoding="utf-8").strip() or None if file.is_file() else None


def _writable(folder: Path) -> bool:
    while not folder.exists():
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
