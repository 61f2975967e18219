"""The far end of :func:`.downloads.fetch`: the hub's own client, in a process that can be ended."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from huggingface_hub import get_token, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import tqdm

from .runs.failures import DISK_FULL, DISK_FULL_TEXTS
from .surroundings.hub import hub_cache


def main() -> None:
    """Download what the request on standard input asks for; answer with the path, or the kind of failure.

    A first line, empty, says that all is imported: until then no byte can come.
    """
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    out.write("\n")
    out.flush()
    try:
        said = answer(json.load(sys.stdin))
    except Exception as error:  # whatever it is, the near end tells it
        said = {"kind": "missing", "says": f"{type(error).__name__}: {_first_line(error)}"}
    out.write(json.dumps(said) + "\n")
    out.flush()


def answer(request: dict[str, Any], bars: bool = True) -> dict[str, str]:
    """``{"path": ...}``, or ``{"kind": ..., "says": ...}`` as :class:`.checks.network.Download` has them.

    ``bars`` shows progress on standard error.
    """
    try:
        path = snapshot_download(
            request["name"],
            revision=request["revision"],
            allow_patterns=request["patterns"],
            local_files_only=request["offline"],
            max_workers=request["workers"],
            # The client has read these variables when it was imported, whet reads them now.
            cache_dir=hub_cache(),
            endpoint=os.environ.get("HF_ENDPOINT"),
            tqdm_class=None if bars else _no_bars(),
        )
    except LocalEntryNotFoundError as error:
        return {"kind": "offline" if request["offline"] else "unreachable", "says": _first_line(error)}
    except GatedRepoError as error:
        return {"kind": "gated", "says": _first_line(error)}
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        token = get_token() is not None
        kind = "missing" if status not in (401, 403) else "refused" if token else "no_token"
        return {"kind": kind, "says": _first_line(error)}
    except OSError as error:
        if error.errno in DISK_FULL or any(text in str(error) for text in DISK_FULL_TEXTS):
            return {"kind": "disk", "says": _first_line(error)}
        raise
    return {"path": path}


def _no_bars() -> type:
    """A progress bar that shows nothing: small files are not worth one."""

    class Silent(tqdm):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options | {"disable": True})

    return Silent


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


if __name__ == "__main__":
    main()
