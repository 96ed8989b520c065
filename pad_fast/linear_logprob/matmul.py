"""Matrix products in a wider dtype than their factors: the one place that knows which device can."""

from __future__ import annotations

import torch
from torch import Tensor


def _tensor_cores(a: Tensor, b: Tensor, dtype: torch.dtype) -> bool:
    """CPUs refuse ``out_dtype`` and ROCm builds vary."""
    return a.is_cuda and torch.version.hip is None and a.dtype == b.dtype and dtype == torch.float32


def product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a @ b, accumulated in ``dtype`` and not rounded to the factors' dtype in between."""
    if a.dtype == b.dtype == dtype:
        return a @ b
    if _tensor_cores(a, b, dtype):
        return torch.mm(a, b, out_dtype=dtype)
    return a.to(dtype) @ b.to(dtype)


def add_product_(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, as :func:`product` in the dtype of ``total``, without a second matrix of its size where that can be."""
    if a.dtype == b.dtype == total.dtype:
        total.addmm_(a, b)
    elif _tensor_cores(a, b, total.dtype):
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(a.to(total.dtype), b.to(total.dtype))


def factor_dtype(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    """What factors of many products in ``dtype`` are kept in: as they are on a CUDA device, widened once and for all elsewhere."""
    return tensor.dtype if tensor.is_cuda and torch.version.hip is None else dtype
