"""The one token of a server over HTTP: compared in constant time, with an end if wanted."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, MutableMapping
from datetime import datetime

from mcp.server.auth.provider import AccessToken, TokenVerifier

from whet.engine.api import WhetError

SHORTEST = 16
"""Characters; `openssl rand -hex 32` gives 64."""


class Bearer(TokenVerifier):
    """Accepts one token until it expires.

    Args:
        token: what a client must send.
        expires: Unix time after which it is refused; None for never.
        clock: Unix time now.
    """

    def __init__(
        self, token: str, expires: float | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._token = token.encode()
        self._expires = expires
        self._clock = clock

    async def verify_token(self, token: str) -> AccessToken | None:
        """The SDK's question: whose token this is; None is answered with 401."""
        if not hmac.compare_digest(token.encode(), self._token):
            return None
        if self._expires is not None and self._clock() >= self._expires:
            return None
        return AccessToken(token=token, client_id="operator", scopes=[])


def take_bearer(name: str, environment: MutableMapping[str, str]) -> Bearer:
    """The token that the variable ``name`` holds, and its end in ``name_EXPIRES``.

    Both leave the environment, so that no process this one starts inherits them. Raises WhetError
    ``token.short`` or ``token.expiry``.
    """
    token = environment.pop(name, "").strip()
    until = environment.pop(f"{name}_EXPIRES", "").strip()
    if len(token) < SHORTEST or not token.isascii():
        raise WhetError(
            "token.short",
            f"The variable {name} holds {len(token)} characters; a token has at least {SHORTEST}, all ASCII.",
            f"Set one: export {name}=$(openssl rand -hex 32)",
        )
    return Bearer(token, _unix_time(f"{name}_EXPIRES", until) if until else None)


def _unix_time(name: str, text: str) -> float:
    try:
        when = datetime.fromisoformat(text)
    except ValueError as error:
        raise _odd_expiry(name, f"is {text!r}, which is no ISO time") from error
    if when.tzinfo is None:
        raise _odd_expiry(name, f"is {text!r}, without a time zone")
    if when.timestamp() <= time.time():
        raise _odd_expiry(name, f"is {text!r}, which is past")
    return when.timestamp()


def _odd_expiry(name: str, fact: str) -> WhetError:
    return WhetError("token.expiry", f"{name} {fact}.", "Give a time to come, such as 2030-01-31T12:00:00Z.")
