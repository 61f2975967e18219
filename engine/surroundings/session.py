"""Logout, file systems, text encodings: what the operating system will do to a run. Light."""

from __future__ import annotations

import getpass
import locale
import os
import re
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from ..settings import settings
from .facts import Encoding, Session

IN_MEMORY = {"tmpfs", "ramfs"}
LOGIND = ("usr/lib/systemd", "usr/local/lib/systemd", "run/systemd", "etc/systemd")
"""Where logind's settings are read, the last word last."""
TEXT_VARIABLES = ("LC_ALL", "LC_CTYPE", "LANG", "PYTHONUTF8", "PYTHONIOENCODING", "PYTHONCOERCECLOCALE")


def read_session(
    root: Path = Path("/"), environment: Mapping[str, str] | None = None, user: str | None = None
) -> Session:
    """Facts of this login.

    Args:
        root: of the file system to read; another one describes another machine.
        environment: instead of this process's.
        user: instead of this process's.
    """
    environment = os.environ if environment is None else environment
    user = user or user_name()
    home = settings().home
    return Session(
        user=user,
        ssh="SSH_CONNECTION" in environment or "SSH_CLIENT" in environment,
        multiplexer="tmux" if "TMUX" in environment else "screen" if "STY" in environment else None,
        scope=_scope(_text(root / "proc/self/cgroup")),
        kills=_kills(root, user),
        lingering=(root / "var/lib/systemd/linger" / user).exists(),
        hangup_ignored=_ignores_hangup(_text(root / "proc/self/status")),
        home=home,
        home_filesystem=filesystem_of(home, root),
        user_home_in_memory=filesystem_of(Path.home(), root) in IN_MEMORY,
    )


def user_name() -> str:
    """Who this process runs as; the number where it has no name, as in many containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # before and since Python 3.13
        return str(os.getuid())


def read_encoding() -> Encoding:
    """How this interpreter decodes text."""
    return Encoding(
        preferred=locale.getpreferredencoding(False),
        stdout=getattr(sys.__stdout__, "encoding", None) or "",
        filesystem=sys.getfilesystemencoding(),
        variables={name: os.environ[name] for name in TEXT_VARIABLES if name in os.environ},
    )


def filesystem_of(path: Path, root: Path = Path("/")) -> str:
    """Type of the file system ``path`` lies on, or will lie on; empty where the kernel does not say."""
    found = "", ""
    for line in _text(root / "proc/self/mounts").splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        mount = fields[1].replace("\\040", " ")
        inside = path == Path(mount) or Path(mount) in path.parents
        if inside and len(mount) >= len(found[0]):  # the deepest mount, and the last one on a place
            found = mount, fields[2]
    return found[1]


def _scope(cgroup: str) -> str:
    """A login's processes sit in ``session-N.scope``, systemd-run --user's below ``user@UID.service``."""
    if re.search(r"/user@\d+\.service/", cgroup):
        return "user"
    return "login" if re.search(r"/session-[^/]+\.scope", cgroup) else "other"


def _kills(root: Path, user: str) -> bool | None:
    """Whether logind ends this user's processes at logout; None without logind's settings.

    The shipped logind.conf tells the compile-time defaults in its comments, so a commented line counts until
    a real one comes.
    """
    values: dict[str, str] = {}
    files = [file for folder in LOGIND for file in _settings_files(root / folder)]
    for text in map(_text, files):
        for comment, key, value in re.findall(r"^[ \t]*(#?)[ \t]*(Kill\w+)[ \t]*=[ \t]*(.*)$", text, re.M):
            if not comment or key not in values:
                values[key] = value.strip()
    if "KillUserProcesses" not in values:
        return None
    only = values.get("KillOnlyUsers", "").split()
    excluded = values.get("KillExcludeUsers", "root").split()
    asked = values["KillUserProcesses"].lower() in ("yes", "true", "1", "on")
    return asked and user not in excluded and (not only or user in only)


def _settings_files(folder: Path) -> list[Path]:
    drop_ins = folder / "logind.conf.d"
    return [folder / "logind.conf", *(sorted(drop_ins.glob("*.conf")) if drop_ins.is_dir() else [])]


def _ignores_hangup(status: str) -> bool:
    """From the mask of ignored signals in /proc/self/status."""
    found = re.search(r"^SigIgn:\s*([0-9a-f]+)", status, re.M)
    return bool(found and int(found[1], 16) >> (signal.SIGHUP - 1) & 1)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
