"""Token log-probabilities of given logits and their gradients in PyTorch, tile by tile: the path of every device without a kernel.

Forward and backward walk over tiles of ``LOGITS_ROWS`` live rows by ``TILE_COLUMNS`` of the vocabulary, so that beyond inputs and
results only a few such tiles and some numbers per row exist at any time. Ignored rows are never read. With u = logit_scale * x,
z = softcap * tanh(u / softcap) / temperature and p = softmax(z), the gradient of a log-probability is
d log p[y] / d u = (onehot(y) - p) * (1 - tanh(u / softcap)^2) / temperature.

Picking the live rows waits for the device once; on a CPU that is free.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

TILE_COLUMNS = 2048  # of 256 rows times the head or 128 of given logits: wider and narrower tiles took no less time, and more memory
LOGITS_ROWS = 128  # where logits are given there is no product to feed: a tile of 1 MB stays in a core's own cache


@dataclass(frozen=True)
class TokenOptions:
    """How logits become log-probabilities. ``softcap`` 0 means none (a torch.library schema likes no optional float)."""

    temperature: float
    softcap: float
    logit_scale: float
    ignore_index: int


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """float32, or wider if the input is."""
    return torch.promote_types(dtype, torch.float32)


def live_rows(labels: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """The indices (L,) of the rows of ``labels`` (M,) that count."""
    return (labels != ignore_index).nonzero().squeeze(-1)


def tiles(size: int, tile: int) -> Iterator[slice]:
    return (slice(start, min(start + tile, size)) for start in range(0, size, tile))


def bend(u: torch.Tensor, options: TokenOptions) -> torch.Tensor:
    """z of a tile of products u, in place."""
    if options.logit_scale != 1.0:
        u.mul_(options.logit_scale)
    if options.softcap:
        u.div_(options.softcap).tanh_().mul_(options.softcap)
    return u.div_(options.temperature) if options.temperature != 1.0 else u


def unbend(gradient: torch.Tensor, z: torch.Tensor, options: TokenOptions) -> torch.Tensor:
    """The gradient of the products u from that of z, in place."""
    if options.softcap:
        slope = z.mul(options.temperature / options.softcap)
        gradient.addcmul_(gradient, slope.square_(), value=-1)
    scale = options.logit_scale / options.temperature
    return gradient.mul_(scale) if scale != 1.0 else gradient


class OnlineSoftmax:
    """log sum exp over the columns of tiles that arrive one after another, and the label's z: one pass over the logits."""

    def __init__(self, labels: torch.Tensor, dtype: torch.dtype):
        self.labels = labels  # (L,)
        self.peak = labels.new_full(labels.shape, -torch.inf, dtype=dtype)
        self.total = labels.new_zeros(labels.shape, dtype=dtype)
        self.picked = labels.new_full(labels.shape, torch.nan, dtype=dtype)  # stays NaN for a label that is no column

    def add(self, rows: slice, columns: slice, z: torch.Tensor) -> torch.Tensor:
        """Take in the tile z, which becomes exp(z - anchor); returns the anchor of each row."""
        local = self.labels[rows] - columns.start
        inside = (local >= 0) & (local < z.shape[1])
        picked = z.gather(1, local.clamp(0, z.shape[1] - 1).unsqueeze(1)).squeeze(1)
        self.picked[rows] = torch.where(inside, picked, self.picked[rows])
        peak = torch.maximum(self.peak[rows], z.amax(1))
        anchor = peak.masked_fill(peak == -torch.inf, 0)  # -inf minus -inf is NaN: such a row has met no finite logit yet
        total = self.total[rows] * (self.peak[rows] - anchor).exp()
        self.total[rows] = total + z.sub_(anchor.unsqueeze(1)).exp_().sum(1)
        self.peak[rows] = peak
        return anchor

    def log_p(self) -> torch.Tensor:
        """log(total) is not added to the peak first: beside a large peak the rounding would swallow a log-probability near 0."""
        return (self.picked - self.peak) - self.total.log()

    def spread(self, rows: torch.Tensor, shape: torch.Size) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Log-probabilities, peaks and totals at ``rows`` of flat ``shape``, 0 elsewhere."""

        def place(values: torch.Tensor) -> torch.Tensor:
            return values.new_zeros(shape.numel()).index_copy_(0, rows, values).view(shape)

        return place(self.log_p()), place(self.peak), place(self.total)


def scores_of(
    z: torch.Tensor, peak: torch.Tensor, total: torch.Tensor, labels: torch.Tensor, grad: torch.Tensor, column: int
) -> torch.Tensor:
    """grad * (onehot - softmax) of a tile whose first column is ``column``; z is kept."""
    scores = torch.sub(z, peak.unsqueeze(1)).exp_().mul_((-grad / total).unsqueeze(1))
    local = labels - column
    inside = (local >= 0) & (local < z.shape[1])
    return scores.scatter_add_(1, local.clamp(0, z.shape[1] - 1).unsqueeze(1), grad.where(inside, 0).unsqueeze(1))


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


def logits_forward(logits: torch.Tensor, labels: torch.Tensor, options: TokenOptions) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(R, T, V), (R, T) -> log-probabilities, peaks and totals (R, T)."""
    planes = _planes(logits)
    parts = zip(planes, labels.reshape(len(planes), -1), strict=True)
    found = [_plane_forward(plane, part, options) for plane, part in parts]
    log_p, peak, total = (torch.stack(rows).view(labels.shape) for rows in zip(*found, strict=True))
    wrong = (labels != options.ignore_index) & ((labels < 0) | (labels >= logits.shape[2]))
    return log_p, peak, total.masked_fill_(wrong, torch.nan)  # of no column: makes the gradient NaN too


def _plane_forward(logits: torch.Tensor, labels: torch.Tensor, options: TokenOptions) -> tuple[torch.Tensor, ...]:
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
            scores = scores_of(z, peak[picked], total[picked], labels[picked], grad[picked], columns.start)
            dlogits[:, columns][picked] = unbend(scores, z, options).to(dlogits.dtype)
