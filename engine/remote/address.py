"""Where a run on another machine is: ``ssh://[user@]host[:port]/RUN[?home=FOLDER][&whet=PROGRAM]``.

An address may come from anywhere, and ssh reads a host that begins with a dash as an option and hands its
command to a shell. So the parts are of a plain alphabet, and what goes to the shell is quoted.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from urllib.parse import parse_qsl

from ..errors import WhetError

SCHEME = "ssh://"
WORD = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
ADDRESS = re.compile(
    rf"ssh://(?:(?P<user>{WORD})@)?(?:(?P<host>{WORD})|\[(?P<ipv6>[0-9A-Fa-f:.]+(?:%[A-Za-z0-9]+)?)\])"
    rf"(?::(?P<port>[0-9]{{1,5}}))?(?:/(?P<run>{WORD})?)?(?:\?(?P<query>.+))?"
)
PLACE = re.compile(r"(/|~/).*")
FORM = "ssh://[user@]host[:port]/RUN, where needed with ?home=FOLDER or ?whet=PROGRAM behind it"
CONNECT_SECONDS = 15
SILENT_SECONDS = 15  # after three times as long without a sign of life the connection counts as lost


@dataclass(frozen=True)
class RemoteRun:
    """A run on another machine. ``host`` may be a name of ssh's own configuration."""

    host: str
    run: str = "last"
    user: str | None = None
    port: int | None = None
    home: str | None = None
    """The other side's WHET_HOME; None: as it is set there."""
    whet: str = "whet"
    """The program there; a bare name is looked for on the PATH of a shell without a terminal."""

    @property
    def address(self) -> str:
        """What to type for it, without ``home`` and ``whet``."""
        user = "" if self.user is None else f"{self.user}@"
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port is None else f":{self.port}"
        return f"{SCHEME}{user}{host}{port}/{self.run}"

    def named(self, run_id: str) -> RemoteRun:
        """The same place with another run."""
        return replace(self, run=run_id)

    def command(self, *words: str) -> list[str]:
        """whet's words as the remote shell's: a home of its own is set by ``env``."""
        home = [] if self.home is None else ["env", f"WHET_HOME={self.home}"]
        return [*home, self.whet, *words]

    def ssh(self, words: Sequence[str], batch: bool, program: str = "ssh") -> list[str]:
        """The arguments that run ``words`` there. ``batch``: never ask, for a password or anything else."""
        options = [
            *(["-o", "BatchMode=yes"] if batch else []),
            *("-o", f"ConnectTimeout={CONNECT_SECONDS}"),
            *("-o", f"ServerAliveInterval={SILENT_SECONDS}"),
            *("-o", "ServerAliveCountMax=3"),
        ]
        return [program, "-T", *options, *self._place(), "--", self.host, shlex.join(words)]

    def typed(self, *words: str) -> str:
        """What a person types here to run whet's ``words`` there."""
        return shlex.join(["ssh", *self._place(), self.host, shlex.join(self.command(*words))])

    def _place(self) -> list[str]:
        port = [] if self.port is None else ["-p", str(self.port)]
        return port if self.user is None else [*port, "-l", self.user]


def is_remote(text: str) -> bool:
    """Whether it is meant as an address, well formed or not."""
    return text.startswith(SCHEME)


def parse_address(text: str) -> RemoteRun:
    """The parts of an address; without RUN it is ``last``. Raises WhetError ``remote.address``."""
    found = ADDRESS.fullmatch(text)
    port = int(found["port"]) if found and found["port"] else None
    if found is None or (port is not None and not 0 < port < 65536):
        raise WhetError("remote.address", f"{text!r} is not the address of a run.", f"Write {FORM}.")
    places = _places(found["query"])
    whet = places.get("whet", "whet")
    return RemoteRun(
        host=found["host"] or found["ipv6"],
        run=found["run"] or "last",
        user=found["user"],
        port=port,
        home=places.get("home"),
        # A quoted ~ is not expanded by a shell, and ssh's commands begin in the home folder.
        whet=f"./{whet.removeprefix('~/')}" if whet.startswith("~/") else whet,
    )


def _is_place(value: str) -> bool:
    return value.isprintable() and PLACE.fullmatch(value) is not None


def _places(query: str | None) -> dict[str, str]:
    """``home`` and ``whet`` of an address, percent-decoded; both must be paths."""
    if query is None:
        return {}
    pairs = parse_qsl(query, keep_blank_values=True)
    places = dict(pairs)
    wrong = [
        f"{key}={value}"
        for key, value in pairs
        if key not in ("home", "whet") or not _is_place(value) or places[key] != value
    ]
    if wrong or not pairs:
        raise WhetError(
            "remote.address",
            f"An address cannot end in {'&'.join(wrong) or query!r}.",
            "Give home and whet once, as paths from / or ~/: ?home=/scratch/whet&whet=~/whet/.venv/bin/whet",
        )
    return places
