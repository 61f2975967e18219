"""The one folder an operator opens: every path of a call is resolved and must lie inside of it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from whet.engine import api

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(?:/[\w.-]{1,96})?")
LONGEST = 1024
DEMO = "demo"


class Root:
    """Turns the texts of calls into paths; symbolic links are followed before they are judged.

    Args:
        folder: what the operator opened.
        others: folders whose files may be read as well, such as those of whet's own runs.
    """

    def __init__(self, folder: Path, others: tuple[Path, ...] = ()) -> None:
        self.folder = folder.resolve()
        self._others = tuple(other.resolve() for other in others)

    def path(self, text: str, writing: bool = False) -> Path:
        """The path that ``text`` means, relative ones from the root.

        Raises WhetError ``path.outside`` or ``path.odd`` (empty, control characters, very long).
        """
        if not 0 < len(text) <= LONGEST or any(ord(char) < 32 or ord(char) == 127 for char in text):
            raise api.WhetError(
                "path.odd",
                f"A path has 1 to {LONGEST} characters and none that control; this has {len(text)}.",
                f"Name a file inside of {self.folder}.",
            )
        try:
            found = (self.folder / Path(text).expanduser()).resolve()
        except (OSError, RuntimeError) as error:  # a name too long for the filesystem; no such user; a loop
            raise api.WhetError(
                "path.odd", f"{api.printable(text[:80])!r} is no path here: {error}.", self._hint()
            ) from error
        inside = (self.folder,) if writing else (self.folder, *self._others)
        if not any(found.is_relative_to(folder) for folder in inside):
            raise api.WhetError(
                "path.outside",
                f"{api.printable(text)!r} lies outside of the folder this server may use.",
                self._hint(),
            )
        return found

    def source(self, text: str) -> str:
        """A model or data set: `demo`, a hub id, or a path inside; paths come back absolute.

        Raises WhetError as :meth:`path` does, and for a folder with links that lead out.
        """
        if text == DEMO:
            return text
        # A folder of that name where this process was started would go before the hub, so it is looked for.
        a_hub_id = HUB_ID.fullmatch(text) and text.count("/") == 1
        if a_hub_id and not (self.folder / text).exists() and not Path(text).exists():
            return text
        found = self.path(text)
        self._no_way_out(found)
        return str(found)

    def model(self, text: str) -> Path:
        """A model's or adapter's folder, or a GGUF file, inside; so are its links, and the base an adapter
        names.

        Raises WhetError as :meth:`source` does, and ``model.no_base``.
        """
        found = self.path(text)
        self._no_way_out(found)
        if (found / "adapter_config.json").is_file():
            named = api.adapter_base(found)
            # The engine looks for it from where this process was started, which need not be the root.
            here = Path(named).expanduser()
            self.source(str(here.absolute()) if here.exists() else named)
        return found

    def _no_way_out(self, folder: Path) -> None:
        """Files of a folder are read deep; hidden ones are not, nor what lies behind linked folders."""
        for place, folders, files in os.walk(folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in (*folders, *files):
                if os.path.islink(path := os.path.join(place, name)):
                    self.path(path)

    def _hint(self) -> str:
        return f"Name a file inside of {self.folder}, or ask the operator for another --root."
