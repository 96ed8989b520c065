"""How prompts and responses stand in the rows that a model reads: padded, packed, or with each prompt once for all of its responses.

A response's last token predicts nothing and is never read. Three layouts, of one and the same rewards:

- ``shared``: one row [x, y_1, ..., y_n, x', y'_1, ...]; positions go on from the prompt's end for each response, which sees its
  prompt and itself. It needs the attention of :mod:`pad_fast.models.prefix_attention`.
- ``packed``: several sequences [x, y_i] in a row, their positions restarting; the model's own attention keeps them apart.
- ``padded``: a sequence a row, padded on the right, where causal attention never looks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple
from weakref import ref

import numpy as np

LAYOUTS = ("shared", "packed", "padded")
PAD_ID = 0  # any id does: what stands right of a sequence is never looked at
BLOCK = 128  # tokens of a row on a GPU come in multiples of this, FlexAttention's own block

Ids = Sequence[int]
Array = np.ndarray[Any, np.dtype[np.int64]]


def check_share_prefix(value: Any) -> str | bool:
    """ "auto", True or False, given so or as text. Raises ValueError for anything else."""
    known: dict[str, str | bool] = {"auto": "auto", "true": True, "false": False}
    found = known.get(str(value).lower())
    if found is None:
        raise ValueError(f"share_prefix must be auto, true or false, got {value!r}")
    return found


class Group(NamedTuple):
    """A prompt and some of its responses, none of them empty."""

    prompt: Ids
    responses: Sequence[Ids]
    numbers: Sequence[int]  # of the responses among all


class Segment(NamedTuple):
    """A prompt of a packed row, at ``start``, and after it its responses, less their last tokens."""

    start: int
    prompt: int  # tokens
    responses: tuple[int, ...]  # tokens

    @property
    def stop(self) -> int:
        return self.start + self.prompt + sum(self.responses)

    def spans(self) -> Iterator[tuple[int, int]]:
        """(start, stop) of each response."""
        start = self.start + self.prompt
        for length in self.responses:
            yield start, start + length
            start += length


class Layout:
    """What stands where in one packed row of ``length`` tokens; what is behind the last segment is padding.

    A segment without responses is a sequence by itself. It holds host numbers only and passes any wrapper of a model as it is;
    ``windows`` are the sliding windows that layers told the attention, None for a layer without.
    """

    _latest: ClassVar[Callable[[], Layout | None]] = staticmethod(lambda: None)

    def __init__(self, segments: Iterable[Segment], length: int) -> None:
        self.segments = tuple(segments)
        self.length = length
        self.windows: set[int | None] = set()
        self.plans: dict[Any, Any] = {}

    def plan(self, key: Any, make: Callable[[], Any]) -> Any:
        """What the attention makes of this row, once for all layers. Only the row that was worked on last keeps it: the masks of a
        group's slices, all together, would be many times those of the one that is computed."""
        if key not in self.plans:
            before = Layout._latest()
            if before is not None and before is not self:
                before.plans.clear()
            Layout._latest = ref(self)
            self.plans[key] = make()
        return self.plans[key]

    def __reduce__(self) -> tuple:
        return Layout, (self.segments, self.length)  # without plans, which lie on devices

    @property
    def shares(self) -> bool:
        return any(segment.responses for segment in self.segments)

    def whole(self) -> Iterator[Segment]:
        """All segments, padding as one of its own."""
        yield from self.segments
        stop = self.segments[-1].stop if self.segments else 0
        if stop < self.length:
            yield Segment(stop, self.length - stop, ())
