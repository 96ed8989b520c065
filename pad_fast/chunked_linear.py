"""Token log-probabilities of hidden states times the output head in PyTorch, and the backward of every device.

With u = h @ w + b, a row's *scores* are S = d log p[y] / d u = (onehot(y) - p) * slope, without the upstream gradient g. That is a
factor per row, so it never has to touch S: dH = g * (S @ W) and dW = S^T @ (g * H), two plain products for any g. Rows that kept
their scores need only those; the others are computed again, slice by slice of the vocabulary, each slice of the weight's gradient
finished in one go. A row whose numbers are NaN has scores of 0 and passes NaN on in g * H alone, so that a g of 0 silences it.

The rows of a product are always ``chunk_rows``, the last ones padded, since a library's bits change with that number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pad_fast import budget, chunked
from pad_fast.budget import chunk_rows
from pad_fast.chunked import OnlineSoftmax, TokenOptions, accumulator, bend, scores_of, tiles, unbend
from pad_fast.products import add_product_, factor_dtype, product

GPU_TILE_ROWS = 2048
GPU_COLUMNS = 8192  # with 16,384 rows: 256 MiB of scores, and a gradient of hidden states that is added to 16 times at V=128,256


@dataclass(frozen=True)
class Head:
    """The output head, and how its products become log-probabilities."""

    weight: Tensor  # (V, D)
    bias: Tensor | None  # (V,)
    options: TokenOptions

    @property
    def dtype(self) -> torch.dtype:
        """Of the accumulation."""
        return accumulator(self.weight.dtype)

    @property
    def factor_dtype(self) -> torch.dtype:
        return factor_dtype(self.weight, self.dtype)

    def slices(self, columns: int) -> Iterator[tuple[slice, Tensor]]:
        """The vocabulary and the weight, slice by slice, each widened where products need it."""
        for part in tiles(len(self.weight), columns):
            yield part, self.weight[part].to(self.factor_dtype)

    def add_bias(self, u: Tensor, columns: slice) -> Tensor:
        return u if self.bias is None else u.add_(self.bias[columns].to(u.dtype))


def pack(hidden: Tensor, rows: Tensor, chunk: int) -> Tensor:
    """``hidden[rows]``, and rows of zeros up to a multiple of ``chunk``."""
    packed = hidden.new_zeros(-(-len(rows) // chunk) * chunk, hidden.shape[1])
    torch.index_select(hidden, 0, rows, out=packed[: len(rows)])
    return packed


# Forward.


def forward(live: Tensor, labels: Tensor, head: Head, scores: Tensor, dlive: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Packed hidden states (.., D), labels (L,) -> log-probabilities, peaks and totals (L,).

    The first rows leave their scores in ``scores`` (K, V or more). With ``dlive`` (L, D), each row's S @ W is left there.
    """
    softmax = OnlineSoftmax(labels, head.dtype)
    live = live.to(head.factor_dtype)
    chunk = chunk_rows(len(head.weight), live.device)
    kept = len(labels) if dlive is not None else min(len(scores), len(labels))
    for rows in tiles(kept, chunk):
        if dlive is None:
            _keep(live, rows, head, softmax, scores[rows, : len(head.weight)])
        else:
            block = live.new_empty(rows.stop - rows.start, len(head.weight), dtype=head.weight.dtype)
            _keep(live, rows, head, softmax, block)
            dlive[rows] = times_weight(block, head).to(dlive.dtype)
    for columns, part in head.slices(chunked.TILE_COLUMNS) if kept < len(labels) else ():
        for rows in tiles(len(labels) - kept, chunk):
            rows = slice(rows.start + kept, rows.stop + kept)
            softmax.add(rows, columns, _z(live, rows, part, columns, head))
    return softmax.log_p(), softmax.peak, softmax.total


def _z(live: Tensor, rows: slice, part: Tensor, columns: slice, head: Head) -> Tensor:
    """z of a tile, from a product of a whole chunk of rows."""
    whole = slice(rows.start, rows.start + chunk_rows(len(head.weight), live.device))
    u = product(live[whole], part.T, head.dtype)[: rows.stop - rows.start]
    return bend(head.add_bias(u, columns), head.options)


