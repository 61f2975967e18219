"""The far end of :func:`.probes.load_library`: the modules named first, as in a run, then the library."""

from __future__ import annotations

import ctypes
import importlib
import sys

if __name__ == "__main__":
    library, *modules = sys.argv[1:]
    for module in modules:
        importlib.import_module(module)
    try:
        ctypes.CDLL(library)
    except OSError as error:
        print(error)
