"""Token log-probabilities of given logits and their gradients in PyTorch, for every device.

Forward and backward go over tiles of ``LOGITS_ROWS`` live rows by ``TILE_COLUMNS`` columns, and
hold a few such tiles and some numbers per row. Ignored rows are never read. With
u = logit_scale * logits, z = softcap * tanh(u / softcap) / temperature and p = softmax(z),
d log p[y] / d u = (onehot(y) - p) * (1 - tanh(u / softcap)^2) / temperature.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pad_fast.device import waits_for_values
from pad_fast.logprob import compiled
from pad_fast.logprob.softmax import (
    OnlineSoftmax,
    RowNumbers,
    TokenOptions,
    accumulator,
    logp_grad,
    transform,
    transform_backward,
)

# Wider and narrower tiles took no less time on a CPU, and more memory. Tiles have this many
# columns here and in the products of linear_logprob/.
TILE_COLUMNS = 2048
# Given logits feed no product, so fewer rows do: a tile of 1 MB stays in a core's own cache.
LOGITS_ROWS = 128


def live_rows(labels: Tensor, ignore_index: int) -> Tensor:
    """The places (L,) of the rows of ``labels`` (M,) that are not ignored. Waits for the device."""
    return (labels != ignore_index).nonzero().squeeze(-1)


def tiles(size: int, tile: int) -> Iterator[slice]:
    """0..size in slices of ``tile``; the last may be shorter."""
    return (slice(start, min(start + tile, size)) for start in range(0, size, tile))


def logits_forward(
    logits: Tensor,  # (R, T, V)
    labels: Tensor,  # (R, T)
    options: TokenOptions,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities, peaks and totals, (R, T) each, 0 where ignored."""
    planes = _planes(logits)
    parts = zip(planes, labels.reshape(len(planes), -1), strict=True)
    found = [_plane_forward(plane, part, options) for plane, part in parts]
    # cat, since autograd forbids in-place changes of an operation's result that is a view.
    shape = (labels.shape[0] // len(planes), labels.shape[1])
    log_p, peak, total = (
        torch.cat([part.view(shape) for part in rows]) for rows in zip(*found, strict=True)
    )
    wrong = (labels != options.ignore_index) & ((labels < 0) | (labels >= logits.shape[2]))
    # A total of NaN makes the gradient of such a row NaN too.
    return log_p, peak, total.masked_fill_(wrong, torch.nan)


def logits_backward(
    grad: Tensor,  # (R, T)
    logits: Tensor,  # (R, T, V)
    labels: Tensor,  # (R, T)
    peak: Tensor,  # (R, T)
    total: Tensor,  # (R, T)
    options: TokenOptions,
    dlogits: Tensor,  # (R, T, V), written; may be logits
) -> None:
    """The gradient of the logits.

    Rows that are ignored or whose upstream gradient is 0 are zeroed without a read.
    """
    live = (labels != options.ignore_index) & (grad != 0)
    dlogits[~live] = 0
    planes = _planes(logits)
    targets = _planes(dlogits) if len(planes) == 1 else dlogits.unbind()
    rows = (part.reshape(len(planes), -1) for part in (live, labels, peak, total, grad))
    for plane, target, part, *numbers in zip(planes, targets, *rows, strict=True):
        _plane_backward(plane, target, options, part, RowNumbers(*numbers))


def _planes(tensor: Tensor) -> Sequence[Tensor]:
    """(R, T, V) as views of two dimensions: one (M, V) if the strides allow it, else R of them."""
    try:
        return [tensor.view(-1, tensor.shape[2])]
    except RuntimeError:
        return tensor.unbind()


def _as_slice(rows: Tensor) -> slice | Tensor:
    """Ascending ``rows``, as a slice where none is left out.

    On a CPU, picking rows one by one would cost more than what is done to them.
    """
    first, last = (0, -1) if waits_for_values(rows.device) else (int(rows[0]), int(rows[-1]))
    return slice(first, last + 1) if last - first + 1 == len(rows) else rows


def _read(
    tile: Tensor, options: TokenOptions, dtype: torch.dtype, *, own: bool
) -> tuple[Tensor, bool]:
    """z of a tile of logits, and whether it may be written to: it is the tile itself if it can be.

    ``own`` says that the tile is a copy.
    """
    if tile.dtype == dtype and options.leave_logits:
        return tile, own
    return transform(tile.to(dtype, copy=not own), options), True


def _plane_forward(
    logits: Tensor,  # (M, V)
    labels: Tensor,  # (M,)
    options: TokenOptions,
) -> tuple[Tensor, ...]:
    rows = live_rows(labels, options.ignore_index)
    dtype = accumulator(logits.dtype)
    softmax = OnlineSoftmax(labels[rows], dtype)
    if len(rows) and compiled.is_asked_for(logits, options):
        compiled.sum_rows(logits, rows, options, softmax)
        return softmax.spread(rows, labels.shape)
    for tile in tiles(len(rows), LOGITS_ROWS):
        picked = _as_slice(rows[tile])
        own = not isinstance(picked, slice)
        for columns in tiles(logits.shape[1], TILE_COLUMNS):
            z, writable = _read(logits[:, columns][picked], options, dtype, own=own)
            softmax.add(tile, columns, z, z if writable else torch.empty_like(z))
            del z  # before the next tile
    return softmax.spread(rows, labels.shape)


def _plane_backward(
    logits: Tensor,  # (M, V)
    dlogits: Tensor,  # (M, V)
    options: TokenOptions,
    live: Tensor,  # (M,)
    numbers: RowNumbers,  # (M,)
) -> None:
    rows = live.nonzero().squeeze(-1)
    shared = dlogits.data_ptr() == logits.data_ptr()
    if len(rows) and not shared and compiled.is_asked_for(logits, options):
        compiled.write_row_gradients(logits, rows, numbers[rows], options, dlogits)
        return
    for index in (rows[tile] for tile in tiles(len(rows), LOGITS_ROWS)):
        picked = _as_slice(index)
        own, some = not isinstance(picked, slice), numbers[picked]
        # Tiles of rows that follow one another are written where they belong, without a copy.
        direct = not own and dlogits.dtype == numbers.peak.dtype
        for columns in tiles(logits.shape[1], TILE_COLUMNS):
            z, writable = _read(logits[:, columns][picked], options, numbers.peak.dtype, own=own)
            target, into = dlogits[:, columns], None
            if direct:
                into = target[picked]
            elif writable and not options.softcap:  # whose slope is made from z
                into = z
            dz = transform_backward(logp_grad(z, some, columns.start, into), z, options)
            if not direct:
                target[picked] = dz.to(dlogits.dtype)
            del z, dz, into  # before the next tile
