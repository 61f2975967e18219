"""The far end of :func:`.probes.load_bitsandbytes`: torch first, as in a run, then the library itself."""

from __future__ import annotations

import ctypes
import sys

import torch  # noqa: F401  brings the CUDA libraries of its own packages with it

if __name__ == "__main__":
    try:
        ctypes.CDLL(sys.argv[1])
    except OSError as error:
        print(error)
