"""The output head as a product sees it: its weight in slices, packed rows, and scores times the weight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pad_fast.linear_logprob.matmul import add_product_, factor_dtype, product
from pad_fast.logprob import torch_impl as logits_torch
from pad_fast.logprob.softmax import (
    TokenOptions,
    accumulator,
)
from pad_fast.logprob.torch_impl import tiles

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


# Backward.


def times_weight(scores: Tensor, head: Head) -> Tensor:
    """S @ W of a chunk of rows, in the accumulator's dtype."""
    if head.factor_dtype == head.weight.dtype:
        return product(scores, head.weight, head.dtype)
    total = scores.new_zeros(len(scores), head.weight.shape[1], dtype=head.dtype)
    for columns, part in head.slices(logits_torch.TILE_COLUMNS):
        add_product_(total, scores[:, columns].to(part.dtype), part)
    return total
