"""Word and character error rates, against counts by hand."""

from __future__ import annotations

import pytest

from whet.engine.methods.speech.errors import edits, error_rates, normalized


def test_edits_are_the_fewest() -> None:
    assert edits("kitten", "sitting") == 3
    assert edits("", "abc") == edits("abc", "") == 3
    assert edits(["a", "b", "c"], ["a", "c"]) == 1
    assert edits("abc", "abc") == 0


def test_rates_are_of_all_rows_together() -> None:
    said, written = ["the cat sat", "yes"], ["the cat sat down", "no"]
    rates = error_rates(said, written, normalize=True)
    assert rates["wer"] == pytest.approx(2 / 4)  # one word too much, one wrong, of four
    assert rates["cer"] == pytest.approx((5 + 3) / (11 + 3))


def test_normalisation_can_be_turned_off() -> None:
    assert error_rates(["Don\u2019t stop!"], ["dont, STOP"], normalize=True) == {"wer": 0.0, "cer": 0.0}
    assert error_rates(["Stop!"], ["stop"], normalize=False)["wer"] == 1.0
    assert normalized("Ｆｕｌｌ  width\tStraße 3,5") == "full width strasse 3 5"
    assert normalized("Crème brûlée") == "crème brûlée"
