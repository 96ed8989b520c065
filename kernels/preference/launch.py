"""The launchers of the listwise losses.

Masks, scaling, value and gradient are one launch, with a program for each group; ListMLE of more
than 128 responses takes several programs a group. A sum or mean over groups is another launch.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from ..common.device import ACCUMULATORS, architecture, on
from .exact_jsd import preference_jsd
from .exact_kl import preference_kl
from .jsd_tables import sets_and_orders
from .list_mle import preference_vpd
from .reduction import preference_reduce
from .sampled_rankings import preference_sampled
from .tuning import (
    exact_jsd_options,
    exact_kl_options,
    list_mle_options,
    reduction_options,
    sampled_options,
)


def forward(
    student: Tensor,  # (G, N) float32 or float64
    teacher: Tensor,  # (G, N), any floating dtype
    live: Tensor | None,  # (G, N) bool; None: all of them
    kind: str,
    method: str,
    options: Any,  # with beta, teacher_beta, num_samples and seed
    name: str | None = None,  # the architecture's; None: that of the device
    lengths: Tensor | None = None,  # (G, N) integers; None: all have tokens
) -> tuple[Tensor, Tensor]:  # (G,), (G, N)
    """The losses of groups and their gradient in the student's rewards.

    A response counts if it is live and has tokens. The loss is 0 for a group with fewer than two
    that count; the gradient is 0 where a response does not. Both are computed in float32, or in
    float64 for float64 students. Rankings are drawn by Philox counters, on each device the same
    ones by a seed and a group's index, but other ones than PyTorch's generator.
    """
    groups, n = student.shape
    loss = student.new_empty(groups)
    grad = torch.empty_like(student, memory_format=torch.contiguous_format)
    if groups == 0 or n < 2:
        return loss.zero_(), grad.zero_()
    if kind != "vpd":  # which orders by the teacher's digits; others round to ACC as they load
        teacher = teacher.to(student.dtype)  # so that a kernel is compiled once for all teachers
    inputs = (student.contiguous(), teacher.contiguous())
    tensors = (loss, grad, *inputs, *_contiguous(live, lengths))
    betas = (options.beta, options.teacher_beta)
    # Versions of Triton have different defaults of enable_fp_fusion.
    common = {"ACC": ACCUMULATORS[student.dtype], "enable_fp_fusion": True}
    name = architecture(student.device) if name is None else name
    wide = student.dtype == torch.float64
    with on(student.device):
        if kind == "vpd":
            common |= list_mle_options(n, name)
            grid = (groups, triton.cdiv(n, common["BLOCK"]))
            preference_vpd[grid](*tensors, n, options.beta, **common)
        elif method == "sampled":
            draws = (options.num_samples, options.seed)
            common |= sampled_options(n, name, wide)
            preference_sampled[(groups,)](*tensors, n, *draws, *betas, KIND=kind, **common)
        elif kind == "jsd":
            tables = sets_and_orders(n, student.device)
            common |= exact_jsd_options(n, name, wide)
            preference_jsd[(groups,)](*tensors, *tables, *betas, **common)
        else:
            reverse = kind == "reverse_kl"
            common |= exact_kl_options(n, name, reverse, wide)
            preference_kl[(groups,)](*tensors, *betas, REVERSE=reverse, **common)
    return loss, grad


def reduce(
    loss: Tensor,  # (G,)
    live: Tensor | None,  # (G, N) bool
    lengths: Tensor | None,  # (G, N)
    responses: int,
    mean: bool,
    name: str | None = None,  # as in :func:`forward`
) -> tuple[Tensor, Tensor]:  # () and, for a mean, (), else (0,)
    """The sum of the losses, or their mean over groups with two responses that count.

    The second result is what divides a mean, at least 1.
    """
    reduced, divisor = loss.new_empty(()), loss.new_empty(() if mean else 0)
    options = reduction_options(responses, architecture(loss.device) if name is None else name)
    with on(loss.device):
        preference_reduce[(1,)](
            reduced,
            divisor,
            loss,
            *_contiguous(live, lengths),
            len(loss),
            responses,
            MEAN=mean,
            enable_fp_fusion=True,
            **options,
        )
    return reduced, divisor


def _contiguous(*masks: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if mask is None else mask.contiguous() for mask in masks)
