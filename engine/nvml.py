"""NVML, started for a few questions to the NVIDIA driver. Light: nothing is loaded before it is asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class NoDriver(Exception):
    """Why it cannot be asked, in words."""


@contextmanager
def started_nvml() -> Iterator[Any]:
    """The module ``pynvml``, in touch with the driver until the block ends.

    Raises:
        NoDriver: without the package or a driver.
    """
    try:
        import pynvml
    except ImportError as error:
        raise NoDriver("nvidia-ml-py is not installed") from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NoDriver(f"no NVIDIA driver ({error})") from error
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()
