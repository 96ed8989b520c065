"""Matrix products in a wider dtype than that of their factors."""

from __future__ import annotations

import torch
from torch import Tensor

from pad_fast.device import multiplies_into_float32


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


def add_product_(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b in the dtype of ``total``, if possible without a second matrix of its size."""
    if a.dtype == b.dtype == total.dtype:
        total.addmm_(a, b)
    elif _widens(a, b, total.dtype):
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(a.to(total.dtype), b.to(total.dtype))


def factor_dtype(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which to keep a factor of many products in ``dtype``.

    It is the factor's own where the device widens while it multiplies. Elsewhere the factor is
    widened once for all products.
    """
    return tensor.dtype if multiplies_into_float32(tensor) else dtype
