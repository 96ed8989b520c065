"""Token log-probabilities of given logits and their gradients in PyTorch, tile by tile: the path of every device without a kernel.

Forward and backward walk over tiles of ``LOGITS_ROWS`` live rows by ``TILE_COLUMNS`` of the vocabulary, so that beyond inputs and
results only a few such tiles and some numbers per row exist at any time. Ignored rows are never read. With u = logit_scale * x,
z = softcap * tanh(u / softcap) / temperature and p = softmax(z), the gradient of a log-probability is
d log p[y] / d u = (onehot(y) - p) * (1 - tanh(u / softcap)^2) / temperature.

Picking the live rows waits for the device once; on a CPU that is free.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from pad_fast.logprob.softmax import (
    OnlineSoftmax,
    TokenOptions,
    accumulator,
    bend,
    scores_of,
    unbend,
)

TILE_COLUMNS = 2048  # of 256 rows times the head or 128 of given logits: wider and narrower tiles took no less time, and more memory
LOGITS_ROWS = 128  # where logits are given there is no product to feed: a tile of 1 MB stays in a core's own cache


def live_rows(labels: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """The indices (L,) of the rows of ``labels`` (M,) that count."""
    return (labels != ignore_index).nonzero().squeeze(-1)


def tiles(size: int, tile: int) -> Iterator[slice]:
    return (slice(start, min(start + tile, size)) for start in range(0, size, tile))


# Logits that are given.


def _planes(tensor: torch.Tensor) -> Sequence[torch.Tensor]:
    """(R, T, V) as views in two dimensions, (M, V): one if the strides allow it, else R of them."""
    try:
        return [tensor.view(-1, tensor.shape[2])]
    except RuntimeError:
        return tensor.unbind()


def _neighbours(rows: torch.Tensor) -> slice | torch.Tensor:
    """Ascending ``rows``, as a slice where none is left out: on a CPU, picking rows one by one costs more than what is done to them."""
    first, last = (0, -1) if rows.is_cuda else (int(rows[0]), int(rows[-1]))
    return slice(first, last + 1) if last - first + 1 == len(rows) else rows


def logits_forward(
    logits: torch.Tensor, labels: torch.Tensor, options: TokenOptions
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(R, T, V), (R, T) -> log-probabilities, peaks and totals (R, T)."""
    planes = _planes(logits)
    parts = zip(planes, labels.reshape(len(planes), -1), strict=True)
    found = [_plane_forward(plane, part, options) for plane, part in parts]
    log_p, peak, total = (torch.stack(rows).view(labels.shape) for rows in zip(*found, strict=True))
    wrong = (labels != options.ignore_index) & ((labels < 0) | (labels >= logits.shape[2]))
    return (
        log_p,
        peak,
        total.masked_fill_(wrong, torch.nan),
    )  # of no column: makes the gradient NaN too


def _plane_forward(
    logits: torch.Tensor, labels: torch.Tensor, options: TokenOptions
) -> tuple[torch.Tensor, ...]:
    """(M, V), (M,) -> log-probabilities, peaks and totals (M,)."""
    rows = live_rows(labels, options.ignore_index)
    softmax = OnlineSoftmax(labels[rows], accumulator(logits.dtype))
    for tile in tiles(len(rows), LOGITS_ROWS):
        picked = _neighbours(rows[tile])
        for columns in tiles(logits.shape[1], TILE_COLUMNS):
            u = logits[:, columns][picked].to(softmax.peak.dtype, copy=True)
            softmax.add(tile, columns, bend(u, options))
    return softmax.spread(rows, labels.shape)


def logits_backward(
    grad: torch.Tensor,  # (R, T)
    logits: torch.Tensor,  # (R, T, V)
    labels: torch.Tensor,  # (R, T)
    peak: torch.Tensor,  # (R, T)
    total: torch.Tensor,  # (R, T)
    options: TokenOptions,
    dlogits: torch.Tensor,  # (R, T, V), written; may be logits
) -> None:
    """Rows that are ignored or whose upstream gradient is 0 are zeroed without a read."""
    live = (labels != options.ignore_index) & (grad != 0)
    dlogits[~live] = 0
    planes = _planes(logits)
    targets = _planes(dlogits) if len(planes) == 1 else dlogits.unbind()
    rows = (part.reshape(len(planes), -1) for part in (live, labels, grad, peak, total))
    for plane, target, *parts in zip(planes, targets, *rows, strict=True):
        _plane_backward(plane, target, options, *parts)


def _plane_backward(
    logits: torch.Tensor,  # (M, V)
    dlogits: torch.Tensor,  # (M, V)
    options: TokenOptions,
    live: torch.Tensor,  # (M,) as the four below
    labels: torch.Tensor,
    grad: torch.Tensor,
    peak: torch.Tensor,
    total: torch.Tensor,
) -> None:
    rows = live.nonzero().squeeze(-1)
    for index in (rows[tile] for tile in tiles(len(rows), LOGITS_ROWS)):
        picked = _neighbours(index)
        for columns in tiles(logits.shape[1], TILE_COLUMNS):
            z = bend(logits[:, columns][picked].to(peak.dtype, copy=True), options)
            scores = scores_of(
                z, peak[picked], total[picked], labels[picked], grad[picked], columns.start
            )
            dlogits[:, columns][picked] = unbend(scores, z, options).to(dlogits.dtype)
