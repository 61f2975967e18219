"""Snapshots from the hub under a watchdog: a download that stands still is ended and begun again. Light.

The hub's client keeps finished files, so beginning again costs at most the files that were under way. Over
plain HTTP it resumes those too, within one attempt; over Xet a stalled transfer can wait for ever, which is
why the second attempt goes over plain HTTP with one worker.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from .checks.network import Download, DownloadFailed
from .errors import WhetError
from .hardware import free_disk
from .processes import send, start
from .settings import settings
from .surroundings.hub import hub_cache, read_hub

STALL_SECONDS = 90.0
"""Without a single byte; the client's own retries over plain HTTP take less."""
POLL_SECONDS = 0.5
ENDING_SECONDS = 1.0
CAREFULLY = {"HF_HUB_DISABLE_XET": "1"}
WORKERS = 8
STANDARD_ERROR = 2


def fetch(
    name: str,
    revision: str | None,
    patterns: list[str],
    *,
    patience: float = STALL_SECONDS,
    careful: bool = False,
) -> Path:
    """The folder of a model's files in the hub's cache.

    Args:
        name: hub id.
        revision: branch, tag or commit.
        patterns: of the files wanted.
        patience: seconds without a byte after which a download counts as stalled.
        careful: plain HTTP and one worker from the start.

    Raises:
        WhetError: ``model.not_found`` (offline or unreachable, and not cached), ``model.download`` (the hub
            said no), ``model.download_stalled``, ``model.disk_full``.
    """
    request = {"name": name, "revision": revision, "patterns": patterns, "offline": settings().offline}
    for attempt, cautious in enumerate((careful, True), 1):
        try:
            answer = _attempt(request, patience, cautious)
        except TimeoutError:
            if attempt == 1:
                continue
            raise DownloadFailed(_stopped("stalled", name, patience, attempt)) from None
        if "path" in answer:
            return Path(answer["path"])
        raise refusal(name, answer)
    raise AssertionError("the second attempt returns or raises")


def refusal(name: str, answer: dict[str, str]) -> WhetError:
    """The error for what :func:`.download_process.answer` says."""
    return DownloadFailed(_stopped(answer["kind"], name, 0.0, 1, answer["says"]))


def arrived(name: str) -> int:
    """Bytes of a model in the hub's cache, those of unfinished files too."""
    total = 0
    for file in (hub_cache() / f"models--{name.replace('/', '--')}" / "blobs").glob("*"):
        with suppress(FileNotFoundError):  # just renamed
            total += file.stat().st_size
    return total


def _attempt(request: dict[str, Any], patience: float, cautious: bool) -> dict[str, str]:
    """The far end's answer. Raises TimeoutError when nothing came for ``patience`` seconds."""
    variables = CAREFULLY if cautious else {}
    # Its progress bars go where ours would: to the terminal of a script, to the log of a worker.
    process = start("whet.engine.download_process", stderr=STANDARD_ERROR, **variables)
    assert process.stdout is not None
    try:
        send(process, request | {"workers": 1 if cautious else WORKERS}, last=True)
        process.stdout.readline()  # it begins
        _watch(process, request["name"], patience)
        said = process.stdout.read()
    finally:
        _end(process)
    if process.returncode or not said:
        raise WhetError(
            "model.download",
            f"The download of {request['name']} ended with code {process.returncode} and without an answer.",
            "A code of -9 is usually memory; `whet doctor` tells about the network, the disk and the token.",
        )
    answer: dict[str, str] = json.loads(said)
    return answer


def _watch(process: subprocess.Popen[str], name: str, patience: float) -> None:
    """Return when the process ends; raise TimeoutError when bytes stop coming."""
    seen, since = arrived(name), time.monotonic()
    while True:
        with suppress(subprocess.TimeoutExpired):
            process.wait(min(POLL_SECONDS, patience / 4))
            return
        now = arrived(name)
        if now != seen:
            seen, since = now, time.monotonic()
        elif time.monotonic() - since > patience:
            raise TimeoutError


def _end(process: subprocess.Popen[str]) -> None:
    """End it, gently first, so that the client removes what cannot be used again."""
    if process.poll() is not None:
        return
    unfinished = _open_files(process.pid)
    process.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(ENDING_SECONDS)
    process.kill()
    process.wait()
    for file in unfinished:
        file.unlink(missing_ok=True)


def _open_files(pid: int) -> list[Path]:
    """Unfinished files that a process holds open: nobody will use them again."""
    found = []
    for link in Path(f"/proc/{pid}/fd").glob("*"):
        with suppress(FileNotFoundError):  # closed meanwhile
            target = link.readlink()
            if target.suffix == ".incomplete":
                found.append(target)
    return found


def _stopped(kind: Any, name: str, seconds: float, attempts: int, says: str = "") -> Download:
    hub = read_hub()
    offline = tuple(hub.offline_by)
    return Download(
        kind="offline" if kind == "unreachable" and offline else kind,
        name=name,
        endpoint=hub.endpoint,
        offline_by=offline,
        arrived=arrived(name),
        seconds=seconds,
        attempts=attempts,
        free=free_disk(hub.cache),
        says=says,
    )
