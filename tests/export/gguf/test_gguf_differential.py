"""Our files against those of llama.cpp's own converter: the same tensors, names, shapes, values and keys, but
for the differences that are meant.

It needs the sources of llama-cpp-python, which installing it does not leave behind: `make gguf-differential`
fetches them and runs this.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.gguf_differences import MEANT
from support.gguf_differential import CASES, EMBEDDING, VARIABLE, Outcomes, as_meant, compare_all

pytestmark = pytest.mark.skipif(
    VARIABLE not in os.environ,
    reason=f"{VARIABLE} does not name the unpacked sources of llama-cpp-python (make gguf-differential)",
)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    return compare_all(Path(os.environ[VARIABLE]), tmp_path_factory.mktemp("differential"))


@pytest.mark.parametrize("case", [*CASES, *EMBEDDING])
def test_same_file_but_for_what_is_meant(outcomes: Outcomes, case: str) -> None:
    assert as_meant(case, outcomes[case]), outcomes[case]


def test_every_meant_difference_appears(outcomes: Outcomes) -> None:
    """A line of the list that nothing needs would hide a fault one day."""
    for meant in MEANT:
        assert any(
            meant.covers(case, one)
            for case, found in outcomes.items()
            if not isinstance(found, str)
            for one in found
        ), meant
