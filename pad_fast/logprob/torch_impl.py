"""Token log-probabilities of given logits and their gradients in PyTorch, for every device.

Forward and backward go over tiles of whole live rows, see :func:`logits_tile`, and hold a few
such tiles and some numbers per row. Ignored rows are never read. With
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

# Columns of a tile of products in linear_logprob/. Wider and narrower ones took no less time on a
# CPU, and more memory.
TILE_COLUMNS = 2048
# Entries of a tile of given logits, which is 1 MB: it stays in a core's own cache.
LOGITS_ENTRIES = 1 << 18


def live_rows(labels: Tensor, ignore_index: int) -> Tensor:
    """The places (L,) of the rows of ``labels`` (M,) that are not ignored. Waits for the device."""
    return (labels != ignore_index).nonzero().squeeze(-1)


def tiles(size: int, tile: int) -> Iterator[slice]:
    """0..size in slices of ``tile``; the last may be shorter."""
    return (slice(start, min(start + tile, size)) for start in range(0, size, tile))


def logits_tile(vocabulary: int) -> tuple[int, int]:
    """Rows and columns of a tile of given logits.

    Rows are whole up to half a tile. A tile has a row or more for each thread, and never a single
    one: PyTorch divides the sum of a single row among its threads, and the row's bits would follow
    their number.
    """
    columns = min(vocabulary, LOGITS_ENTRIES // 2)
    threads = torch.get_num_threads()
    rows = max(LOGITS_ENTRIES // columns, threads)
    return rows // threads * threads, columns


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


def _parts(rows: Tensor, step: int) -> Iterator[tuple[slice, slice | Tensor]]:
    """Ascending ``rows``, ``step`` at a time: their places in ``rows``, and the rows themselves.

    These are a slice where none is left out: picking rows one by one would cost a CPU more than
    what is done to them.
    """
    known = [] if waits_for_values(rows.device) else rows.tolist()
    for part in tiles(len(rows), step):
        if known and known[part.stop - 1] - known[part.start] == part.stop - part.start - 1:
            yield part, slice(known[part.start], known[part.stop - 1] + 1)
        else:
            yield part, rows[part]


class _Tiles:
    """Tiles of logits, each copied to where the last one was.

    New memory for each would take as long as its sums. It is taken when a tile asks for it.
    """

    def __init__(self, logits: Tensor, options: TokenOptions, dtype: torch.dtype):
        self.logits, self.options, self.dtype = logits, options, dtype
        self.rows, self.columns = logits_tile(logits.shape[1])
        self.places: dict[str, Tensor] = {}

    def room(self, name: str, rows: int, columns: int) -> Tensor:
        """The place of this name, which the next tile overwrites."""
        if name not in self.places:  # the first tile is the largest
            self.places[name] = self.logits.new_empty(rows * columns, dtype=self.dtype)
        return self.places[name][: rows * columns].view(rows, columns)

    def read(self, rows: slice | Tensor, columns: slice) -> tuple[Tensor, bool]:
        """z of a tile, and whether it is a copy, which may be written to."""
        part = self.logits[:, columns]
        same = part.dtype == self.dtype
        if same and isinstance(rows, Tensor):
            z = self.room("z", len(rows), part.shape[1])
            torch.index_select(part, 0, rows, out=z)
        else:
            part = part[rows]
            if same and self.options.leave_logits:
                return part, False
            z = self.room("z", *part.shape).copy_(part)
        return transform(z, self.options), True


def _label_z(
    logits: Tensor,  # (M, V)
    rows: Tensor,  # (L,)
    labels: Tensor,  # (L,)
    options: TokenOptions,
    dtype: torch.dtype,
) -> Tensor:  # (L,)
    """The labels' own z, and NaN for a label that is no column."""
    last = logits.shape[1] - 1
    z = transform(logits[rows, labels.clamp(0, last)].to(dtype), options)
    return z.masked_fill_((labels < 0) | (labels > last), torch.nan)


def _plane_forward(
    logits: Tensor,  # (M, V)
    labels: Tensor,  # (M,)
    options: TokenOptions,
) -> tuple[Tensor, ...]:
    rows = live_rows(labels, options.ignore_index)
    source = _Tiles(logits, options, accumulator(logits.dtype))
    by_loops = len(rows) > 0 and compiled.is_asked_for(logits, options)
    if len(rows) % source.rows == 1 and not by_loops:
        rows = torch.cat((rows, rows[-1:]))  # the last one twice, in place of a tile of one row
    softmax = OnlineSoftmax(labels[rows], source.dtype)
    if by_loops:
        compiled.sum_rows(logits, rows, options, softmax)
        return softmax.spread(rows, labels.shape)
    for part, picked in _parts(rows, source.rows):
        for columns in tiles(logits.shape[1], source.columns):
            z, own = source.read(picked, columns)
            softmax.add(part, columns, z, z if own else source.room("below", *z.shape))
    # At most the peak, though tanh may round a logit otherwise in its tile than by itself.
    own_z = _label_z(logits, rows, softmax.labels, options, source.dtype)
    softmax.picked = torch.minimum(own_z, softmax.peak)
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
    source = _Tiles(logits, options, numbers.peak.dtype)
    for _, picked in _parts(rows, source.rows):
        following, some = isinstance(picked, slice), numbers[picked]
        for columns in tiles(logits.shape[1], source.columns):
            z, own = source.read(picked, columns)
            target = dlogits[:, columns]
            # Tiles of rows that follow one another are written where they belong, without a copy.
            if direct := following and dlogits.dtype == source.dtype:
                into = target[picked]
            elif own and not options.softcap:  # whose slope is made from z
                into = z
            else:
                into = source.room("gradient", *z.shape)
            dz = logp_grad(z, some, columns.start, into)
            dz = transform_backward(dz, z, options, z if own else None)
            if not direct:
                target[picked] = dz if following else dz.to(dlogits.dtype)