def _keep(live: Tensor, rows: slice, head: Head, softmax: OnlineSoftmax, scores: Tensor) -> None:
    """Take a chunk of rows into ``softmax`` and leave its ``scores`` (L, V) in the input's dtype."""
    options, block = head.options, scores if scores.dtype == head.dtype else torch.empty_like(scores, dtype=head.dtype)
    anchors = []
    for columns, part in head.slices(chunked.TILE_COLUMNS):
        z = _z(live, rows, part, columns, head)
        slope = unbend(torch.ones_like(z), z, options) if options.softcap else None
        anchors.append(softmax.add(rows, columns, z))
        block[:, columns] = z if slope is None else z.mul_(slope)
        del z, slope  # before the next product
    labels, peak, total, own = softmax.labels[rows], softmax.peak[rows], softmax.total[rows], softmax.picked[rows].unsqueeze(1)
    own = unbend(torch.ones_like(own), own, options)
    scale = 1.0 if options.softcap else options.logit_scale / options.temperature
    for columns, anchor in zip(tiles(len(head.weight), chunked.TILE_COLUMNS), anchors, strict=True):
        block[:, columns].mul_(((anchor - peak).exp() * (-scale / total)).unsqueeze(1))
    block.scatter_add_(1, labels.clamp(0, len(head.weight) - 1).unsqueeze(1), own)
    if (broken := total.isnan()).any():
        block[broken] = 0
    if block is not scores:
        scores.copy_(block)


# Backward.


def times_weight(scores: Tensor, head: Head) -> Tensor:
    """S @ W of a chunk of rows, in the accumulator's dtype."""
    if head.factor_dtype == head.weight.dtype:
        return product(scores, head.weight, head.dtype)
    total = scores.new_zeros(len(scores), head.weight.shape[1], dtype=head.dtype)
    for columns, part in head.slices(chunked.TILE_COLUMNS):
        add_product_(total, scores[:, columns].to(part.dtype), part)
    return total


@dataclass(frozen=True)
class Upstream:
    """The upstream gradient of packed rows, for products in 16 bits too."""

    grad: Tensor  # (L,) in the accumulator's dtype
    unit: Tensor  # () a power of two: float16 has too little range for g, which loss scaling may make large or averaging small

    @classmethod
    def of(cls, grad: Tensor, total: Tensor, dtype: torch.dtype) -> Upstream:
        """``grad`` (L,), NaN where a row's own numbers are, unless it is 0."""
        grad = torch.where((grad != 0) & total.isnan(), torch.nan, grad.to(total.dtype))
        if dtype != torch.float16 or not len(grad):
            return cls(grad, grad.new_ones(()))
        largest = grad.abs().nan_to_num(0, 0, 0).amax()
        return cls(grad, largest.clamp(min=torch.finfo(grad.dtype).tiny).log2().ceil().exp2())

    def times(self, live: Tensor, dtype: torch.dtype) -> Tensor:
        """(g / unit) * H in ``dtype`` for the first rows of ``live``."""
        return scale_rows(self.grad[: len(live)] / self.unit, live).to(dtype)


def scale_rows(grad: Tensor, rows: Tensor) -> Tensor:
    """g * rows, 0 where g is."""
    grad = grad.unsqueeze(1)
    return torch.where(grad == 0, 0, grad * rows)


TileScores = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, slice], Tensor]


def tile_scores(head: Head) -> TileScores:
    """g * S of a tile of products u (L, v), from the labels, peaks, totals and g (L,) of its rows, and its columns."""

    def scores(u: Tensor, labels: Tensor, peak: Tensor, total: Tensor, grad: Tensor, columns: slice) -> Tensor:
        z = bend(head.add_bias(u, columns), head.options)
        return unbend(scores_of(z, peak, total, labels, grad, columns.start), z, head.options)

    return scores


@dataclass
class Gradients:
    """Where gradients go; None for one that is not needed."""

    hidden: Tensor | None  # (M, D), zeros
    weight: Tensor | None  # (V, D)
    bias: Tensor | None  # (V,)


def backward(
    upstream: Upstream,
    live: Tensor,  # (.., D) packed
    rows: Tensor,  # (L,) their places
    numbers: tuple[Tensor, Tensor, Tensor],  # labels, peak, total, (L,) each
    head: Head,
    scores: Tensor,  # (K, V or more)
    into: Gradients,
    again: TileScores,
    read_all: bool,  # also rows with g = 0: to leave them out waits for the device
) -> None:
    """The gradients of hidden states, weight and bias."""
    kept = min(len(scores), len(rows))
    tile = GPU_TILE_ROWS if live.is_cuda else chunk_rows(len(head.weight), live.device)
    if into.hidden is not None:
        for part in tiles(kept, tile):
            dlive = scale_rows(upstream.grad[part], times_weight(scores[part, : len(head.weight)], head))
            into.hidden.index_copy_(0, rows[part], dlive.to(into.hidden.dtype))
    others = slice(kept, len(rows))
    index = None if read_all else kept + upstream.grad[others].nonzero().squeeze(-1)
    rest = _Recomputed(upstream, live, others if index is None else index, numbers, head, into.hidden is not None, again, tile)
    if rest.count or into.weight is not None or into.bias is not None:
        _walk_vocabulary(upstream, live[:kept], head, scores[:kept], into, rest)
    if into.hidden is not None and rest.dlive is not None:
        for part in tiles(rest.count, tile):
            where = rows[others if index is None else index][part]
            into.hidden.index_copy_(0, where, rest.dlive[part].mul_(upstream.unit).to(into.hidden.dtype))


