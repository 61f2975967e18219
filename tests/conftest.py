"""What holds for all tests: which may run together, and what the collector of garbage need not walk."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

KERNEL_TESTS = Path(__file__).parent / "kernels"
NO_TRITON = "no GPU here and no interpreter: TRITON_INTERPRET=1 python -P -m pytest tests/kernels"


@pytest.fixture(autouse=True, scope="module")
def _what_stays_is_no_garbage() -> Iterator[None]:
    """The libraries' half a million objects are walked by no collection; a training asks for two, each of
    which took half a second and more."""
    yield
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Triton's interpreter is for tests/kernels alone, and without a GPU those need it: the variable decides
    what Triton's decorators make, once a process."""
    if not items:
        return
    kernel_tests = [item for item in items if KERNEL_TESTS in item.path.parents]
    if os.environ.get("TRITON_INTERPRET") == "1":
        if len(kernel_tests) < len(items):
            raise pytest.UsageError("TRITON_INTERPRET=1 is for tests/kernels alone: name that folder")
        return
    if not kernel_tests:
        return
    import torch

    if torch.cuda.is_available():
        return
    for item in kernel_tests:
        item.add_marker(pytest.mark.skip(reason=NO_TRITON))
