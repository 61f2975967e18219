"""What the hub's client raises, in words of ours: what happened, what stays, what to do next. Light.

Nothing of what the client says is passed on whole: its messages name addresses, and those of the storage are
signed. Queries are cut off, and what looks like a secret is taken out.
"""

from __future__ import annotations

import re
from typing import Any

from ..errors import WhetError
from ..redaction import Redactor
from .upload_watchdog import Stalled, XetStalled

QUERY = re.compile(r"(\w+://[^\s'\"?]+)\?[^\s'\"]*")
FULL = re.compile(r"(?i)storage limit|quota|insufficient storage|out of storage|exceeds? .*\blimit")
XET_STATUS = re.compile(r"HTTP status \w+ error \((\d{3})\b")
PASSING = (408, 425, 429, 500, 502, 503, 504)
LONGEST_WAIT = 600.0
"""Seconds; a hub that names a longer one is told of instead of waited for."""
LONGEST_WORDS = 300
WITHOUT_XET = " HF_HUB_DISABLE_XET=1 sends without Xet, so that five minutes of silence end it."
AGAIN = "What arrived stays there: push again, and it goes on from there."


def troubles() -> tuple[type[Exception], ...]:
    """What an upload can fail with for reasons outside of this program."""
    # HTTPError is that of whichever HTTP client this version of huggingface_hub uses.
    from huggingface_hub.errors import HFValidationError, HTTPError

    # The client wraps failed transfers in RuntimeError and says what its storage refuses by ValueError; Xet
    # says by PermissionError that a token may not write.
    own = (RuntimeError, ValueError, PermissionError)
    return HFValidationError, HTTPError, ConnectionError, TimeoutError, *own


def with_xet(error: Exception, seconds: float, patience: float) -> Exception:
    """What the client raised, or :class:`XetStalled` where Xet itself gave up waiting.

    Args:
        seconds: until it was raised; a network that is away fails at once, and may soon be back.
        patience: of the watchdog.
    """
    cause = _root(error)
    # Whatever else fails on the network has a class of its own; Xet's errors are Python's bare one.
    if type(cause) is ConnectionError and _status(cause) is None and seconds >= patience:
        return XetStalled(f"Xet gave up on its storage, {seconds:.0f} s after the transfer began")
    return error


def may_pass(error: Exception) -> bool:
    """Whether trying again can help: the network, or a hub that is busy."""
    cause = _root(error)
    if isinstance(cause, Stalled):
        return False  # its patience was long; who comes back later loses nothing
    status = _status(cause)
    if status is not None:
        return status in PASSING and retry_after(error) <= LONGEST_WAIT
    return _is_network(cause)


def retry_after(error: BaseException) -> float:
    """Seconds that the hub asks to wait; 0 when it names none."""
    response = _response(_root(error))
    said = response.headers.get("Retry-After", "") if response is not None else ""
    return float(said) if re.fullmatch(r"\d+(\.\d+)?", said) else 0.0


def public_repository(repo_id: str) -> WhetError:
    """A private upload must not become public because the repository is."""
    return WhetError(
        "hub.public",
        f"{repo_id} exists and is public, so that everybody would see the files; nothing was uploaded.",
        "Choose another name, make the repository private in its settings, or push with private off.",
    )


def refusal(repo_id: str, error: Exception) -> WhetError:
    """The error for what the client raised."""
    from huggingface_hub.errors import HFValidationError

    cause = _root(error)
    words = _words(cause)
    if isinstance(cause, Stalled):
        plain = WITHOUT_XET if isinstance(cause, XetStalled) else ""
        return WhetError(
            "hub.stalled",
            f"The hub stopped answering while {repo_id} was uploaded: {words}",
            f"Check the network, or try later. {AGAIN}{plain}",
        )
    status = _status(cause)
    if status in (402, 413, 507) or FULL.search(words):
        return WhetError(
            "hub.full",
            f"The hub has no room for {repo_id}: {words}",
            "Free space or get more (the hub's settings, Storage), or push fewer and smaller types. " + AGAIN,
        )
    if status == 401:
        return WhetError(
            "hub.token",
            f"The hub does not accept the token for {repo_id}: {words}",
            "Set HF_TOKEN to a valid one with write access, or run `hf auth login`.",
        )
    if status is not None and status in PASSING:
        wait = retry_after(cause)
        when = f"in {wait:.0f} s" if wait else "later"
        return WhetError(
            "hub.busy", f"The hub could not take {repo_id} now ({status}): {words}", f"Try {when}. {AGAIN}"
        )
    if isinstance(cause, HFValidationError):
        hint = "A repository's name is owner/name, of letters, digits, '.', '_' and '-'."
        return WhetError("hub.refused", f"{repo_id!r} is no repository's name: {words}", hint)
    if status is None and _is_network(cause):
        return WhetError("hub.offline", f"The hub cannot be reached: {words}", f"Check the network. {AGAIN}")
    hint = "Does the token have write access to that owner, and is the name owner/name?"
    if status not in (403, 404):
        hint = f"Mend what it names. {AGAIN}"
    return WhetError("hub.refused", f"The hub refused {repo_id}: {words}", hint)


def _root(error: BaseException) -> BaseException:
    """The answer or the broken connection that a failed transfer is wrapped around."""
    while isinstance(error, RuntimeError | ValueError) and error.__cause__ is not None:
        if _status(error) is not None:
            break
        error = error.__cause__
    return error


def _response(error: BaseException) -> Any:
    from huggingface_hub.errors import HfHubHTTPError

    return error.response if isinstance(error, HfHubHTTPError) else None


def _status(error: BaseException) -> int | None:
    response = _response(error)
    if response is not None:
        return int(response.status_code)
    # Xet's client raises ConnectionError and PermissionError with the answer in words.
    said = XET_STATUS.search(str(error))
    return int(said[1]) if said else None


def _is_network(error: BaseException) -> bool:
    from huggingface_hub.errors import HTTPError

    return isinstance(error, HTTPError | ConnectionError | TimeoutError)


def _words(error: BaseException) -> str:
    """What the hub said, else the client, on one line and without anything secret."""
    from huggingface_hub.errors import HfHubHTTPError

    said = error.server_message if isinstance(error, HfHubHTTPError) else None
    text = QUERY.sub(r"\1", " ".join((said or str(error)).split()))
    text = Redactor(hide_paths=False).text(text)[:LONGEST_WORDS].rstrip(" .:")
    return f"{text or type(error).__name__}."
