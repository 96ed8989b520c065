"""The launcher: one program a group (several, for vpd of more than 128 responses), value and gradient together."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ..common.device import ACCUMULATORS, has_wide_warps, on
from .exact_jsd import preference_jsd
from .exact_kl import preference_kl
from .jsd_tables import sets_and_orders
from .list_mle import preference_vpd
from .sampled import preference_sampled
from .tuning import exact_jsd_options, exact_kl_options, list_mle_options, sampled_options


def forward(
    student: Tensor,  # (G, N) float32 or float64
    teacher: Tensor,  # (G, N), any floating dtype
    live: Tensor | None,  # (G, N) bool; None: all of them
    kind: str,
    method: str,
    beta: float,
    teacher_beta: float,
    num_samples: int,
    seed: int,
    wide: bool | None = None,  # warps of 64 threads; None: as the device has them
) -> tuple[Tensor, Tensor]:  # (G,), (G, N)
    """Loss of each group, 0 with fewer than two live responses, and its gradient in the student's rewards, 0 where not live.

    Computed in float32, or float64 for float64 students. Draws come from Philox counters, not from PyTorch's generator: the same
    seed gives other draws than the PyTorch path, the same ones on each device, and those of a group depend on its index.
    """
    groups, n = student.shape
    loss, grad = (
        student.new_empty(groups),
        torch.empty_like(student, memory_format=torch.contiguous_format),
    )
    if groups == 0 or n < 2:
        return loss.zero_(), grad.zero_()
    tensors = (
        loss,
        grad,
        student.contiguous(),
        teacher.contiguous(),
        None if live is None else live.contiguous(),
    )
    common = {
        "ACC": ACCUMULATORS[student.dtype],
        "enable_fp_fusion": True,
    }  # whatever the version's default is
    wide = has_wide_warps() if wide is None else wide
    with on(student.device):
        if kind == "vpd":
            options = list_mle_options(n, wide)
            preference_vpd[(groups, triton.cdiv(n, options["BLOCK"]))](
                *tensors, n, beta, **options, **common
            )
        elif method == "sampled":
            options = sampled_options(n, wide)
            preference_sampled[(groups,)](
                *tensors, n, num_samples, seed, beta, teacher_beta, KIND=kind, **options, **common
            )
        elif kind == "jsd":
            preference_jsd[(groups,)](
                *tensors,
                *sets_and_orders(n, student.device),
                beta,
                teacher_beta,
                **exact_jsd_options(n, wide),
                **common,
            )
        else:
            reverse = kind == "reverse_kl"
            preference_kl[(groups,)](
                *tensors, beta, teacher_beta, REVERSE=reverse, **exact_kl_options(n, wide), **common
            )
    return loss, grad
