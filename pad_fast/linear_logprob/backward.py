"""The gradients of hidden states, weight and bias, on every device.

With u = h @ W.T + b, a row's logp_grad is S = d log p[y] / d u. The upstream gradient g is one
factor per row, so dH = g * (S @ W) and dW = S.T @ (g * H) are plain products. Rows that kept S need
only these. The others are computed again, one slice of the vocabulary after another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pad_fast.device import is_gpu
from pad_fast.linear_logprob import memory_budget
from pad_fast.linear_logprob.head import GPU_TILE_ROWS, Head, times_weight
from pad_fast.linear_logprob.matmul import add_product_, product
from pad_fast.logprob.softmax import RowNumbers
from pad_fast.logprob.torch_impl import tiles


@dataclass(frozen=True)
class Upstream:
    """The upstream gradient g of packed rows, also for products in 16 bits."""

    grad: Tensor  # (L,) in the accumulator's dtype
    # A power of two by which g is divided before float16 products: loss scaling can make g too
    # large for the range of float16, and averaging too small.
    unit: Tensor  # ()

    @classmethod
    def of(cls, grad: Tensor, total: Tensor, dtype: torch.dtype) -> Upstream:
        """From ``grad`` (L,) and the rows' totals.

        A row whose numbers are NaN has a logp_grad of 0, and passes NaN on by its g, unless that
        is 0: a loss that masks a row silences its NaN.
        """
        grad = torch.where((grad != 0) & total.isnan(), torch.nan, grad.to(total.dtype))
        if dtype != torch.float16 or not len(grad):
            return cls(grad, grad.new_ones(()))
        largest = grad.abs().nan_to_num(0, 0, 0).amax()
        return cls(grad, largest.clamp(min=torch.finfo(grad.dtype).tiny).log2().ceil().exp2())

    def times(self, packed: Tensor, dtype: torch.dtype) -> Tensor:
        """(g / unit) * H in ``dtype``, of the first rows, which ``packed`` holds."""
        return scale_rows(self.grad[: len(packed)] / self.unit, packed).to(dtype)


def scale_rows(grad: Tensor, rows: Tensor) -> Tensor:
    """grad * rows, and 0 where grad is 0 even if the row is not finite."""
    grad = grad.unsqueeze(1)
    return torch.where(grad == 0, 0, grad * rows)


@dataclass(frozen=True)
class PackedRows:
    """The live rows, gathered, and their upstream gradient."""

    hidden: Tensor  # (L, D)
    places: Tensor  # (L,), among all rows
    labels: Tensor  # (L,), as the two below
    peak: Tensor
    total: Tensor
    upstream: Upstream


@dataclass
class Gradients:
    """Tensors to write gradients to; None for one that is not needed."""

    hidden: Tensor | None  # (M, D), zeros
    weight: Tensor | None  # (V, D)
    bias: Tensor | None  # (V,)


# (a tile u (L, v) of products, its rows, its columns, the head) -> g * d log p / d u of the tile
TileLogpGrad = Callable[[Tensor, RowNumbers, slice, Head], Tensor]


def backward(
    packed: PackedRows,
    head: Head,
    logp_grad: Tensor,  # (K, V or more), what the first K rows kept
    tile_logp_grad: TileLogpGrad,
    into: Gradients,
    read_all: bool,
) -> None:
    """Write the gradients that are needed.

    ``read_all`` computes also the rows with g = 0 again: leaving them out waits for the device.
    """
    count = len(packed.places)
    kept = min(len(logp_grad), count)
    grad = packed.upstream.grad
    if into.hidden is not None:
        for part in tiles(kept, head.tile_rows):
            unscaled = times_weight(logp_grad[part, : len(head.weight)], head)
            dhidden = scale_rows(grad[part], unscaled)
            into.hidden.index_copy_(0, packed.places[part], dhidden.to(into.hidden.dtype))
    others = slice(kept, count)
    rows = others if read_all else kept + grad[others].nonzero().squeeze(-1)
    rest = _Recomputed(packed, rows, head, tile_logp_grad, into.hidden is not None)
    if rest.count or into.weight is not None or into.bias is not None:
        _add_by_slices(packed, head, logp_grad[:kept], rest, into)
    if into.hidden is not None and rest.dhidden is not None:
        places = packed.places[rows]
        for part in tiles(rest.count, head.tile_rows):
            dhidden = rest.dhidden[part].mul_(packed.upstream.unit)
            into.hidden.index_copy_(0, places[part], dhidden.to(into.hidden.dtype))


def _add_by_slices(
    packed: PackedRows, head: Head, logp_grad: Tensor, rest: _Recomputed, into: Gradients
) -> None:
    """Finish the gradients of weight and bias slice by slice, and gather dH of ``rest``."""
    upstream, kept = packed.upstream, len(logp_grad)
    factors = None
    if into.weight is not None:
        factors = upstream.times(packed.hidden[:kept], head.factor_dtype)
    grad = upstream.grad[:kept] / upstream.unit
    for columns in tiles(len(head.weight), head.tile_columns):
        targets = [None if whole is None else whole[columns] for whole in (into.weight, into.bias)]
        sums = [None if target is None else _zeros_for(target, head) for target in targets]
        if kept:
            add_weight_gradient(logp_grad[:, columns], factors, grad, *sums)
        if rest.count:
            rest.add(columns, *sums)
        for target, total in zip(targets, sums, strict=True):
            if target is not None and total is not None:
                target.copy_(total.mul_(upstream.unit))  # copies nothing where they are the same
        del sums  # before those of the next slice are made


def _zeros_for(target: Tensor, head: Head) -> Tensor:
    """Zeros in the accumulator's dtype: the target itself where it has that dtype."""
    if target.dtype == head.dtype:
        return target.zero_()
    return torch.zeros_like(target, dtype=head.dtype)


