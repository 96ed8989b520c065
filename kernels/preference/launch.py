"""The launcher of the listwise losses: value and gradient by one launch, one program a group.

ListMLE of more than 128 responses takes several programs a group.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from ..common.device import ACCUMULATORS, has_wide_warps, on
from .exact_jsd import preference_jsd
from .exact_kl import preference_kl
from .jsd_tables import sets_and_orders
from .list_mle import preference_vpd
from .sampled_rankings import preference_sampled
from .tuning import exact_jsd_options, exact_kl_options, list_mle_options, sampled_options


def forward(
    student: Tensor,  # (G, N) float32 or float64
    teacher: Tensor,  # (G, N), any floating dtype
    live: Tensor | None,  # (G, N) bool; None: all of them
    kind: str,
    method: str,
    options: Any,  # with beta, teacher_beta, num_samples and seed
    wide: bool | None = None,  # warps of 64 threads; None: as the device has them
) -> tuple[Tensor, Tensor]:  # (G,), (G, N)
    """The losses of groups and their gradient in the student's rewards.

    The loss is 0 for a group with fewer than two live responses; the gradient is 0 where not live.
    Both are computed in float32, or in float64 for float64 students. Rankings are drawn by Philox
    counters: a seed gives the same ones on each device, but other ones than PyTorch's generator,
    and those of a group depend on its index.
    """
    groups, n = student.shape
    loss = student.new_empty(groups)
    grad = torch.empty_like(student, memory_format=torch.contiguous_format)
    if groups == 0 or n < 2:
        return loss.zero_(), grad.zero_()
    inputs = (student.contiguous(), teacher.contiguous())
    tensors = (loss, grad, *inputs, None if live is None else live.contiguous())
    betas = (options.beta, options.teacher_beta)
    # Versions of Triton have different defaults of enable_fp_fusion.
    common = {"ACC": ACCUMULATORS[student.dtype], "enable_fp_fusion": True}
    wide = has_wide_warps() if wide is None else wide
    with on(student.device):
        if kind == "vpd":
            common |= list_mle_options(n, wide)
            grid = (groups, triton.cdiv(n, common["BLOCK"]))
            preference_vpd[grid](*tensors, n, options.beta, **common)
        elif method == "sampled":
            draws = (options.num_samples, options.seed)
            common |= sampled_options(n, wide)
            preference_sampled[(groups,)](*tensors, n, *draws, *betas, KIND=kind, **common)
        elif kind == "jsd":
            tables = sets_and_orders(n, student.device)
            common |= exact_jsd_options(n, wide)
            preference_jsd[(groups,)](*tensors, *tables, *betas, **common)
        else:
            common |= exact_kl_options(n, wide)
            preference_kl[(groups,)](*tensors, *betas, REVERSE=kind == "reverse_kl", **common)
    return loss, grad