def _walk_vocabulary(upstream: Upstream, kept: Tensor, head: Head, scores: Tensor, into: Gradients, rest: _Recomputed) -> None:
    """Finish the gradients of weight and bias a slice at a time, and the rest's of hidden states on the way."""
    factors = upstream.times(kept, head.factor_dtype) if into.weight is not None else None
    grad = upstream.grad[: len(kept)] / upstream.unit
    for columns in tiles(len(head.weight), GPU_COLUMNS if kept.is_cuda else chunked.TILE_COLUMNS):
        _finish_slice(columns, upstream, factors, grad, head, scores, into, rest)


def _finish_slice(
    columns: slice, upstream: Upstream, factors: Tensor | None, grad: Tensor, head: Head, scores: Tensor, into: Gradients, rest: _Recomputed
) -> None:
    """Sums are taken in place where the gradient is of their dtype; others are gone before those of the next slice are made."""
    targets = [None if whole is None else whole[columns] for whole in (into.weight, into.bias)]
    sums = [None if to is None else to.zero_() if to.dtype == head.dtype else torch.zeros_like(to, dtype=head.dtype) for to in targets]
    if len(scores):
        add_weight_gradient(scores[:, columns], factors, grad, *sums)
    if rest.count:
        rest.add(columns, *sums)
    for target, total in zip(targets, sums, strict=True):
        if target is not None and total is not None:
            target.copy_(total.mul_(upstream.unit))  # nothing is copied onto itself


def add_weight_gradient(scores: Tensor, factors: Tensor | None, grad: Tensor, dweight: Tensor | None, dbias: Tensor | None) -> None:
    """Of a slice of the vocabulary: dW += S^T @ (g * H), with ``factors`` g * H, and db += S^T @ g."""
    if dweight is not None and factors is not None:
        for rows in tiles(len(scores), max(1, len(scores)) if scores.dtype == factors.dtype else budget.CPU_ROWS):
            add_product_(dweight, scores[rows].to(factors.dtype).T, factors[rows])
    if dbias is not None:
        for rows in tiles(len(scores), GPU_TILE_ROWS):
            dbias += grad[rows] @ scores[rows].to(grad.dtype)


class _Recomputed:
    """Rows that did not keep their scores. They are computed again, times g, for one slice of the vocabulary after another."""

    def __init__(self, upstream: Upstream, live: Tensor, rows, numbers, head: Head, need_hidden: bool, again: TileScores, tile: int):
        self.head, self.again, self.tile = head, again, tile
        self.grad = upstream.grad[rows] / upstream.unit
        self.count = len(self.grad)
        self.numbers = tuple(number[rows] for number in numbers)
        self.live = torch.where(self.grad.unsqueeze(1) == 0, 0, live[rows]).to(head.factor_dtype)  # 0 times NaN is NaN
        self.dlive = self.live.new_zeros(self.live.shape, dtype=head.dtype) if need_hidden else None

    def add(self, columns: slice, dweight: Tensor | None, dbias: Tensor | None) -> None:
        part = self.head.weight[columns].to(self.head.factor_dtype)
        # On a GPU all rows' scores are held, so that the weight's slice is one product: its sum is not read and written again.
        held = self.live.new_empty(self.count, len(part)) if self.live.is_cuda and dweight is not None else None
        for rows in tiles(self.count, self.tile):
            u = product(self.live[rows], part.T, self.head.dtype)
            labels, peak, total = (number[rows] for number in self.numbers)
            scores = self.again(u, labels, peak, total, self.grad[rows], columns).to(part.dtype)
            del u
            if dbias is not None:
                dbias += scores.sum(0, dtype=dbias.dtype)
            if self.dlive is not None:
                add_product_(self.dlive[rows], scores, part)
            if held is not None:
                held[rows] = scores
            elif dweight is not None:
                add_product_(dweight, scores.T, self.live[rows])
            del scores  # before the next product
        if held is not None and dweight is not None:
            add_product_(dweight, held.T, self.live)
