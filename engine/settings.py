"""whet's few environment settings, typed in one place. They say where and how, never what."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

TRUE_WORDS = {"1", "true", "yes", "on"}
FALSE_WORDS = {"", "0", "false", "no", "off"}
KERNEL_BACKENDS = ("triton", "reference")
LOG_LEVELS = ("debug", "info", "warning", "error")
CPU_RANKS = ("1", "2", "3", "4")


@dataclass(frozen=True)
class OwnFlag:
    """One variable whet reads: its default, what it may be, what it does."""

    name: str
    default: str
    choices: tuple[str, ...]
    """Empty where anything goes; ``("switch",)`` for on and off, ``("secret",)`` for what is never shown."""
    meaning: str
    otherwise: str = ""
    """What a value that is none of the choices counts as."""


OWN_FLAGS = (
    OwnFlag("WHET_HOME", "~/.whet", (), "runs, locks and caches lie there"),
    OwnFlag("WHET_LOG", "warning", LOG_LEVELS, "how much libraries say in worker.log", "warning"),
    OwnFlag(
        "WHET_KERNELS",
        "triton",
        KERNEL_BACKENDS,
        "which kernels train: Triton's, or their plain-torch references",
        "reference",
    ),
    OwnFlag(
        "WHET_CPU_RANKS",
        "1",
        CPU_RANKS,
        "processes of a run on a machine without GPUs: to try a set-up of several ranks",
        "1",
    ),
    OwnFlag("WHET_OFFLINE", "", ("switch",), "never reach for the network"),
    OwnFlag("WHET_LOW_BANDWIDTH", "", ("switch",), "fewer redraws, for slow links"),
    OwnFlag(
        "WHET_FILES_WITHIN", "", (), "rows name pictures and sounds below this folder only; whet-mcp's --root"
    ),
    OwnFlag(
        "WHET_ASSISTANT",
        "",
        (),
        "the GGUF file, or the OpenAI-compatible server, that may write the TUI's answers",
    ),
    OwnFlag("WHET_ASSISTANT_MODEL", "", (), "which model that server is asked for"),
    OwnFlag("WHET_ASSISTANT_KEY", "", ("secret",), "the key of that server"),
)


@dataclass(frozen=True)
class Settings:
    """Read from the environment at each call of :func:`settings`; cheap and always current."""

    home: Path
    """``WHET_HOME``, default ``~/.whet``: runs, caches."""
    log_level: str
    """``WHET_LOG``, default ``warning``."""
    kernels: str
    """``WHET_KERNELS``: ``triton`` (default) or ``reference``, the plain-torch path."""
    cpu_ranks: int
    """``WHET_CPU_RANKS``, default 1: processes of a run that is planned for the CPU, over gloo. For tests and
    for trying a set-up of several ranks; it makes nothing faster."""
    offline: bool
    """``WHET_OFFLINE``, or the hub's own ``HF_HUB_OFFLINE``: never reach for the network."""
    low_bandwidth: bool
    """``WHET_LOW_BANDWIDTH``: fewer redraws on slow links."""
    files_within: Path | None
    """``WHET_FILES_WITHIN``: where the files lie that rows may name; None (default): anywhere."""
    assistant: str
    """``WHET_ASSISTANT``: a GGUF file or a server's address; empty (default): no model writes answers."""
    assistant_model: str
    """``WHET_ASSISTANT_MODEL``: the server's model; empty: it chooses."""
    assistant_key: str = field(repr=False)
    """``WHET_ASSISTANT_KEY``: the server's key; empty: it wants none."""

    @property
    def runs(self) -> Path:
        return self.home / "runs"

    @property
    def cache(self) -> Path:
        return self.home / "cache"


def settings() -> Settings:
    """The settings now in force; a value that means nothing counts as :class:`OwnFlag` says (finding E12)."""
    kernels, level = os.environ.get("WHET_KERNELS", "triton"), os.environ.get("WHET_LOG", "warning")
    ranks = os.environ.get("WHET_CPU_RANKS", "1")
    return Settings(
        home=Path(os.environ.get("WHET_HOME", "~/.whet")).expanduser().absolute(),
        log_level=level if level in LOG_LEVELS else "warning",
        kernels=kernels if kernels in KERNEL_BACKENDS else "reference",
        cpu_ranks=int(ranks) if ranks in CPU_RANKS else 1,
        offline=_flag("WHET_OFFLINE") or _flag("HF_HUB_OFFLINE"),
        low_bandwidth=_flag("WHET_LOW_BANDWIDTH"),
        files_within=Path(within).absolute() if (within := os.environ.get("WHET_FILES_WITHIN")) else None,
        assistant=os.environ.get("WHET_ASSISTANT", ""),
        assistant_model=os.environ.get("WHET_ASSISTANT_MODEL", ""),
        assistant_key=os.environ.get("WHET_ASSISTANT_KEY", ""),
    )


def _flag(name: str) -> bool:
    return os.environ.get(name, "").lower() in TRUE_WORDS
