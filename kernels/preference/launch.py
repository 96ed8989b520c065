"""The launcher: one program a group (several, for vpd of more than 128 responses), value and gradient together.

Tiles, warps and registers are reasoned and fixed, never tried out at run time, so that the bits are the same. A thread holds 4 or 8
entries of a tile, 32 of JSD of 8. On AMD, whose warps have 64 threads, half as many warps are as many threads. None was timed.

Left alone, NVIDIA's assembler aims at more programs a multiprocessor than there are registers for, and puts a number or two of each
thread on a stack for it. So most launches say how many registers a thread may have: 128, those of 512 threads a multiprocessor, or
all that there are. The others need more than 128, and were seen to keep to what they need. In float32 nothing then leaves the registers
(tools/kernel_resources.py), in any supported version of Triton; float64 takes two for each number, and spills.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
from torch import Tensor

from ..common.device import ACCUMULATORS, has_wide_warps, on
from .exact_jsd import preference_jsd
from .exact_kl import preference_kl
from .jsd_tables import halves
from .list_mle import preference_vpd
from .sampled import preference_sampled

PAIRS = 1024  # entries of a tile (draws, responses, responses)
MOST_DRAWS = 64  # of a tile
REGISTERS, MOST_REGISTERS = 128, 255  # of a thread on NVIDIA's chips


def _threads(threads: int, wide: bool, registers: int | None = None) -> dict[str, int]:
    """``threads`` in warps; ``wide``: AMD's, of 64. ``registers``: the most of a thread; AMD's compiler takes no such number."""
    if wide or registers is None:
        return {"num_warps": max(1, threads // (64 if wide else 32))}
    return {"num_warps": max(1, threads // 32), "maxnreg": registers}


def lattice_options(n: int, wide: bool) -> dict[str, int]:
    registers = {11: MOST_REGISTERS, 12: None}.get(
        n, REGISTERS
    )  # 512 threads of 12 have no more than 128 as it is
    return {"N": n} | _threads((1 << n) // (4 if n < 11 else 8), wide, registers)


def halves_options(n: int, wide: bool) -> dict[str, int]:
    first, rest = math.factorial(n // 2), math.factorial(n - n // 2)
    sets, block = 4 if n < 9 else 1, triton.next_power_of_2(rest)
    threads = max(32, sets * block) if n < 9 else 256
    return {
        "N": n, "K": n // 2, "SETS": math.comb(n, n // 2), "FIRST": first, "REST": rest,
        "BLOCK_S": sets, "BLOCK_F": min({8: 32, 10: 4}.get(n, 8), triton.next_power_of_2(first)), "BLOCK_R": block,
        "BLOCK_N": triton.next_power_of_2(n),
    } | _threads(threads, wide, MOST_REGISTERS if n > 8 else None)  # fmt: skip


def ranking_options(n: int, wide: bool) -> dict[str, int]:
    block = min(128, triton.next_power_of_2(n))
    step = min(8, block)
    return {"BLOCK": block, "STEP": step} | _threads(max(32, block * step // 8), wide)


def sampled_options(n: int, wide: bool) -> dict[str, int]:
    block = triton.next_power_of_2(n)
    draws = min(MOST_DRAWS, max(1, PAIRS // block**2))
    return {"BLOCK": block, "DRAWS": draws} | _threads(
        max(32, draws * block**2 // 8), wide, REGISTERS if block < 32 else None
    )


def forward(
    student: Tensor,  # (G, N) float32 or float64
    teacher: Tensor,  # (G, N), any floating dtype
    live: Tensor | None,  # (G, N) bool; None: all of them
    kind: str,
    method: str,
    options: Any,  # beta, teacher_beta, num_samples, seed
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
    betas = (options.beta, options.teacher_beta)
    with on(student.device):
        if kind == "vpd":
            tile = ranking_options(n, wide)
            preference_vpd[(groups, triton.cdiv(n, tile["BLOCK"]))](
                *tensors, n, options.beta, **tile, **common
            )
        elif method == "sampled":
            tile = sampled_options(n, wide)
            preference_sampled[(groups,)](
                *tensors, n, options.num_samples, options.seed, *betas, KIND=kind, **tile, **common
            )
        elif kind == "jsd":
            preference_jsd[(groups,)](
                *tensors,
                *halves(n, student.device),
                *betas,
                **halves_options(n, wide),
                **common,
            )
        else:
            reverse = kind == "reverse_kl"
            preference_kl[(groups,)](
                *tensors, *betas, REVERSE=reverse, **lattice_options(n, wide), **common
            )
    return loss, grad
