"""The backward of hidden states times the output head, on every device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pad_fast.linear_logprob import memory_budget
from pad_fast.linear_logprob.head import GPU_COLUMNS, GPU_TILE_ROWS, Head, times_weight
from pad_fast.linear_logprob.matmul import add_product_, product
from pad_fast.linear_logprob.memory_budget import chunk_rows
from pad_fast.logprob import torch_impl as logits_torch
from pad_fast.logprob.torch_impl import tiles


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
            dlive = scale_rows(
                upstream.grad[part], times_weight(scores[part, : len(head.weight)], head)
            )
            into.hidden.index_copy_(0, rows[part], dlive.to(into.hidden.dtype))
    others = slice(kept, len(rows))
    index = None if read_all else kept + upstream.grad[others].nonzero().squeeze(-1)
    rest = _Recomputed(
        upstream,
        live,
        others if index is None else index,
        numbers,
        head,
        into.hidden is not None,
        again,
        tile,
    )
    if rest.count or into.weight is not None or into.bias is not None:
        _walk_vocabulary(upstream, live[:kept], head, scores[:kept], into, rest)
    if into.hidden is not None and rest.dlive is not None:
        for part in tiles(rest.count, tile):
            where = rows[others if index is None else index][part]
            into.hidden.index_copy_(
                0, where, rest.dlive[part].mul_(upstream.unit).to(into.hidden.dtype)
            )


def _walk_vocabulary(
    upstream: Upstream, kept: Tensor, head: Head, scores: Tensor, into: Gradients, rest: _Recomputed
) -> None:
    """Finish the gradients of weight and bias a slice at a time, and the rest's of hidden states on the way."""
    factors = upstream.times(kept, head.factor_dtype) if into.weight is not None else None
    grad = upstream.grad[: len(kept)] / upstream.unit
    for columns in tiles(
        len(head.weight), GPU_COLUMNS if kept.is_cuda else logits_torch.TILE_COLUMNS
    ):
        _finish_slice(columns, upstream, factors, grad, head, scores, into, rest)


def _finish_slice(
    columns: slice,
    upstream: Upstream,
    factors: Tensor | None,
    grad: Tensor,
    head: Head,
    scores: Tensor,
    into: Gradients,
    rest: _Recomputed,
) -> None:
    """Sums are taken in place where the gradient is of their dtype; others are gone before those of the next slice are made."""
    targets = [None if whole is None else whole[columns] for whole in (into.weight, into.bias)]
    sums = [
        None
        if to is None
        else to.zero_()
        if to.dtype == head.dtype
        else torch.zeros_like(to, dtype=head.dtype)
        for to in targets
    ]
    if len(scores):
        add_weight_gradient(scores[:, columns], factors, grad, *sums)
    if rest.count:
        rest.add(columns, *sums)
    for target, total in zip(targets, sums, strict=True):
        if target is not None and total is not None:
            target.copy_(total.mul_(upstream.unit))  # nothing is copied onto itself


def add_weight_gradient(
    scores: Tensor,
    factors: Tensor | None,
    grad: Tensor,
    dweight: Tensor | None,
    dbias: Tensor | None,
) -> None:
    """Of a slice of the vocabulary: dW += S^T @ (g * H), with ``factors`` g * H, and db += S^T @ g."""
    if dweight is not None and factors is not None:
        for rows in tiles(
            len(scores),
            max(1, len(scores)) if scores.dtype == factors.dtype else memory_budget.CPU_ROWS,
        ):
            add_product_(dweight, scores[rows].to(factors.dtype).T, factors[rows])
    if dbias is not None:
        for rows in tiles(len(scores), GPU_TILE_ROWS):
            dbias += grad[rows] @ scores[rows].to(grad.dtype)


class _Recomputed:
    """Rows that did not keep their scores. They are computed again, times g, for one slice of the vocabulary after another."""

    def __init__(
        self,
        upstream: Upstream,
        live: Tensor,
        rows,
        numbers,
        head: Head,
        need_hidden: bool,
        again: TileScores,
        tile: int,
    ):
        self.head, self.again, self.tile = head, again, tile
        self.grad = upstream.grad[rows] / upstream.unit
        self.count = len(self.grad)
        self.numbers = tuple(number[rows] for number in numbers)
        self.live = torch.where(self.grad.unsqueeze(1) == 0, 0, live[rows]).to(
            head.factor_dtype
        )  # 0 times NaN is NaN
        self.dlive = self.live.new_zeros(self.live.shape, dtype=head.dtype) if need_hidden else None

    def add(self, columns: slice, dweight: Tensor | None, dbias: Tensor | None) -> None:
        part = self.head.weight[columns].to(self.head.factor_dtype)
        # On a GPU all rows' scores are held, so that the weight's slice is one product: its sum is not read and written again.
        held = (
            self.live.new_empty(self.count, len(part))
            if self.live.is_cuda and dweight is not None
            else None
        )
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
