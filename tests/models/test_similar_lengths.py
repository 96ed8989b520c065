"""Batches of sequences of similar length."""

from __future__ import annotations

import pytest

from pad_fast.models.neighbour_effects import Sides
from pad_fast.models.similar_lengths import longest_first

LENGTHS = [5, 90, 3, 3, 17, 1]


@pytest.mark.parametrize(
    ("tokens", "batches"),
    [
        (33, [[1], [4], [0, 2, 3, 5]]),
        (34, [[1], [4, 0], [2, 3, 5]]),  # two of 17 tokens fit exactly
        (450, [[1, 4, 0, 2, 3], [5]]),
        (0, [[1], [4], [0], [2], [3], [5]]),
    ],
)
def test_a_batch_holds_what_fits_with_its_padding(tokens, batches):
    assert list(longest_first(LENGTHS, lambda longest: tokens // longest)) == batches


def test_a_batch_has_one_side_and_of_nothing_there_is_none():
    sides = Sides(switches=(4,))
    assert list(longest_first(LENGTHS, lambda longest: 6, sides)) == [[1, 4, 0], [2, 3, 5]]
    assert list(longest_first([], lambda longest: 6)) == []
