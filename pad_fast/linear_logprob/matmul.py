"""Matrix products in a wider dtype than that of their factors."""

from __future__ import annotations

import torch
from torch import Tensor

from pad_fast.device import multiplies_into_float32
from pad_fast.logprob.softmax import accumulator

# Entries of a product that a GPU's library adds up in one piece: 256 tiles of 128 x 128.
ROUNDED_ONCE = 1 << 22


def _widens(a: Tensor, b: Tensor, dtype: torch.dtype) -> bool:
    """Whether the device's product of ``a`` and ``b`` can be kept in ``dtype``."""
    return multiplies_into_float32(a) and a.dtype == b.dtype and dtype == torch.float32


def product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a @ b, accumulated in ``dtype`` and never rounded to the dtype of the factors."""
    if a.dtype == b.dtype == dtype:
        return a @ b
    if _widens(a, b, dtype):
        return torch.mm(a, b, out_dtype=dtype)
    return a.to(dtype) @ b.to(dtype)


def write_product(target: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """target = a @ b in the dtype of ``target``, which is returned."""
    if a.dtype == b.dtype == target.dtype:
        return torch.mm(a, b, out=target)
    if _widens(a, b, target.dtype):
        return torch.mm(a, b, out_dtype=target.dtype, out=target)
    return torch.mm(a.to(target.dtype), b.to(target.dtype), out=target)


def add_product_(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b in the dtype of ``total``, if possible without a second matrix of its size."""
    if a.dtype == b.dtype == total.dtype:
        total.addmm_(a, b)
    elif _widens(a, b, total.dtype):
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(a.to(total.dtype), b.to(total.dtype))


def rounds_once(target: Tensor, a: Tensor, b: Tensor) -> bool:
    """Whether a @ b, written to ``target``, is the product in float32 or wider, rounded once.

    A GPU's library multiplies bfloat16 into float32 and rounds what it writes. Only where the
    result is too small to keep the GPU busy may it add up parts that are rounded already.
    """
    if a.dtype == b.dtype == target.dtype == accumulator(target.dtype):
        return True
    large = target.numel() >= ROUNDED_ONCE
    return large and target.dtype == torch.bfloat16 and _widens(a, b, torch.float32)


class SliceSum:
    """A sum of products, written to ``target`` in the end.

    Its first term is written and not added, so that nothing is zeroed, unless it goes on from a
    ``total``, which is added to in place.
    """

    def __init__(self, target: Tensor, dtype: torch.dtype, total: Tensor | None = None):
        self.target, self.dtype, self.total = target, dtype, total

    def add_product(self, a: Tensor, b: Tensor) -> None:
        """Add a @ b."""
        if self.total is not None:
            add_product_(self.total, a, b)
        elif self.target.dtype == self.dtype:
            self.total = write_product(self.target, a, b)
        else:
            self.total = product(a, b, self.dtype)

    def add(self, term: Tensor) -> None:
        """Add a term of the target's shape."""
        self.total = term if self.total is None else self.total.add_(term)

    def finish(self, unit: Tensor | None) -> None:
        """Write the sum times ``unit``."""
        if self.total is None:
            self.target.zero_()
        elif unit is not None:
            torch.mul(self.total, unit, out=self.target)
        elif self.total is not self.target:
            self.target.copy_(self.total)


def factor_dtype(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which to keep a factor of many products in ``dtype``.

    It is the factor's own where the device widens while it multiplies. Elsewhere the factor is
    widened once for all products.
    """
    return tensor.dtype if multiplies_into_float32(tensor) else dtype
