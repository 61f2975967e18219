"""What can be odd about one row, as bits: a million rows cost four megabytes."""

from __future__ import annotations

from enum import IntFlag


class Odd(IntFlag):
    """Names are those of :class:`~whet.engine.data.inspection.SplitReport`'s counts."""

    unsupervised_rows = 1
    truncated_rows = 2
    truncated_lost_all = 4
    truncated_lost_end = 8
    double_bos = 16
    missing_bos = 32
    without_end_token = 64
    double_end = 128
    empty_replies = 256
    odd_roles = 512
    broken_prefix = 1024
    answer_in_prompt = 2048
    marked_rows = 4096
    answerless = 8192
    thinking_dropped = 16384


DROPPED = {
    "empty": Odd.empty_replies | Odd.answerless,
    "odd": Odd.odd_roles,
    "cut": Odd.truncated_rows,
    "markers": Odd.marked_rows,
}
"""``data.drop`` by what a row alone shows; duplicates and leaked rows are found among all hashes."""
