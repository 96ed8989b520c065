"""Batches of sequences of similar length, which have little padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pad_fast.models.neighbour_effects import ONE_SIDE


def longest_first(
    lengths: Sequence[int],
    most: Callable[[int], int],
    side: Callable[[int], Any] = ONE_SIDE,
) -> Iterator[list[int]]:
    """Indices in batches, the longest first, so that what does not fit in memory fails at once.

    Args:
        lengths: of the sequences, in tokens.
        most: how many sequences a batch holds whose longest has so many tokens; it has one at
            least.
        side: what all lengths of a batch have in common.

    Example:
        >>> list(longest_first([3, 9, 4], lambda longest: 10 // longest))
        [[1], [2, 0]]
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        longest = lengths[batch[0]] if batch else 0
        if batch and (len(batch) >= most(longest) or side(longest) != side(lengths[index])):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
