"""Files that rows name: the text of a path can be anything, and whether it can be read is found out here."""

from __future__ import annotations

import os
from pathlib import Path

from ..settings import settings
from .rows import RowError, preview_of


def named_path(value: str, what: str) -> Path:
    """The path that a row's text means, relative or not; nothing need lie there.

    Args:
        value: of the row; ``~`` and ``file://`` may stand before it.
        what: it should be, for the message, e.g. ``image``.

    Raises:
        RowError: no path can be written like that.
    """
    try:
        os.fsencode(value)
        given = Path(value.removeprefix("file://")).expanduser()
    except (UnicodeEncodeError, RuntimeError) as error:  # half a character; the home of nobody
        raise _no_path(value, what) from error
    if "\0" in value or not value.strip():
        raise _no_path(value, what)
    return given


def path_below(value: str, folder: Path | None, what: str) -> Path:
    """The absolute path that a row of a data file in ``folder`` means.

    Absolute paths are taken as they are; relative ones stay below ``folder``, links followed. Without a
    folder they begin at the current one, being words of whoever runs the program. None leaves
    ``WHET_FILES_WITHIN``.

    Raises RowError as :func:`named_path`, and for a path that leads out.
    """
    given = named_path(value, what)
    path = ((folder or Path()) / given).absolute()
    within = settings().files_within
    if within is not None and not path.resolve().is_relative_to(within.resolve()):
        raise RowError(f"the {what} {preview_of(value)!r} lies outside of {within}, the only folder for them")
    if given.is_absolute() or folder is None:
        return path
    if not path.resolve().is_relative_to(folder.resolve()):
        raise RowError(
            f"the {what} {preview_of(value)!r} lies outside of the data file's folder; give its whole path "
            "if that is meant"
        )
    return path


def is_file(path: Path) -> bool:
    """Whether a file lies there. A name that is too long, or a folder that is closed, is no error."""
    return os.path.isfile(path)


def content_of(path: Path, most: int, what: str) -> bytes:
    """The file's bytes.

    Raises:
        RowError: there is none, it is larger than ``most`` bytes, or it cannot be read.
    """
    if not is_file(path):
        raise RowError(f"there is no {what} {preview_of(path.name)!r} (looked for {preview_of(path)})")
    try:
        if (size := path.stat().st_size) > most:
            raise RowError(f"the {what} {preview_of(path)} has {size:,} bytes; the limit is {most:,}")
        return path.read_bytes()
    except OSError as error:
        raise RowError(f"the {what} {preview_of(path)} cannot be read: {error.strerror}") from error


def _no_path(value: str, what: str) -> RowError:
    return RowError(f"the {what} is {preview_of(value)!r}, expected a path")
