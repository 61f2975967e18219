"""An empty folder for one program, deleted afterwards whatever the program made of it."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count


@contextmanager
def scratch_folder() -> Iterator[str]:
    """The folder, as long as the context lasts."""
    folder = tempfile.mkdtemp(prefix="whet-program-")
    try:
        yield folder
    finally:
        remove(folder)


def remove(folder: str) -> None:
    """Delete a folder that may be nested deeper than shutil.rmtree can recurse and a path can be long: what
    lies in its folders is moved up until none is left."""
    mark, numbers = secrets.token_hex(8), count()
    while entries := list(os.scandir(folder)):
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
                continue
            os.chmod(entry.path, 0o700)
            for inner in list(os.scandir(entry.path)):
                if inner.is_dir(follow_symlinks=False):
                    os.chmod(inner.path, 0o700)  # moving a folder writes to it
                os.rename(inner.path, os.path.join(folder, f"{mark}-{next(numbers)}"))
            os.rmdir(entry.path)
    os.rmdir(folder)
