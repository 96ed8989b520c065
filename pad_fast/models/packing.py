"""Prompts with their responses packed into the rows that a model reads, and cut into slices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pad_fast.argument_checks import check_choice
from pad_fast.models.layout import (
    BLOCK,
    IGNORE,
    LAYOUTS,
    PAD_ID,
    PromptGroup,
    RowLayout,
    Segment,
    TokenIds,
)
from pad_fast.models.neighbour_effects import ONE_SIDE, Sides

Array = np.ndarray[Any, np.dtype[np.int64]]


class PackedRows(NamedTuple):
    """B rows of T tokens for a model, and the M places in them that predict a response's token."""

    input_ids: Tensor  # (B, T)
    # Places in the flattened B * T tokens; the last token of a shared prompt predicts the first
    # token of each response.
    rows: Tensor  # (M,)
    labels: Tensor  # (M,) the token that each place predicts
    response_ids: Tensor  # (M,) the number of the response that the token belongs to
    position_ids: Tensor | None = None  # (B, T); None: 0, 1, ... in each row
    # For a single row (B = 1) of several sequences; None: the model's attention needs no layout.
    layout: RowLayout | None = None

    def on(self, device: torch.device) -> PackedRows:
        """The same rows with their tensors on the device."""
        moved: dict[str, Any] = {
            name: x.to(device, non_blocking=True)
            for name, x in self._asdict().items()
            if isinstance(x, Tensor)
        }
        return self._replace(**moved)


def pack(
    groups: Sequence[PromptGroup],
    layout: str,
    *,
    one_row: bool = False,
    bucketed: bool = False,
    row_tokens: int = 0,
) -> PackedRows:
    """Lay groups out as one batch.

    Args:
        groups: prompts with their responses.
        layout: "shared", "packed" or "padded", see :mod:`pad_fast.models.layout`.
        one_row: pack all sequences into one row, for attention that takes the ends of sequences
            (flash-attn); otherwise into as few rows as the longest sequence allows.
        bucketed: round the length of a shared row up (:func:`bucket`), for compiled attention.
        row_tokens: the room in a packed row, if more than the longest sequence needs.

    Raises:
        ValueError: an unknown layout.
    """
    check_choice("layout", layout, LAYOUTS)
    if layout == "shared":
        return _pack_shared(groups, bucketed)
    pairs = [(group.prompt, response) for group in groups for response in group.responses]
    numbers = _numbers(groups)
    if layout == "packed":
        lengths = [len(prompt) + len(response) - 1 for prompt, response in pairs]
        bins = [list(range(len(pairs)))] if one_row else first_fit(lengths, row_tokens)
        if len(bins) < len(pairs):
            return _pack_bins(pairs, numbers, bins)
    return pack_rows(pairs, numbers)


def pack_rows(
    pairs: Sequence[tuple[TokenIds, TokenIds]], response_ids: Sequence[int] | None = None
) -> PackedRows:
    """The padded layout of pairs of prompt and response ids, none of them empty.

    ``response_ids`` numbers the pairs; the default is 0, 1, ...
    """
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


def rows_of_labels(
    input_ids: Tensor,  # (R, T)
    attention_mask: Tensor | None = None,  # (R, T)
    *,
    labels: Tensor,  # (R, T)
) -> PackedRows:
    """The places that predict a label, where each label stands at its own token.

    The first token of a row is predicted by none.

    Raises:
        ValueError: the shapes differ, or padding stands on the left.
    """
    if labels.shape != input_ids.shape or input_ids.ndim != 2:
        raise ValueError(
            "input_ids and labels must both be (R, T), as encode_responses makes them, got "
            f"{tuple(input_ids.shape)} and {tuple(labels.shape)}"
        )
    if attention_mask is not None and bool((attention_mask.diff(dim=1) > 0).any()):
        raise ValueError(
            "attention_mask must be 1 on tokens and then 0 on padding, which is to stand on the "
            "right, got padding on the left; encode_responses pads on the right"
        )
    responses, places = (labels[:, 1:] != IGNORE).nonzero(as_tuple=True)
    rows = responses * input_ids.shape[1] + places
    return PackedRows(input_ids, rows, labels[responses, places + 1], responses)


def _pack_bins(
    pairs: Sequence[tuple[TokenIds, TokenIds]],
    numbers: Sequence[int],
    bins: Sequence[Sequence[int]],
) -> PackedRows:
    """The packed layout; ``bins`` holds the indices of the pairs in each row."""
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
    packed = _packed(input_ids, rows, [pairs[i][1] for i in order], [numbers[i] for i in order])
    layout = RowLayout(segments, width) if len(bins) == 1 else None
    return packed._replace(position_ids=torch.from_numpy(positions), layout=layout)


