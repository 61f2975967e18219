"""The near end of an export: starts :mod:`whet.engine.export.export_process` and yields its events. Light."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any

from ..processes import send, start
from ..runs.events import EVENT, ErrorEvent, Event

LOG_TAIL = 500
SECONDS_TO_LEAVE = 10.0


def export_events(request: dict[str, Any]) -> Iterator[Event]:
    """Events of one export or smoke test; an ErrorEvent last when it failed. Closing the iterator ends it."""
    with tempfile.TemporaryFile() as log:
        process = start("whet.engine.export.export_process", stderr=log)
        assert process.stdout is not None
        failed = False
        try:
            send(process, request, last=True)
            for line in process.stdout:
                event = EVENT.validate_json(line)
                failed = failed or isinstance(event, ErrorEvent)
                yield event
            process.wait()
        finally:
            process.terminate()  # nothing to end unless the reader went away
            _wait(process)
        if process.returncode not in (0, 1, 3) or (process.returncode == 1 and not failed):
            log.seek(0)
            said = log.read().decode(errors="replace").strip()[-LOG_TAIL:]
            yield ErrorEvent(
                code="export.crashed",
                message=f"The export's process ended with code {process.returncode}: {said}",
                hint="A code of -9 is usually memory; `whet doctor` tells what is free.",
            )


def _wait(process: subprocess.Popen[str]) -> None:
    """Until it has removed what was half-written, or a while: then the next export removes that."""
    try:
        process.wait(SECONDS_TO_LEAVE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
