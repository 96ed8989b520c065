"""The gradients of hidden states, weight and bias, on every device.

With u = h @ W.T + b, a row has S = d log p[y] / d u. The upstream gradient g is one factor per row,
so dH = g * (S @ W) and dW = S.T @ (g * H) are plain products. Rows that kept S, or S but for a
factor in g, need only these. Others are computed again, slice by slice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pad_fast.device import is_gpu
from pad_fast.linear_logprob import memory_budget
from pad_fast.linear_logprob.head import Head, empty_rows, times_weight
from pad_fast.linear_logprob.matmul import SliceSum, add_product_, rounds_once, write_product
from pad_fast.linear_logprob.memory_budget import GPU_TILE_ROWS
from pad_fast.linear_logprob.scores import Scores
from pad_fast.linear_logprob.upstream import Upstream, gather_rows, scale_rows_
from pad_fast.logprob.softmax import RowNumbers
from pad_fast.logprob.torch_impl import tiles


@dataclass(frozen=True)
class LiveRows:
    """The live rows and their upstream gradient."""

    hidden: Tensor  # (M, D), all rows
    places: Tensor  # (L,), of the live ones
    labels: Tensor  # (L,), as the two below
    peak: Tensor
    total: Tensor
    upstream: Upstream


@dataclass(frozen=True)
class KeptRows:
    """Rows that kept their scores, and the upstream gradient that belongs to these."""

    scores: Tensor  # (K, V)
    places: Tensor  # (K,)
    upstream: Upstream  # row_scale * g

    @classmethod
    def of(cls, scores: Scores, places: Tensor, upstream: Upstream) -> KeptRows:
        """The first rows of those at ``places``, as many as have ``scores``."""
        kept = upstream.of_scores(scores.row_scale)
        return cls(scores.values, places[: len(scores)], kept)


@dataclass
class Gradients:
    """Tensors to write gradients to; None for one that is not needed."""

    hidden: Tensor | None  # (M, D), zeros
    weight: Tensor | None  # (V, D)
    bias: Tensor | None  # (V,)


# (a tile u (L, v) of products, its rows, its columns, the head, where to write or None)
# -> g * d log p / d u of the tile
TileLogpGrad = Callable[[Tensor, RowNumbers, slice, Head, Tensor | None], Tensor]


@dataclass(frozen=True)
class HowToBackward:
    """How the rows that kept nothing are computed again."""

    tile_logp_grad: TileLogpGrad
    read_all: bool  # also rows with g = 0: leaving them out waits for the device
    product_rows: int  # rows that a product of gradients takes at once


def backward(
    live: LiveRows,
    head: Head,
    scores: Scores,  # K, of the first rows
    into: Gradients,
    how: HowToBackward,
) -> None:
    """Write the gradients that are needed.

    More rows than ``product_rows`` are computed again in two passes, one for hidden states and one
    for the head: sums of both over all rows and slices would not fit in the memory there is.
    """
    kept = min(len(scores), len(live.places))
    own = KeptRows.of(scores[:kept].unpadded(len(head.weight)), live.places, live.upstream)
    if into.hidden is not None:
        write_hidden_gradient(own, head, into.hidden, how.product_rows)
    grad = live.upstream.grad[kept:]
    again = torch.arange(kept, len(live.places), device=grad.device)
    rows = again if how.read_all else again[grad != 0]
    blocks = [rows[part] for part in tiles(len(rows), how.product_rows)]
    together = len(blocks) == 1
    if into.hidden is not None and not together:
        for block in blocks:
            rest = _Recomputed(live, block, head, how.tile_logp_grad, need_hidden=True)
            for columns in tiles(len(head.weight), head.tile_columns):
                rest.add(columns, None, None)
            rest.write_hidden(into.hidden)
            del rest  # before the next block
    if together or into.weight is not None or into.bias is not None:
        need_hidden = into.hidden is not None and together

        def recomputed(block: Tensor) -> _Recomputed:
            return _Recomputed(live, block, head, how.tile_logp_grad, need_hidden)

        _add_by_slices(live, own, head, into, blocks, recomputed)


def write_hidden_gradient(
    kept: KeptRows,
    head: Head,
    into: Tensor,  # (M, D)
    product_rows: int,
) -> None:
    """dH = g * (S @ W), written to the places of rows that kept their scores.

    A product takes ``product_rows`` rows, but few where a CPU has to widen both. Where it has not,
    more rows take less time, and no more memory than g * H, which comes later.
    """
    scores, grad = kept.scores, kept.upstream.grad
    widened = not is_gpu(scores.device) and scores.dtype != head.dtype
    for part in tiles(len(scores), head.tile_rows if widened else max(1, product_rows)):
        dhidden = scale_rows_(times_weight(scores[part], head), grad[part])
        into.index_copy_(0, kept.places[part], dhidden.to(into.dtype))
        del dhidden  # before the next product


def _add_by_slices(
    live: LiveRows,
    kept: KeptRows,
    head: Head,
    into: Gradients,
    blocks: Sequence[Tensor],
    recomputed: Callable[[Tensor], _Recomputed],
) -> None:
    """Finish the gradients of weight and bias slice by slice, and dH of a single block of rows."""
    scores, factors = kept.scores, None
    if into.weight is not None:
        factors = kept.upstream.times(live.hidden, kept.places, head.factor_dtype)
    grad = kept.upstream.in_units
    dweight = into.weight
    if dweight is not None and factors is not None and len(scores) and not blocks:
        dweight = _write_at_once(dweight, scores, factors)
    if dweight is None and into.bias is None and not blocks:
        return
    single = recomputed(blocks[0]) if len(blocks) == 1 else None
    for columns in tiles(len(head.weight), head.tile_columns):
        sums = [
            None if whole is None else SliceSum(whole[columns], head.dtype)
            for whole in (dweight, into.bias)
        ]
        if len(scores):
            add_weight_gradient(scores[:, columns], factors, grad, *sums)
        for block in blocks:
            (single or recomputed(block)).add(columns, *sums)
        for total in sums:
            if total is not None:
                total.finish(live.upstream.unit)
        del sums  # before those of the next slice are made
    if single is not None and into.hidden is not None:
        single.write_hidden(into.hidden)


def _write_at_once(dweight: Tensor, scores: Tensor, factors: Tensor) -> Tensor | None:
    """Write dW as one product, without a sum in float32, and return None; or return ``dweight``."""
    if not rounds_once(dweight, scores.T, factors):
        return dweight
    torch.mm(scores.T, factors, out=dweight)
    return None


def add_weight_gradient(
    scores: Tensor,  # (L, v), a slice of the vocabulary
    factors: Tensor | None,  # (L, D), g * H
    grad: Tensor,  # (L,), g of these scores
    dweight: SliceSum | None,  # (v, D)
    dbias: SliceSum | None,  # (v,)
) -> None:
    """dW += S.T @ (g * H) and db += S.T @ g, with S the ``scores`` of :class:`KeptRows`."""
    if dweight is not None and factors is not None:
        # Rows that have to be widened are widened a few at a time.
        step = len(scores) if scores.dtype == factors.dtype else memory_budget.CPU_ROWS
        for rows in tiles(len(scores), max(1, step)):
            dweight.add_product(scores[rows].to(factors.dtype).T, factors[rows])
    if dbias is not None:
        for rows in tiles(len(scores), GPU_TILE_ROWS):
            dbias.add(grad[rows] @ scores[rows].to(grad.dtype))


class _Recomputed:
    """Rows that did not keep their scores: computed again, times g, slice by slice."""

    def __init__(
        self,
        live: LiveRows,
        rows: Tensor,  # (B,), among the live ones
        head: Head,
        tile_logp_grad: TileLogpGrad,
        need_hidden: bool,
    ):
        self.head, self.tile_logp_grad, self.upstream = head, tile_logp_grad, live.upstream
        grad = live.upstream.in_units[rows]
        self.places = live.places[rows]
        self.numbers = RowNumbers(live.labels[rows], live.peak[rows], live.total[rows], grad)
        # A row with g = 0 may hold NaN, and 0 times NaN is NaN.
        self.hidden = gather_rows(live.hidden, self.places, grad, head.factor_dtype, scaled=False)
        self.dhidden = None
        if need_hidden:
            self.dhidden = self.hidden.new_zeros(self.hidden.shape, dtype=head.dtype)

    def add(self, columns: slice, dweight: SliceSum | None, dbias: SliceSum | None) -> None:
        """Add what ``columns`` contribute to the gradients of hidden states, weight and bias."""
        part = self.head.weight[columns].to(self.head.factor_dtype)
        # A GPU holds the slice of all rows, so that each gradient is one product.
        held = None
        if is_gpu(part.device):
            held = empty_rows(self.hidden, len(self.hidden), len(part))
        for rows in tiles(len(self.hidden), self.head.tile_rows):
            u = empty_rows(part, rows.stop - rows.start, len(part), self.head.dtype)
            write_product(u, self.hidden[rows], part.T)
            target = None if held is None else held[rows]
            tile = self.tile_logp_grad(u, self.numbers[rows], columns, self.head, target)
            del u
            if dbias is not None:
                dbias.add(tile.sum(0, dtype=self.head.dtype))
            if held is None:
                self._add_products(rows, tile.to(part.dtype), part, dweight)
            del tile  # before the next product
        if held is not None:
            self._add_products(slice(None), held, part, dweight)

    def _add_products(
        self, rows: slice, tile: Tensor, part: Tensor, dweight: SliceSum | None
    ) -> None:
        if self.dhidden is not None:
            add_product_(self.dhidden[rows], tile, part)
        if dweight is not None:
            dweight.add_product(tile.T, self.hidden[rows])

    def write_hidden(self, target: Tensor) -> None:
        """Write the gradient of these rows' hidden states."""
        assert self.dhidden is not None
        for part in tiles(len(self.places), self.head.tile_rows):
            dhidden = self.dhidden[part]
            if self.upstream.unit is not None:
                dhidden = dhidden * self.upstream.unit
            target.index_copy_(0, self.places[part], dhidden.to(target.dtype))
