"""Publishing: what leaves the machine leaves it by a person's word, or an operator's."""

from __future__ import annotations

import re
import threading
from concurrent.futures import Future
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from anyio.to_thread import run_sync
from mcp.server.elicitation import AcceptedElicitation, ElicitationResult
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.resolve import Elicit, Resolve
from mcp.types import ToolAnnotations
from mcp_types.version import is_version_at_least
from pydantic import BaseModel, Field

from whet.engine import api

from ..results import Result, call
from ..server import Server
from .common import known_run
from .toolsets import PUBLISHES, Toolset

Part = Literal["adapter", "adapter_gguf", "merged", "merged_4bit", "fp8", "gguf"]

REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
PUSH_SECONDS = 45.0
ASKED_IN_RESULTS = "2026-07-28"
"""From this revision on a question travels in the result of the call, and needs no way back."""

Upload = tuple[str, str, Part, bool, bool]
"""Run, repository, part, private, unproven files too: all that a person agreed to."""


class Consent(BaseModel):
    """What the person is asked."""

    upload: bool = Field(description="Upload these files now?")


class PushResult(Result):
    """Where the files are, or that they are on their way."""

    run_id: str
    repo: str
    address: str | None
    bytes: int


class Uploads:
    """Uploads of this server: each goes on when its call has been answered, and is joined by the next."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[Upload, Future[str]] = {}

    def has(self, upload: Upload) -> bool:
        """Whether it goes on, or has ended and was not told yet."""
        return upload in self._under_way

    def address(self, upload: Upload, seconds: float) -> str | None:
        """Start it unless it goes on; where it lies, or None when that takes longer. Raises ``hub.*``."""
        with self._lock:
            if upload not in self._under_way:
                done = self._under_way[upload] = Future[str]()
                threading.Thread(target=_upload, args=(upload, done), daemon=True).start()
            future = self._under_way[upload]
        try:
            address = future.result(seconds)
        except TimeoutError:
            if not future.done():
                return None
            raise
        finally:
            if future.done():
                with self._lock:
                    self._under_way.pop(upload, None)
        return address


def _upload(upload: Upload, done: Future[str]) -> None:
    run_id, repo, what, private, force = upload
    try:
        done.set_result(api.push(run_id, repo, what, private=private, force=force))
    except Exception as error:  # it is raised again where the address is wanted
        done.set_exception(error)


UPLOADS = Uploads()
"""Of this process, whatever servers it holds."""


def permission(
    run_id: str,
    repo: str,
    what: Part,
    private: bool,
    force_unproven: bool,
    context: Context[Any, Any],
) -> Consent | Elicit[Consent]:
    """The person's word, asked for once it is known that the upload could go ahead.

    Raises WhetError ``hub.repo``, ``hub.unasked``, ``hub.nothing``, ``hub.unproven``, those of the run's id.
    """
    server = context.mcp_server
    assert isinstance(server, Server)
    if not REPO.fullmatch(repo):
        raise api.WhetError(
            "hub.repo",
            f"{api.printable(repo[:80])!r} is no repository.",
            call("hub_push", run_id=run_id, repo="owner/name"),
        )
    run = known_run(run_id)
    parts = api.pushable(run.id, what, force=force_unproven)
    if server.options.push_unasked or UPLOADS.has((run.id, repo, what, private, force_unproven)):
        return Consent(upload=True)
    if not _can_be_asked(context):
        raise api.WhetError(
            "hub.unasked",
            "This client cannot ask its person, and nothing is uploaded unasked.",
            f"The person can upload it themselves from {parts[0].path.parent}, or the operator can start "
            "whet-mcp with --allow-push.",
        )
    megabytes = sum(part.bytes for part in parts) / 1e6
    unproven = " Its files are NOT proven to be the trained model." if force_unproven else ""
    return Elicit(
        f"Upload the {what} of run {run.id} ({megabytes:.1f} MB) to {repo} on the Hugging Face hub, "
        f"{'as a private repository' if private else 'PUBLIC, for everybody to see'}?{unproven}",
        Consent,
    )


def _can_be_asked(context: Context[Any, Any]) -> bool:
    capabilities = context.client_capabilities
    asked = None if capabilities is None else capabilities.elicitation
    if asked is None or (asked.form is None and asked.url is not None):
        return False
    version = context.protocol_version
    in_results = version is not None and is_version_at_least(version, ASKED_IN_RESULTS)
    return in_results or context.request_context.session.can_send_request


class HubTools(Toolset):
    """The one tool that publishes."""

    name: ClassVar[str] = "hub"
    tools: ClassVar[dict[str, ToolAnnotations]] = {"hub_push": PUBLISHES}

    async def hub_push(
        self,
        run_id: str,
        repo: str,
        context: Context[Any, Any],
        consent: Annotated[ElicitationResult[Consent], Resolve(permission)],
        what: Part = "adapter",
        private: bool = True,
        force_unproven: bool = False,
    ) -> PushResult:
        """Upload a run's adapter, merged weights or proven GGUFs to `repo` (owner/name). The person is asked.
        The token is the server's own."""
        if not isinstance(consent, AcceptedElicitation) or not consent.data.upload:
            raise api.WhetError(
                "hub.declined",
                "The person did not agree; nothing was uploaded.",
                "Do not ask again unless they want it.",
            )
        run = await run_sync(known_run, run_id)
        upload: Upload = (run.id, repo, what, private, force_unproven)
        parts = await run_sync(partial(api.pushable, run.id, what, force=force_unproven))
        address = await run_sync(partial(UPLOADS.address, upload, PUSH_SECONDS), abandon_on_cancel=True)
        size = sum(part.bytes for part in parts)
        again = call(
            "hub_push", run_id=run.id, repo=repo, what=what, private=private, force_unproven=force_unproven
        )
        where = f"is at {address}" if address else "is still going up; it ends if this server does"
        return PushResult(
            summary=f"The {what} of {run.id} ({size / 1e6:.1f} MB) {where}.",
            next=[call("job_list")] if address else [again],
            run_id=run.id,
            repo=repo,
            address=address,
            bytes=size,
        )