def add_weight_gradient(
    logp_grad: Tensor,  # (L, v), a slice of the vocabulary
    factors: Tensor | None,  # (L, D), g * H
    grad: Tensor,  # (L,), g
    dweight: Tensor | None,  # (v, D)
    dbias: Tensor | None,  # (v,)
) -> None:
    """dW += S.T @ (g * H) and db += S.T @ g, with S the ``logp_grad``."""
    if dweight is not None and factors is not None:
        # Rows that have to be widened are widened a few at a time.
        step = len(logp_grad) if logp_grad.dtype == factors.dtype else memory_budget.CPU_ROWS
        for rows in tiles(len(logp_grad), max(1, step)):
            add_product_(dweight, logp_grad[rows].to(factors.dtype).T, factors[rows])
    if dbias is not None:
        for rows in tiles(len(logp_grad), GPU_TILE_ROWS):
            dbias += grad[rows] @ logp_grad[rows].to(grad.dtype)


class _Recomputed:
    """Rows that did not keep their logp_grad: computed again, times g, slice by slice."""

    def __init__(
        self,
        packed: PackedRows,
        rows: slice | Tensor,
        head: Head,
        tile_logp_grad: TileLogpGrad,
        need_hidden: bool,
    ):
        self.head, self.tile_logp_grad = head, tile_logp_grad
        grad = packed.upstream.grad[rows] / packed.upstream.unit
        self.count = len(grad)
        self.numbers = RowNumbers(packed.labels[rows], packed.peak[rows], packed.total[rows], grad)
        # A row with g = 0 may hold NaN, and 0 times NaN is NaN.
        hidden = torch.where(grad.unsqueeze(1) == 0, 0, packed.hidden[rows])
        self.hidden = hidden.to(head.factor_dtype)
        self.dhidden = (
            self.hidden.new_zeros(hidden.shape, dtype=head.dtype) if need_hidden else None
        )

    def add(self, columns: slice, dweight: Tensor | None, dbias: Tensor | None) -> None:
        """Add what ``columns`` contribute to the gradients of hidden states, weight and bias."""
        part = self.head.weight[columns].to(self.head.factor_dtype)
        # A GPU holds the slice of all rows, so that the weight's gradient is one product, whose
        # sum is not read and written again for each tile.
        held = None
        if dweight is not None and is_gpu(part.device):
            held = self.hidden.new_empty(self.count, len(part))
        for rows in tiles(self.count, self.head.tile_rows):
            u = product(self.hidden[rows], part.T, self.head.dtype)
            tile = self.tile_logp_grad(u, self.numbers[rows], columns, self.head).to(part.dtype)
            del u
            if dbias is not None:
                dbias += tile.sum(0, dtype=dbias.dtype)
            if self.dhidden is not None:
                add_product_(self.dhidden[rows], tile, part)
            if held is not None:
                held[rows] = tile
            elif dweight is not None:
                add_product_(dweight, tile.T, self.hidden[rows])
            del tile  # before the next product
        if held is not None and dweight is not None:
            add_product_(dweight, held.T, self.hidden)
