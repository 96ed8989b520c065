"""Token log-probabilities and their gradients in PyTorch, tile by tile: the path of every device that has no kernel.

Forward and backward walk over tiles of at most ``TILE_ROWS`` live rows by ``TILE_COLUMNS`` of the vocabulary, so that beyond
inputs and results only a few such tiles and some numbers per row exist at any time. Ignored rows are never read. With
u = logit_scale * (h @ w + b), z = softcap * tanh(u / softcap) / temperature and p = softmax(z), the gradient of a
log-probability is d log p[y] / d u = (onehot(y) - p) * (1 - tanh(u / softcap)^2) / temperature.

Picking the live rows waits for the device once; on a CPU that is free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

# Chosen on 2 cores of an AVX-512 CPU at M=2048, D=768, V=50257, float32: tiles of 4 to 32 MB differ by a few per cent, smaller
# ones starve the matrix product, and larger ones fall out of the cache in the exponentials.
TILE_ROWS = 1024
TILE_COLUMNS = 4096
LOGITS_ROWS = 64  # where logits are given there is no product to feed: a tile of 1 MB stays in a core's own cache


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


def _tiles(size: int, tile: int) -> Iterator[slice]:
    return (slice(start, min(start + tile, size)) for start in range(0, size, tile))


def _bend(u: torch.Tensor, options: TokenOptions) -> torch.Tensor:
    """z of a tile of products u, in place."""
    if options.logit_scale != 1.0:
        u.mul_(options.logit_scale)
    if options.softcap:
        u.div_(options.softcap).tanh_().mul_(options.softcap)
    return u.div_(options.temperature) if options.temperature != 1.0 else u


def _unbend(gradient: torch.Tensor, z: torch.Tensor, options: TokenOptions) -> torch.Tensor:
    """The gradient of the products u from that of z, in place."""
    if options.softcap:
        slope = z.mul(options.temperature / options.softcap)
        gradient.addcmul_(gradient, slope.square_(), value=-1)
    scale = options.logit_scale / options.temperature
    return gradient.mul_(scale) if scale != 1.0 else gradient


class _OnlineSoftmax:
    """log sum exp over the columns of tiles that arrive one after another, and the label's z: one pass over the logits."""

    def __init__(self, labels: torch.Tensor, dtype: torch.dtype):
        self.labels = labels  # (L,)
        self.peak = labels.new_full(labels.shape, -torch.inf, dtype=dtype)
        self.total = labels.new_zeros(labels.shape, dtype=dtype)
        self.picked = labels.new_full(labels.shape, torch.nan, dtype=dtype)  # stays NaN for a label that is no column

    def add(self, rows: slice, columns: slice, z: torch.Tensor) -> None:
        """Take in the tile z, which is overwritten."""
        local = self.labels[rows] - columns.start
        inside = (local >= 0) & (local < z.shape[1])
        picked = z.gather(1, local.clamp(0, z.shape[1] - 1).unsqueeze(1)).squeeze(1)
        self.picked[rows] = torch.where(inside, picked, self.picked[rows])
        peak = torch.maximum(self.peak[rows], z.amax(1))
        anchor = peak.masked_fill(peak == -torch.inf, 0)  # -inf minus -inf is NaN: such a row has met no finite logit yet
        total = self.total[rows] * (self.peak[rows] - anchor).exp()
        self.total[rows] = total + z.sub_(anchor.unsqueeze(1)).exp_().sum(1)
        self.peak[rows] = peak

    def spread(self, rows: torch.Tensor, shape: torch.Size) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Log-probabilities, peaks and totals at ``rows`` of flat ``shape``, 0 elsewhere. log(total) is not added to the peak
        first: beside a large peak the rounding would swallow a log-probability near 0."""

        def place(values: torch.Tensor) -> torch.Tensor:
            return values.new_zeros(shape.numel()).index_copy_(0, rows, values).view(shape)

        return place((self.picked - self.peak) - self.total.log()), place(self.peak), place(self.total)


def _score(z: torch.Tensor, peak: torch.Tensor, total: torch.Tensor, labels: torch.Tensor, grad: torch.Tensor, column: int) -> torch.Tensor:
    """grad * (onehot - softmax) of a tile whose first column is ``column``; z is kept."""
    score = torch.sub(z, peak.unsqueeze(1)).exp_().mul_((-grad / total).unsqueeze(1))
    local = labels - column
    inside = (local >= 0) & (local < z.shape[1])
    return score.scatter_add_(1, local.clamp(0, z.shape[1] - 1).unsqueeze(1), grad.where(inside, 0).unsqueeze(1))


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
    softmax = _OnlineSoftmax(labels[rows], accumulator(logits.dtype))
    for tile in _tiles(len(rows), LOGITS_ROWS):
        picked = _neighbours(rows[tile])
        for columns in _tiles(logits.shape[1], TILE_COLUMNS):
            u = logits[:, columns][picked].to(softmax.peak.dtype, copy=True)
            softmax.add(tile, columns, _bend(u, options))
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
    for index in (rows[tile] for tile in _tiles(len(rows), LOGITS_ROWS)):
        picked = _neighbours(index)
        for columns in _tiles(logits.shape[1], TILE_COLUMNS):
            z = _bend(logits[:, columns][picked].to(peak.dtype, copy=True), options)
            score = _score(z, peak[picked], total[picked], labels[picked], grad[picked], columns.start)
            dlogits[:, columns][picked] = _unbend(score, z, options).to(dlogits.dtype)


# Logits that are the product of hidden states and the output head.


def product(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """a @ b accumulated in ``dtype`` without rounding to the inputs' dtype in between."""
    if a.dtype == b.dtype == dtype:
        return a @ b
    if a.is_cuda and torch.version.hip is None and a.dtype == b.dtype and dtype == torch.float32:
        return torch.mm(a, b, out_dtype=dtype)  # tensor cores; CPUs refuse out_dtype and ROCm builds vary
    return a.to(dtype) @ b.to(dtype)


