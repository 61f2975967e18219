"""The far end of :func:`.native.run_native`: ``python -P -m whet.engine.export.gguf.serving MODULE``.

Imports the module and answers one request by its ``main(request, progress)``.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module

from ...errors import WhetError
from ...importing import importing


def main(name: str) -> None:
    """Read the request, call ``main`` of the module ``name``, write the answer."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print goes to the log and not among the answers

    def say(message: dict[str, object]) -> None:
        try:
            out.write(json.dumps(message) + "\n")
            out.flush()
        except BrokenPipeError:
            os._exit(1)  # whoever asked is gone; raised in a callback, llama.cpp would work on

    with importing():
        module = import_module(name)
    try:
        result = module.main(json.load(sys.stdin), lambda done, total: say({"progress": [done, total]}))
    except WhetError as error:
        say({"error": error.as_dict()})
    else:
        say({"result": result})


if __name__ == "__main__":
    main(sys.argv[1])
