"""Each kernel's tests run on Triton and on plain torch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from whet.kernels.backend import forced


@pytest.fixture(params=["reference", "triton"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """What kernels run on during the test."""
    with forced(request.param):
        yield request.param
