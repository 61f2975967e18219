"""The same server over HTTP: a bearer token, known hosts and origins only, bounded bodies and sessions."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from ipaddress import ip_address

import uvicorn
from mcp.server.auth.settings import AuthSettings
from mcp.server.transport_security import TransportSecuritySettings
from pydantic import AnyHttpUrl
from starlette.applications import Starlette

from whet.engine.api import WhetError

from .bearer import Bearer
from .options import Options
from .server import Server

PATH = "/mcp"
LARGEST_BODY = 1 << 20
"""Bytes of one request; more is answered with 413."""
MOST_SESSIONS = 64
"""Of the revisions that keep sessions; a further one is answered with 503 until one ends."""
IDLE_SECONDS = 1800.0
"""A session without a request for so long is over."""
MOST_REQUESTS = 256
"""Connections and requests in flight; more are answered with 503."""
GRACE_SECONDS = 5
"""What requests in flight have to end in when the server is told to stop."""
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True)
class Address:
    """Where to listen, and under which names clients may call."""

    host: str
    port: int
    """0 takes a free one."""
    names: tuple[str, ...] = ()
    """Further host names that a request's Host and Origin may give, such as those of a proxy."""

    @classmethod
    def parse(cls, text: str, names: tuple[str, ...] = ()) -> Address:
        """``HOST:PORT``, IPv6 in brackets. Raises WhetError ``http.address`` or ``http.names``.

        A host that other machines can reach needs ``names``: without a known name, any web page that
        resolves to this machine could speak to it.
        """
        host, colon, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not (colon and host and port.isdecimal() and int(port) < 1 << 16):
            raise WhetError("http.address", f"{text!r} is not HOST:PORT.", "For example 127.0.0.1:8765.")
        if not _is_loopback(host) and not names:
            raise WhetError(
                "http.names",
                f"{host} can be reached from other machines.",
                "Listen on 127.0.0.1, or name the hosts that clients may call with --allow-host NAME[,NAME].",
            )
        return cls(host, int(port), names)

    def security(self, port: int) -> TransportSecuritySettings:
        """The Host and Origin headers that are answered, for the port in use; others get 421 and 403."""
        here = [f"{name}:{port}" for name in LOOPBACK_NAMES]
        hosts = [*here, *self.names, *(f"{name}:*" for name in self.names)]
        schemes = [f"{scheme}://{name}" for scheme in ("https", "http") for name in self.names]
        origins = [*(f"http://{name}" for name in here), *schemes, *(f"{origin}:*" for origin in schemes)]
        return TransportSecuritySettings(allowed_hosts=hosts, allowed_origins=origins)

    def listen(self) -> socket.socket:
        """A listening socket. Raises OSError when the address is taken or not this machine's."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        return socket.create_server((self.host, self.port), family=family)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def http_app(options: Options, address: Address, bearer: Bearer, port: int) -> Starlette:
    """The ASGI application: one path, nothing of it without the token."""
    # The SDK wants an issuer; with no resource URL it is published nowhere, since no one issues tokens here.
    auth = AuthSettings(issuer_url=AnyHttpUrl(f"http://127.0.0.1:{port}"), resource_server_url=None)
    return Server(options, token_verifier=bearer, auth=auth).streamable_http_app(
        streamable_http_path=PATH,
        transport_security=address.security(port),
        max_request_body_size=LARGEST_BODY,
        max_sessions=MOST_SESSIONS,
        session_idle_timeout=IDLE_SECONDS,
    )


def http_server(app: Starlette) -> uvicorn.Server:
    """The HTTP server for an application; ``run(sockets=[...])`` until SIGINT or SIGTERM."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=MOST_REQUESTS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    return uvicorn.Server(config)
