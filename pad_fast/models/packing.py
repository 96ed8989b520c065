"""Groups of responses packed into rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pad_fast.models.layout import BLOCK, LAYOUTS, PAD_ID, Array, Group, Ids, Layout, Segment


class PackedRows(NamedTuple):
    """What a model reads, B rows of T tokens, and the M places in them, flattened, that predict a response's tokens."""

    input_ids: Tensor  # (B, T)
    rows: Tensor  # (M,) places in the flattened (B * T); a shared prompt's last token predicts the first of each response
    labels: Tensor  # (M,) the token that each row predicts
    response_ids: Tensor  # (M,) the response that each row belongs to
    position_ids: Tensor | None = None  # (B, T); None: 0, 1, ... in each row
    layout: Layout | None = (
        None  # of the one row (B = 1) that holds several sequences; None: the model sees to it by itself
    )

    def on(self, device: torch.device) -> PackedRows:
        moved: dict[str, Any] = {
            name: x.to(device, non_blocking=True)
            for name, x in self._asdict().items()
            if isinstance(x, Tensor)
        }
        return self._replace(**moved)


def pack(
    groups: Sequence[Group], layout: str, *, one_row: bool = False, bucketed: bool = False
) -> PackedRows:
    """Groups as one batch. ``one_row`` packs all sequences into one row, for attention that is told where they end (flash-attn);
    else as few rows as the longest sequence allows. ``bucketed`` rounds the length of a shared row up, for compiled attention."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if layout == "shared":
        return _pack_shared(groups, bucketed)
    pairs = [(group.prompt, response) for group in groups for response in group.responses]
    numbers = [number for group in groups for number in group.numbers]
    if layout == "packed":
        lengths = [len(prompt) + len(response) - 1 for prompt, response in pairs]
        bins = [list(range(len(pairs)))] if one_row else first_fit(lengths)
        if len(bins) < len(pairs):
            return _pack_bins(pairs, numbers, bins)
    return pack_rows(pairs, numbers)


def pack_rows(
    pairs: Sequence[tuple[Ids, Ids]], response_ids: Sequence[int] | None = None
) -> PackedRows:
    """The padded layout of pairs of prompt and response ids, neither empty; ``response_ids`` numbers them, 0, 1, ... if left out."""
    numbers = range(len(pairs)) if response_ids is None else response_ids
    width = max((len(prompt) + len(response) - 1 for prompt, response in pairs), default=0)
    input_ids = np.full((len(pairs), width), PAD_ID, dtype=np.int64)
    rows = []
    for r, (prompt, response) in enumerate(pairs):
        input_ids[r, : len(prompt)] = prompt
        input_ids[r, len(prompt) : len(prompt) + len(response) - 1] = response[:-1]
        first = r * width + len(prompt) - 1
        rows.append(np.arange(first, first + len(response)))
    return _packed(input_ids, rows, [response for _, response in pairs], numbers)


def _pack_bins(
    pairs: Sequence[tuple[Ids, Ids]], numbers: Sequence[int], bins: Sequence[Sequence[int]]
) -> PackedRows:
    lengths = [len(prompt) + len(response) - 1 for prompt, response in pairs]
    width = max(sum(lengths[i] for i in held) for held in bins)
    input_ids, positions = np.full((2, len(bins), width), PAD_ID, dtype=np.int64)
    rows: list[Array] = []
    segments = []
    for b, held in enumerate(bins):
        start = 0
        for i in held:
            prompt, response = pairs[i]
            stop = start + lengths[i]
            input_ids[b, start:stop] = [*prompt, *response[:-1]]
            positions[b, start:stop] = np.arange(lengths[i])
            rows.append(np.arange(b * width + start + len(prompt) - 1, b * width + stop))
            segments.append(Segment(start, lengths[i], ()))
            start = stop
        positions[b, start:] = np.arange(width - start)  # padding is a sequence of its own
    order = [i for held in bins for i in held]
    layout = Layout(segments, width) if len(bins) == 1 else None
    responses = [pairs[i][1] for i in order]
    return _packed(
        input_ids, rows, responses, [numbers[i] for i in order], torch.from_numpy(positions), layout
    )


def _pack_shared(groups: Sequence[Group], bucketed: bool) -> PackedRows:
    ids: list[int] = []
    positions, rows, segments = [], [], []
    for prompt, responses, _ in groups:
        start, length = len(ids), len(prompt)
        segments.append(Segment(start, length, tuple(len(response) - 1 for response in responses)))
        ids.extend(prompt)
        positions.append(np.arange(length))
        for response in responses:
            place, own = len(ids), len(response) - 1
            ids.extend(response[:-1])
            positions.append(np.arange(length, length + own))
            rows.append(np.concatenate([[start + length - 1], np.arange(place, place + own)]))
    padding = (bucket(len(ids)) if bucketed else len(ids)) - len(ids)
    input_ids = np.asarray([ids + [PAD_ID] * padding], dtype=np.int64)
    position_ids = torch.from_numpy(
        np.concatenate([*positions, np.zeros(padding)]).astype(np.int64)
    )[None]
    flat = [response for group in groups for response in group.responses]
    numbers = [number for group in groups for number in group.numbers]
    return _packed(
        input_ids, rows, flat, numbers, position_ids, Layout(segments, input_ids.shape[1])
    )


def _packed(
    input_ids: Array,
    rows: Sequence[Array],
    responses: Sequence[Ids],
    numbers: Sequence[int],
    position_ids: Tensor | None = None,
    layout: Layout | None = None,
) -> PackedRows:
    none = np.empty(0, np.int64)
    return PackedRows(
        torch.from_numpy(input_ids),
        torch.from_numpy(np.concatenate([*rows, none])),
        torch.from_numpy(
            np.concatenate(
                [*(np.asarray(response, dtype=np.int64) for response in responses), none]
            )
        ),
        torch.from_numpy(
            np.repeat(
                np.asarray(numbers, dtype=np.int64), [len(response) for response in responses]
            )
        ),
        position_ids,
        layout,
    )


def first_fit(lengths: Sequence[int]) -> list[list[int]]:
    """Indices in bins that hold as much as the longest, longest first, each in the first bin with room."""
    capacity = max(lengths, default=0)
    bins: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = next((b for b, left in enumerate(room) if left >= lengths[i]), None)
        if place is None:
            bins.append([])
            room.append(capacity)
            place = -1
        bins[place].append(i)
        room[place] -= lengths[i]
    return bins


def bucket(length: int) -> int:
    """The next of few lengths: multiples of BLOCK, in steps of at most an eighth of the length. Two blocks at least: for dimensions of
    size 1, FlexAttention would be compiled once more."""
    step = max(BLOCK, 1 << max(0, length.bit_length() - 4))
    return max(2 * BLOCK, -(-length // step) * step)


def split(groups: Iterable[Group], budget: int | None, layout: str) -> list[list[Group]]:
    """Groups, in their order, in slices of at most ``budget`` tokens; None: all in one. A group that is too large is cut between
    responses, its prompt standing in each of the slices; a response that is too long is a slice by itself."""
    slices: list[list[Group]] = []
    held = count = width = 0  # tokens, or rows and their length, of the last slice
    for prompt, responses, numbers in groups:
        fresh = True  # the prompt is not in the last slice yet
        for response, number in zip(responses, numbers, strict=True):
            own, length = len(response) - 1, len(prompt) + len(response) - 1
            shared = held + own + (len(prompt) if fresh else 0)
            cost = shared if layout == "shared" else (count + 1) * max(width, length)
            if not slices or (budget is not None and count and cost > budget):
                slices.append([])
                held = count = width = 0
                fresh = True
            if fresh:
                slices[-1].append(Group(prompt, [], []))
                held, fresh = held + len(prompt), False
            slices[-1][-1].responses.append(response)  # type: ignore[attr-defined]
            slices[-1][-1].numbers.append(number)  # type: ignore[attr-defined]
            held, count, width = held + own, count + 1, max(width, length)
    return slices
