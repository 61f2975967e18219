"""Recipes that were begun and not started: YAML files under ``$WHET_HOME/drafts``."""

from __future__ import annotations

from pathlib import Path

from .kept import kept_file

SUFFIX = ".yaml"


def folder() -> Path:
    """Where they lie."""
    return kept_file().parent / "drafts"


def names() -> list[str]:
    """Newest first."""
    found = folder().glob(f"*{SUFFIX}") if folder().is_dir() else ()
    return [path.stem for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)]


def path(name: str) -> Path:
    """A draft's file."""
    return folder() / f"{name}{SUFFIX}"


def save(name: str, text: str) -> Path:
    """Write a draft, replacing one of the same name. Raises WhetError ``draft.not_written``."""
    new = path(name).with_suffix(".new")
    try:
        for place in (folder().parent, folder()):  # `parents` are made by the umask
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        new.write_text(text, encoding="utf-8")
        new.replace(path(name))
    except OSError as error:
        from whet.engine.api import WhetError

        raise WhetError(
            "draft.not_written",
            f"The draft {name} was not written: {error}.",
            "Make room there, or name a folder that can be written in WHET_HOME; y copies the recipe.",
        ) from error
    return path(name)


def discard(name: str) -> None:
    """Remove a draft that was started or given up."""
    path(name).unlink(missing_ok=True)
