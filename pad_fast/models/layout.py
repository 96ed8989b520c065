"""How prompts and responses are placed in the rows that a model reads.

A response's last token predicts nothing and is never read. Three layouts give the same rewards.

Layouts:
    shared: one row [x, y_1, ..., y_n, x', y'_1, ...]. Each response continues the positions of its
        prompt, and sees its prompt and itself (:mod:`pad_fast.models.prefix_attention`).
    packed: several sequences [x, y_i] in a row. Positions restart, so that the model's own
        attention keeps the sequences apart.
    padded: one sequence in each row, padded on the right, where causal attention never looks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple
from weakref import ref

LAYOUTS = ("shared", "packed", "padded")
PAD_ID = 0  # any id will do, since no token of a sequence sees its padding
IGNORE = -100  # the label of a token that no loss counts
BLOCK = 128  # FlexAttention's block: a row's length on a GPU is a multiple of this

TokenIds = Sequence[int]


def check_share_prefix(value: Any) -> str | bool:
    """Read the option ``share_prefix``: "auto", True or False, as a value or as text.

    Raises:
        ValueError: anything else.
    """
    known: dict[str, str | bool] = {"auto": "auto", "true": True, "false": False}
    found = known.get(str(value).lower())
    if found is None:
        raise ValueError(f"share_prefix must be auto, true or false, got {value!r}")
    return found


def first_equal(responses: Sequence[TokenIds]) -> list[int]:
    """For each response of a prompt, the place of the first one with the same token ids.

    Example:
        >>> first_equal([[7], [8, 9], [7]])
        [0, 1, 0]
    """
    first: dict[tuple[int, ...], int] = {}
    return [first.setdefault(tuple(map(int, ids)), i) for i, ids in enumerate(responses)]


class PromptGroup(NamedTuple):
    """A prompt and some of its responses, none of them empty."""

    prompt: TokenIds
    responses: Sequence[TokenIds]
    numbers: Sequence[int]  # each response's number among all responses of the batch


class Segment(NamedTuple):
    """A prompt in a row, followed by its responses without their last tokens.

    A segment without responses is a sequence by itself, whose tokens all count as its prompt.
    """

    start: int  # the place of the prompt's first token in the row
    prompt: int  # tokens
    responses: tuple[int, ...]  # tokens of each

    @property
    def stop(self) -> int:
        return self.start + self.prompt + sum(self.responses)

    def spans(self) -> Iterator[tuple[int, int]]:
        """(start, stop) of each response."""
        start = self.start + self.prompt
        for length in self.responses:
            yield start, start + length
            start += length


class RowLayout:
    """Where the sequences of one packed row of ``length`` tokens are; the rest of it is padding.

    A model's wrappers pass it on unchanged, since it holds no tensor that they would move or split.

    Attributes:
        windows: the sliding windows that layers have passed to the attention, None for no window.
        attention: computes the attention of this row in place of the usual implementation. The
            planner, which counts memory without a GPU, sets it.
    """

    _latest: ClassVar[Callable[[], RowLayout | None]] = staticmethod(lambda: None)

    def __init__(self, segments: Iterable[Segment], length: int) -> None:
        self.segments = tuple(segments)
        self.length = length
        self.windows: set[int | None] = set()
        self.attention: Callable[[Any], Any] | None = None
        self.cache: dict[Any, Any] = {}

    def cached(self, key: Any, make: Callable[[], Any]) -> Any:
        """``make()``, called once for all layers that need the same masks or tiles of this row.

        Only the row that was used last keeps its cache: the masks of all slices of a group would
        take many times the memory of those of the slice that is being computed.
        """
        if key not in self.cache:
            before = RowLayout._latest()
            if before is not None and before is not self:
                before.cache.clear()
            RowLayout._latest = ref(self)
            self.cache[key] = make()
        return self.cache[key]

    def __reduce__(self) -> tuple:
        return RowLayout, (self.segments, self.length)  # the cache's tensors stay on their device

    @property
    def shares(self) -> bool:
        """Whether any prompt is shared by responses."""
        return any(segment.responses for segment in self.segments)

    def segments_and_padding(self) -> Iterator[Segment]:
        """All segments, with the row's padding as one more."""
        yield from self.segments
        stop = self.segments[-1].stop if self.segments else 0
        if stop < self.length:
            yield Segment(stop, self.length - stop, ())