def _pack_shared(groups: Sequence[PromptGroup], bucketed: bool) -> PackedRows:
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
    position_ids = np.concatenate([*positions, np.zeros(padding)]).astype(np.int64)
    flat = [response for group in groups for response in group.responses]
    return _packed(input_ids, rows, flat, _numbers(groups))._replace(
        position_ids=torch.from_numpy(position_ids)[None],
        layout=RowLayout(segments, input_ids.shape[1]),
    )


def _numbers(groups: Sequence[PromptGroup]) -> list[int]:
    return [number for group in groups for number in group.numbers]


def _packed(
    input_ids: Array,
    rows: Sequence[Array],
    responses: Sequence[TokenIds],
    numbers: Sequence[int],
) -> PackedRows:
    none = np.empty(0, np.int64)
    labels = [np.asarray(response, dtype=np.int64) for response in responses]
    lengths = [len(response) for response in responses]
    return PackedRows(
        torch.from_numpy(input_ids),
        torch.from_numpy(np.concatenate([*rows, none])),
        torch.from_numpy(np.concatenate([*labels, none])),
        torch.from_numpy(np.repeat(np.asarray(numbers, dtype=np.int64), lengths)),
    )


def first_fit(lengths: Sequence[int], capacity: int = 0) -> list[list[int]]:
    """Put indices into bins as large as the longest length, or as ``capacity`` if that is more.

    The longest come first, each into the first bin with room for it.
    """
    capacity = max(capacity, *lengths, 0)
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
    """Round a row's length up, so that few lengths occur and little is compiled.

    The result is a multiple of BLOCK, at most an eighth longer, and at least two blocks: for a
    dimension of size 1 FlexAttention would be compiled once more.
    """
    step = max(BLOCK, 1 << max(0, length.bit_length() - 4))
    return max(2 * BLOCK, -(-length // step) * step)


def split(
    groups: Iterable[PromptGroup],
    max_tokens: int | None,
    layout: str,
    sides: Sides = ONE_SIDE,
) -> list[list[PromptGroup]]:
    """Cut groups, in their order, into slices of at most ``max_tokens`` tokens each.

    A group that is too large is cut between responses, and each of the slices has its prompt. A
    response that is too long is a slice by itself. None puts everything into one slice, or into one
    for each side that a model's ``sides`` tell apart.
    """
    return [
        part for some in _by_side(groups, sides) for part in _split_side(some, max_tokens, layout)
    ]


def _by_side(groups: Iterable[PromptGroup], sides: Sides) -> list[list[PromptGroup]]:
    """The groups of each side, those of the longest sequences first."""
    if not sides:
        return [list(groups)]
    found: dict[tuple[int, int], list[PromptGroup]] = {}
    for prompt, responses, numbers in groups:
        own: dict[tuple[int, int], PromptGroup] = {}
        for response, number in zip(responses, numbers, strict=True):
            side = sides(len(prompt) + len(response) - 1)
            group = own.setdefault(side, PromptGroup(prompt, [], []))
            group.responses.append(response)  # type: ignore[attr-defined]
            group.numbers.append(number)  # type: ignore[attr-defined]
        for side, group in own.items():
            found.setdefault(side, []).append(group)
    return [found[side] for side in sorted(found, reverse=True)]


def _split_side(
    groups: Iterable[PromptGroup], max_tokens: int | None, layout: str
) -> list[list[PromptGroup]]:
    slices: list[list[PromptGroup]] = []
    tokens = count = width = 0  # the last slice: its tokens if shared, else rows and their length
    for prompt, responses, numbers in groups:
        needs_prompt = True  # the last slice does not hold this prompt yet
        for response, number in zip(responses, numbers, strict=True):
            own, length = len(response) - 1, len(prompt) + len(response) - 1
            shared = tokens + own + (len(prompt) if needs_prompt else 0)
            cost = shared if layout == "shared" else (count + 1) * max(width, length)
            if not slices or (max_tokens is not None and count and cost > max_tokens):
                slices.append([])
                tokens = count = width = 0
                needs_prompt = True
            if needs_prompt:
                slices[-1].append(PromptGroup(prompt, [], []))
                tokens, needs_prompt = tokens + len(prompt), False
            slices[-1][-1].responses.append(response)  # type: ignore[attr-defined]
            slices[-1][-1].numbers.append(number)  # type: ignore[attr-defined]
            tokens, count, width = tokens + own, count + 1, max(width, length)
    return slices
