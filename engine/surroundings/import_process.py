"""The far end of :func:`.probes.try_imports`: imports the packages named as arguments, one JSON line each."""

from __future__ import annotations

import importlib
import json
import os
import sys


def main(names: list[str]) -> int:
    """Import each; 1 at the first that fails, whatever it raises."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries greet; standard output is for JSON lines alone
    for name in names:
        out.write(json.dumps({"importing": name}) + "\n")
        out.flush()
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever it is, it is what the probe is for
            words = " ".join(str(error).split())
            out.write(json.dumps({"failed": name, "error": f"{type(error).__name__}: {words}"}) + "\n")
            out.flush()
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
