"""Rewards as the kernels take them: x = beta * r with the best at 0, and responses that are not live far below all others.

LOWEST is finite, so that the difference of two absent responses is 0 and never NaN, and so low that exp(LOWEST - x) is 0 for
every reward that the losses take.
"""

import triton
import triton.language as tl

from ..common.numerics import LN_2, exp

LOWEST = tl.constexpr(-1e30)


@triton.jit
def living(live_ptr, places, there):
    """Which of the responses at ``places`` count: those that are there and, with a mask, are live."""
    if live_ptr is not None:
        there = there & tl.load(live_ptr + places, mask=there, other=0).to(tl.int1)
    return there


@triton.jit
def living_bits(live_ptr, row, N: tl.constexpr):
    """The live responses of a group as a bit mask: bit i is response i."""
    if live_ptr is None:
        bits = tl.full((), (1 << N) - 1, tl.int32)
    else:
        bits = tl.zeros((), tl.int32)
        for i in tl.static_range(N):
            bits |= tl.load(live_ptr + row * N + i).to(tl.int32) << i
    return bits


@triton.jit
def best(rewards_ptr, row, alive, N: tl.constexpr, ACC: tl.constexpr):
    """The highest live reward."""
    top = tl.full((), float("-inf"), ACC)
    for i in tl.static_range(N):
        live = ((alive >> i) & 1) == 1
        top = tl.maximum(
            top, tl.load(rewards_ptr + row * N + i, mask=live, other=float("-inf")).to(ACC)
        )
    return top


@triton.jit
def one(rewards_ptr, place, live, top, beta):
    """x of single responses, each by its place; a response that is not live is not read."""
    return tl.where(
        live,
        beta * (tl.load(rewards_ptr + place, mask=live, other=0.0).to(beta.dtype) - top),
        LOWEST,
    )


@triton.jit
def log_add(a, b):
    """log(e^a + e^b)."""
    high = tl.maximum(a, b)
    return high + tl.log(1.0 + exp(tl.minimum(a, b) - high))


@triton.jit
def log_shares(d):
    """log P_s / M and log P_t / M of d = log P_s / P_t; the one less d would have lost its digits where d is large."""
    tail = tl.log(1.0 + exp(-tl.abs(d)))
    return tl.minimum(d, 0.0) - tail + LN_2, tl.minimum(-d, 0.0) - tail + LN_2
