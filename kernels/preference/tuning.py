"""Blocks, warps and registers of the listwise kernels: fixed, so that results keep their bits.

The numbers follow from the reasons below; other ones were not timed. A thread holds 4 or 8 entries
of a tile, and 32 of JSD with 8 responses. Where a warp has 64 threads, half as many warps are as
many threads. Options are worked out once for each architecture, such as "sm_120": callers leave
them as they are.
"""

from __future__ import annotations

import functools
import math

import triton

from ..common.device import limits_registers, warp_threads

PAIRS = 1024  # entries of a tile (draws, responses, responses)
MOST_DRAWS = 64  # rankings that a tile holds at most

# Registers that a thread may have on NVIDIA's GPUs: those of 512 threads on a multiprocessor, or
# all there are. Without a limit the assembler aims at more programs on a multiprocessor than
# there are registers for, and puts a number or two of each thread on a stack. Kernels without a
# limit below need more than 128 and were seen to keep to what they need. In float32 nothing then
# leaves the registers in any supported version of Triton (tools/kernel_resources.py). A float64
# takes two registers, so its losses ("wide") may have all; the largest of them spill.
REGISTERS, MOST_REGISTERS = 128, 255


def _threads(threads: int, name: str, registers: int | None = None) -> dict[str, int]:
    """``threads`` as a number of warps, and the most registers of each where that can be said."""
    options = {"num_warps": max(1, threads // warp_threads(name))}
    if registers is None or not limits_registers(name):
        return options
    return options | {"maxnreg": registers}


@functools.cache
def exact_kl_options(
    n: int, name: str, reverse: bool = False, wide: bool = False
) -> dict[str, int]:
    """Options of preference_kl for ``n`` responses: a thread takes 4 or 8 of the 2^n sets."""
    # With 12 responses a program has 512 threads, which have no more than 128 registers anyway. The
    # reverse KL of 10 would put 16 bytes of 128 registers on a stack on sm_100.
    registers = {11: MOST_REGISTERS, 12: None}.get(n, REGISTERS)
    registers = MOST_REGISTERS if (reverse and n == 10) or (wide and n < 12) else registers
    # The reverse KL of 12 would put 48 bytes of 128 registers on a stack on sm_120.
    few = n < 11 or (reverse and n == 12 and name.startswith("sm_12"))
    return {"N": n} | _threads((1 << n) // (4 if few else 8), name, registers)


@functools.cache
def exact_jsd_options(n: int, name: str, wide: bool = False) -> dict[str, int]:
    """Options of preference_jsd for ``n`` responses."""
    first, rest = math.factorial(n // 2), math.factorial(n - n // 2)
    sets, block = 4 if n < 9 else 1, triton.next_power_of_2(rest)
    threads = max(32, sets * block) if n < 9 else 256
    tile = {
        "N": n,
        "K": n // 2,
        "SETS": math.comb(n, n // 2),
        "FIRST": first,
        "REST": rest,
        "BLOCK_S": sets,
        "BLOCK_F": min({8: 32, 10: 4}.get(n, 8), triton.next_power_of_2(first)),
        "BLOCK_R": block,
        "BLOCK_N": triton.next_power_of_2(n),
    }
    return tile | _threads(threads, name, MOST_REGISTERS if n > 8 or wide else None)


@functools.cache
def list_mle_options(n: int, name: str) -> dict[str, int]:
    """Options of preference_vpd for ``n`` responses."""
    block = min(128, triton.next_power_of_2(n))
    step = min(8, block)
    threads = max(32, block * step // 8)
    return {"BLOCK": block, "STEP": step} | _threads(threads, name, MOST_REGISTERS)


@functools.cache
def sampled_options(n: int, name: str, wide: bool = False) -> dict[str, int]:
    """Options of preference_sampled for ``n`` responses."""
    block = triton.next_power_of_2(n)
    draws = min(MOST_DRAWS, max(1, PAIRS // block**2))
    threads = max(32, draws * block**2 // 8)
    registers = REGISTERS if block < 32 else None
    if wide and block <= 32:
        registers = MOST_REGISTERS
    return {"BLOCK": block, "DRAWS": draws} | _threads(threads, name, registers)


@functools.cache
def reduction_options(n: int, name: str) -> dict[str, int]:
    """Options of preference_reduce for ``n`` responses: 8 entries a thread, 256 threads."""
    block = triton.next_power_of_2(n)
    return {"BLOCK_G": max(1, 2048 // block), "BLOCK_N": block} | _threads(256, name)
