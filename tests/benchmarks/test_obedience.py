"""The rule of the prompted world is graded as it is written."""

from __future__ import annotations

import pytest

from benchmarks.evidence.obedience import WORDS, obedience, parts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A walk helps.", (1, 1, 1, 1)),
        ("  Take a walk!  \n", (1, 1, 1, 1)),
        ('He said "no."', (1, 1, 1, 1)),
        ("Take a walk. It helps.", (0, 1, 1, 1)),
        ('He said "Go!" Then he went.', (0, 1, 1, 1)),
        ("Fruit, e.g. Apples, and what Dr. Who or J. Smith eats, helps.", (1, 1, 1, 1)),
        ("Wait... and see.", (1, 1, 1, 1)),
        ("A first line\nand a second.", (0, 1, 1, 1)),
        ("You can:\n- walk\n- sleep", (0, 1, 0, 0)),
        ("1. Walk.", (1, 1, 0, 1)),
        ("1.5 is more than 1.", (1, 1, 1, 1)),
        ("**Walk** more.", (1, 1, 0, 1)),
        ("# Walk\nmore.", (0, 1, 0, 1)),
        ("word " * (WORDS - 1) + "end.", (1, 1, 1, 1)),
        ("word " * WORDS + "end.", (1, 0, 1, 1)),
        ("It was cut in the mid", (1, 1, 1, 0)),
        ("", (0, 0, 0, 0)),
    ],
)
def test_the_parts_of_obedience(text, expected) -> None:
    assert tuple(parts(text).values()) == expected
    assert obedience(text) == pytest.approx(sum(expected) / 4)
