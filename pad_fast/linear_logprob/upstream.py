"""The upstream gradient of live rows, and rows times it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pad_fast.device import is_gpu
from pad_fast.linear_logprob import memory_budget
from pad_fast.linear_logprob.memory_budget import GPU_TILE_ROWS
from pad_fast.logprob.torch_impl import tiles


@dataclass(frozen=True)
class Upstream:
    """The upstream gradient g of live rows, also for products in 16 bits."""

    grad: Tensor  # (L,) in the accumulator's dtype
    # A power of two by which g is divided before float16 products: loss scaling can make g too
    # large for the range of float16, and averaging too small. None for other dtypes: 1.
    unit: Tensor | None  # ()

    @classmethod
    def of(cls, grad: Tensor, total: Tensor, dtype: torch.dtype) -> Upstream:
        """From ``grad`` (L,) and the rows' totals.

        A row whose numbers are NaN has scores of 0, and passes NaN on by its g, unless that
        is 0: a loss that masks a row silences its NaN.
        """
        grad = torch.where((grad != 0) & total.isnan(), torch.nan, grad.to(total.dtype))
        if dtype != torch.float16 or not len(grad):
            return cls(grad, None)
        largest = grad.abs().nan_to_num(0, 0, 0).amax()
        return cls(grad, largest.clamp(min=torch.finfo(grad.dtype).tiny).log2().ceil().exp2())

    @property
    def in_units(self) -> Tensor:
        """g / unit (L,)."""
        return self.grad if self.unit is None else self.grad / self.unit

    def of_scores(self, row_scale: Tensor) -> Upstream:
        """That of the first rows' scores, whose d log p / d logits are ``row_scale`` (K,) times."""
        return Upstream(self.grad[: len(row_scale)] * row_scale, self.unit)

    def times(self, hidden: Tensor, places: Tensor, dtype: torch.dtype) -> Tensor:
        """(g / unit) * H in ``dtype``, of rows which stand at ``places`` of hidden."""
        return gather_rows(hidden, places, self.in_units, dtype, scaled=True)


def gather_rows(
    hidden: Tensor,  # (M, D)
    places: Tensor,  # (L,)
    grad: Tensor,  # (L,)
    dtype: torch.dtype,
    *,
    scaled: bool,
) -> Tensor:  # (L, D)
    """The rows at ``places``, times grad if ``scaled``, with nothing else of their size in memory.

    A row whose grad is 0 becomes 0 even if it is not finite.
    """
    found = hidden.new_empty(len(places), hidden.shape[1], dtype=dtype)
    step = GPU_TILE_ROWS if is_gpu(hidden.device) else memory_budget.CPU_ROWS
    for part in tiles(len(places), step):
        rows, factor = hidden.index_select(0, places[part]), grad[part].unsqueeze(1)
        found[part] = torch.where(factor == 0, 0, factor * rows if scaled else rows)
    return found


def scale_rows(grad: Tensor, rows: Tensor) -> Tensor:
    """grad * rows, and 0 where grad is 0 even if the row is not finite."""
    grad = grad.unsqueeze(1)
    return torch.where(grad == 0, 0, grad * rows)


def scale_rows_(rows: Tensor, grad: Tensor) -> Tensor:
    """As :func:`scale_rows`, in place."""
    grad = grad.unsqueeze(1)
    return rows.mul_(grad).masked_fill_(grad == 0, 0)