def _products(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, options: TokenOptions, dtype: torch.dtype
) -> Iterator[tuple[slice, torch.Tensor, Callable[[slice], torch.Tensor]]]:
    """For each tile of the vocabulary: its columns, its part of the weight, and what gives z for a tile of rows."""
    for columns in _tiles(weight.shape[0], TILE_COLUMNS):
        part = weight[columns] if weight.is_cuda else weight[columns].to(dtype)

        def z_of(rows: slice, part: torch.Tensor = part, columns: slice = columns) -> torch.Tensor:
            u = product(hidden[rows], part.T, dtype)
            return _bend(u if bias is None else u.add_(bias[columns].to(dtype)), options)

        yield columns, part, z_of


def linear_forward(
    hidden: torch.Tensor,  # (M, D)
    weight: torch.Tensor,  # (V, D)
    bias: torch.Tensor | None,  # (V,)
    labels: torch.Tensor,  # (M,)
    options: TokenOptions,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probabilities, peaks and totals (M,)."""
    dtype = accumulator(hidden.dtype)
    rows = live_rows(labels, options.ignore_index)
    live = hidden[rows] if hidden.is_cuda else hidden[rows].to(dtype)
    softmax = _OnlineSoftmax(labels[rows], dtype)
    for columns, _, z_of in _products(live, weight, bias, options, dtype):
        for tile in _tiles(len(rows), TILE_ROWS):
            softmax.add(tile, columns, z_of(tile))
    return softmax.spread(rows, labels.shape)


def linear_backward(
    grad: torch.Tensor,  # (M,)
    hidden: torch.Tensor,  # (M, D)
    weight: torch.Tensor,  # (V, D)
    bias: torch.Tensor | None,  # (V,)
    labels: torch.Tensor,  # (M,)
    peak: torch.Tensor,  # (M,)
    total: torch.Tensor,  # (M,)
    options: TokenOptions,
    dhidden: torch.Tensor | None,  # (M, D), zeros, written
    dweight: torch.Tensor | None,  # (V, D), written
    dbias: torch.Tensor | None,  # (V,), written
) -> None:
    """The gradients that are asked for. Each slice of the weight's is finished in one go, so none is accumulated in low precision."""
    dtype = peak.dtype
    rows = live_rows(labels, options.ignore_index)
    rows = rows[grad[rows] != 0]  # a response whose reward does not matter costs nothing
    live = hidden[rows] if hidden.is_cuda else hidden[rows].to(dtype)
    dlive = torch.zeros_like(live, dtype=dtype) if dhidden is not None else None
    for columns, part, z_of in _products(live, weight, bias, options, dtype):
        dpart = torch.zeros_like(part, dtype=dtype) if dweight is not None else None
        dbias_part = part.new_zeros(len(part), dtype=dtype)
        for tile in _tiles(len(rows), TILE_ROWS):
            z = z_of(tile)
            index = rows[tile]
            score = _unbend(_score(z, peak[index], total[index], labels[index], grad[index], columns.start), z, options)
            del z
            dbias_part += score.sum(0)
            score = score.to(part.dtype)  # on a CUDA device the 16-bit operand of the tensor cores; on a CPU as it is
            if dlive is not None:
                dlive[tile] += product(score, part, dtype)
            if dpart is not None:
                dpart += product(score.T, live[tile], dtype)
        if dweight is not None and dpart is not None:
            dweight[columns] = dpart
        if dbias is not None:
            dbias[columns] = dbias_part
    if dhidden is not None and dlive is not None:
        dhidden.index_copy_(0, rows, dlive.to(dhidden.dtype))
