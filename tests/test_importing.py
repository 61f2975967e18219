"""Imports without the collector of garbage, and what stays of them."""

from __future__ import annotations

import gc

import pytest

from whet.engine.importing import importing


def test_nothing_is_collected_inside_and_what_was_made_is_walked_no_more() -> None:
    before = gc.get_freeze_count()
    try:
        with importing():
            assert not gc.isenabled()
            made = [[number] for number in range(1000)]
        assert gc.isenabled()
        assert gc.get_freeze_count() >= before + 1000
        assert not any(one is made for one in gc.get_objects())
    finally:
        gc.unfreeze()


def test_an_import_that_fails_leaves_the_collector_on() -> None:
    try:
        with pytest.raises(ModuleNotFoundError), importing():
            import no_such_module  # type: ignore[import-not-found] # noqa: F401
        assert gc.isenabled()
    finally:
        gc.unfreeze()


def test_where_it_was_off_it_stays_off() -> None:
    gc.disable()
    try:
        with importing():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()
