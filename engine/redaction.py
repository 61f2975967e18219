"""Text that may leave the machine: no token, no key, no home path. Light."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .checks.env_flags import is_secret
from .settings import settings
from .surroundings.hub import stored_token, token_file
from .surroundings.session import user_name

GONE = "[redacted]"
SHORTEST = 6
"""A shorter value of a secret variable is a word such as `true`, not a secret."""
PATTERNS = (
    re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{8,}"),
    re.compile(r"\bhf_(?:oauth|jwt)_[A-Za-z0-9._-]{8,}"),
    re.compile(r"\b(?:sk|ghp|gho|github_pat|glpat|xox[abp])[-_][A-Za-z0-9_-]{12,}"),
    re.compile(r"\bA[KS]IA[A-Z0-9]{16}\b"),
    re.compile(r"\bAIza[A-Za-z0-9_-]{35}"),
    re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"),
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----", re.S),
)
"""Forms of well-known tokens: the hub's, OpenAI's, GitHub's, GitLab's, Slack's, AWS's, Google's, JSON web
tokens."""
AUTHORISED = re.compile(
    r"""(?ix)\b((?:proxy-)?authorization|x-api-key|cookie|set-cookie) (["']?\s*[:=]\s*["']?) [^\r\n"'}]+"""
)
BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}")
ASSIGNED = re.compile(
    r"""(?ix)\b([\w-]{0,64}(?:token(?!izer)|api_?key|secret|passw(?:or)?d|credential)[\w-]{0,64})
        (["']?\s*[:=]\s*["']?) (?!\s) ([^\s"',;}\]]{6,})"""
)
OPTION = re.compile(
    r"(?i)(--[\w-]{0,64}(?:token(?!izer)|api-?key|secret|passw(?:or)?d)[\w-]{0,64}\s+)(?!-)[^\s\"',;]{6,}"
)
VARIABLE = re.compile(r"\$\{?[A-Za-z_]\w*\}?")
"""A secret's name in a command is no secret: `export HF_TOKEN="$HF_TOKE"`."""
IN_URL = re.compile(r"\b(\w{1,32}://)[^/\s:@]+(?::[^/\s@]*)?@")
SIGNED = re.compile(r"(?i)([?&](?:[\w-]{0,32}signature|sig)=)[^&\s\"'<>]{6,}")
"""An address that a storage signed: whoever has it may read or write there."""
LINGER = re.compile(r"(?<=enable-linger )\S+")
PEOPLE = ("user", "owner")
NUMBER = re.compile(r"[\d.,e+-]+")


class Redactor:
    """Knows this machine's secrets and paths once; then :meth:`text` and :meth:`value` take them out.

    Args:
        environment: whose secret variables are meant; this process's by default.
        hide_paths: also take out where this user's files lie; not needed on the user's own screen.
    """

    def __init__(self, environment: Mapping[str, str] | None = None, hide_paths: bool = True) -> None:
        environment = os.environ if environment is None else environment
        self._secrets = sorted(set(_secrets(environment)), key=len, reverse=True)
        named = [(Path.home(), "~"), (settings().home, "$WHET_HOME")] if hide_paths else []
        folders = {str(form): name for path, name in named for form in (path, path.resolve())}
        # The longer path first: whet's home usually lies inside of the user's.
        self._folders = sorted(folders.items(), key=lambda pair: len(pair[0]), reverse=True)
        user = user_name()
        common = not hide_paths or len(user) < 3 or user == "root"
        self._hide_paths = hide_paths
        self._user = None if common else re.compile(rf"(?<=/){re.escape(user)}(?=/|\b)")

    def text(self, text: str) -> str:
        """``text`` without secrets, and with names for this user's folders."""
        for secret in self._secrets:
            text = text.replace(secret, GONE)
        for pattern in PATTERNS:
            text = pattern.sub(GONE, text)
        text = AUTHORISED.sub(rf"\1\2{GONE}", text)
        text = BEARER.sub(rf"\1 {GONE}", text)
        text = OPTION.sub(rf"\1{GONE}", ASSIGNED.sub(_unless_harmless, text))
        text = IN_URL.sub(rf"\1{GONE}@", text)
        text = SIGNED.sub(rf"\1{GONE}", text)
        for folder, name in self._folders:
            if folder != "/":
                text = text.replace(folder, name)
        text = LINGER.sub("USER", text) if self._hide_paths else text
        return text if self._user is None else self._user.sub("USER", text)

    def value(self, value: Any) -> Any:
        """The same for all strings inside of JSON-like data, its keys among them."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(str(key)): self._entry(str(key), inside) for key, inside in value.items()}
        return [self.value(inside) for inside in value] if isinstance(value, list | tuple) else value

    def _entry(self, key: str, value: Any) -> Any:
        if self._hide_paths and key in PEOPLE and isinstance(value, str) and value:
            return "USER"
        return GONE if _holds_secret(key, value) else self.value(value)

    def json(self, value: Any) -> str:
        """JSON-like data as redacted, readable text."""
        return json.dumps(self.value(value), indent=1, ensure_ascii=False, default=str) + "\n"


def _secrets(environment: Mapping[str, str]) -> Iterable[str]:
    """Values that must not be seen: secret variables, the hub's stored logins."""
    for name, value in environment.items():
        if is_secret(name) and len(value.strip()) >= SHORTEST:
            yield value.strip()
    login = stored_token()
    if login is not None:
        yield login
    stored = token_file().with_name("stored_tokens")
    if stored.is_file():
        yield from re.findall(r"^\s*hf_token\s*=\s*(\S+)", stored.read_text(encoding="utf-8"), re.M)
    netrc = Path.home() / ".netrc"
    if netrc.is_file():
        yield from re.findall(r"\bpassword\s+(\S+)", netrc.read_text(encoding="utf-8", errors="replace"))


def _holds_secret(key: str, value: Any) -> bool:
    return isinstance(value, str) and len(value) >= SHORTEST and value != "set" and _is_name(key)


def _is_name(key: str) -> bool:
    """Whether a key names a secret; `eos_token` and its like name a word of the vocabulary."""
    return re.search(r"(?i)api_?key|secret|passw|credential|(?:hf|hub|auth|access)_?token$", key) is not None


def _unless_harmless(match: re.Match[str]) -> str:
    """Counts of tokens are facts: ``tokens=123456`` stays; so do a vocabulary's own tokens and variables."""
    name, between, value = match.groups()
    harmless = (
        NUMBER.fullmatch(value)
        or VARIABLE.fullmatch(value)
        or re.search(r"(?i)(?:bos|eos|pad|unk|end|stop|special)_?\w*token", name)
    )
    return match[0] if harmless or value.startswith(("<", "[")) else f"{name}{between}{GONE}"
