"""The command line, called in this process or as a user's shell would."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from support.fake_runs import SOURCE

from whet.tui.cli import main

# The demo recipe, cut to what a test can wait for.
SHORT = (
    "training.max_steps=6",
    "training.save_every=2",
    "training.threads=1",
    "sampling.prompts=[]",
    "export.gguf=[]",
    "export.merged=false",
)


@dataclass(frozen=True)
class Answer:
    """What a call of whet left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one document on stdout."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The JSON lines on stdout; a string in them may hold other ends of line than ``\\n``."""
        return [json.loads(line) for line in self.out.rstrip("\n").split("\n")]


def whet(*words: str) -> Answer:
    """Call the command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(words)
        except SystemExit as end:
            assert end.code is None or isinstance(end.code, int), end.code
            code = end.code or 0
    return Answer(code, out.getvalue(), err.getvalue())


def start_whet(*words: str, **options: Any) -> subprocess.Popen[str]:
    """Start the command line as a process of its own, leading its own process group."""
    code = f"import sys; sys.path.insert(0, {str(SOURCE)!r}); from whet.tui.cli import main; main()"
    command = [sys.executable, "-P", "-c", code, *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True, **options)
