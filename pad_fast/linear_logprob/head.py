"""The output head as products see it: its weight in slices, and rows that are gathered for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pad_fast.device import is_gpu
from pad_fast.linear_logprob.matmul import add_product_, factor_dtype, product, write_product
from pad_fast.linear_logprob.memory_budget import (
    GPU_TILE_ROWS,
    chunk_rows,
    padded,
    tile_columns,
)
from pad_fast.logprob import torch_impl as logits_torch
from pad_fast.logprob.softmax import TokenOptions, accumulator
from pad_fast.logprob.torch_impl import tiles


@dataclass(frozen=True)
class Head:
    """The output head, and how its products become log-probabilities."""

    weight: Tensor  # (V, D)
    bias: Tensor | None  # (V,)
    options: TokenOptions

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which products and sums are accumulated."""
        return accumulator(self.weight.dtype)

    @property
    def factor_dtype(self) -> torch.dtype:
        """The dtype in which factors of products are kept."""
        return factor_dtype(self.weight, self.dtype)

    @property
    def tile_rows(self) -> int:
        """Rows of a backward's tile."""
        device = self.weight.device
        if is_gpu(device):
            return GPU_TILE_ROWS
        return chunk_rows(len(self.weight), device, self.weight.dtype)

    @property
    def tile_columns(self) -> int:
        """Columns of a backward's tile."""
        if is_gpu(self.weight.device):
            return tile_columns(self.weight.shape[1])
        return logits_torch.TILE_COLUMNS

    def slices(self, columns: int) -> Iterator[tuple[slice, Tensor]]:
        """The vocabulary and the weight, slice by slice, each widened where products need it."""
        for part in tiles(len(self.weight), columns):
            yield part, self.weight[part].to(self.factor_dtype)

    def add_bias(self, u: Tensor, columns: slice) -> Tensor:
        """Add the bias of ``columns`` to a tile of products, in place."""
        return u if self.bias is None else u.add_(self.bias[columns].to(u.dtype))


def empty_rows(like: Tensor, rows: int, columns: int, dtype: torch.dtype | None = None) -> Tensor:
    """Room for (rows, columns), of which every row starts at a multiple of 128 bytes or more.

    Rows of an odd vocabulary would else be read and written number by number, and products of them
    would not be aligned.
    """
    return like.new_empty(rows, padded(columns), dtype=dtype or like.dtype)[:, :columns]


def gather_chunks(hidden: Tensor, rows: Tensor, chunk: int) -> Tensor:
    """``hidden[rows]``, and rows of zeros up to a multiple of ``chunk``."""
    gathered = hidden.new_zeros(-(-len(rows) // chunk) * chunk, hidden.shape[1])
    torch.index_select(hidden, 0, rows, out=gathered[: len(rows)])
    return gathered


def logits_of(gathered: Tensor, head: Head) -> Tensor:
    """``gathered`` (C, D) times the transposed weight (D, V), in the accumulator's dtype."""
    logits = empty_rows(gathered, len(gathered), len(head.weight), head.dtype)
    if head.factor_dtype == head.weight.dtype:
        return write_product(logits, gathered, head.weight.T)
    gathered = gathered.to(head.factor_dtype)
    for columns, part in head.slices(logits_torch.TILE_COLUMNS):
        write_product(logits[:, columns], gathered, part.T)
        del part  # before the next one is widened
    return logits


def times_weight(scores: Tensor, head: Head) -> Tensor:
    """``scores`` (L, V) times the weight (V, D), in the accumulator's dtype."""
    if head.factor_dtype == head.weight.dtype:
        return product(scores, head.weight, head.dtype)
    total = scores.new_zeros(len(scores), head.weight.shape[1], dtype=head.dtype)
    for columns, part in head.slices(logits_torch.TILE_COLUMNS):
        add_product_(total, scores[:, columns].to(part.dtype), part)
        del part  # before the next one is widened
    return total
