"""What the listwise kernels share: the live responses of a group and their scaled rewards.

A scaled reward is x = beta * (reward - best reward), so that the best is at 0. Responses that are
not live are far below all others, at LOWEST.
"""

import triton
import triton.language as tl

from ..common.numerics import LN_2, exp

# Finite, so that the difference of two absent responses is 0 and never NaN, and so low that
# exp(LOWEST - x) is 0 for every reward that the losses take.
LOWEST = tl.constexpr(-1e30)


@triton.jit
def load_live(live_ptr, lengths_ptr, places, there):
    """Whether the responses at ``places`` count: they are ``there``, live, and have tokens.

    Without a mask all are live, and without lengths all have tokens.
    """
    if live_ptr is not None:
        there = there & tl.load(live_ptr + places, mask=there, other=0).to(tl.int1)
    if lengths_ptr is not None:
        there = there & (tl.load(lengths_ptr + places, mask=there, other=0) > 0)
    return there


@triton.jit
def load_live_bits(live_ptr, lengths_ptr, row, N: tl.constexpr):
    """The responses of a group that count, in one number: bit i is response i."""
    bits = tl.full((), (1 << N) - 1, tl.int32)
    if live_ptr is not None:
        live = tl.zeros((), tl.int32)
        for i in tl.static_range(N):
            live |= tl.load(live_ptr + row * N + i).to(tl.int32) << i
        bits &= live
    if lengths_ptr is not None:
        filled = tl.zeros((), tl.int32)
        for i in tl.static_range(N):
            filled |= (tl.load(lengths_ptr + row * N + i) > 0).to(tl.int32) << i
        bits &= filled
    return bits


@triton.jit
def is_live(live_bits, response):
    """Whether a response is live, by its bit."""
    return ((live_bits >> response) & 1) == 1


@triton.jit
def best_reward(rewards_ptr, row, live_bits, N: tl.constexpr, ACC: tl.constexpr):
    """The highest live reward of a group."""
    top = tl.full((), float("-inf"), ACC)
    for i in tl.static_range(N):
        live = is_live(live_bits, i)
        reward = tl.load(rewards_ptr + row * N + i, mask=live, other=float("-inf"))
        top = tl.maximum(top, reward.to(ACC))
    return top


@triton.jit
def scaled_reward(rewards_ptr, places, live, top, beta):
    """x of the responses at ``places``; those that are not live are not read."""
    reward = tl.load(rewards_ptr + places, mask=live, other=0.0).to(beta.dtype)
    return tl.where(live, beta * (reward - top), LOWEST)


@triton.jit
def log_add(a, b):
    """log(e^a + e^b)."""
    high = tl.maximum(a, b)
    return high + tl.log(1.0 + exp(tl.minimum(a, b) - high))


@triton.jit
def log_mixture_shares(d):
    """log P_s / M and log P_t / M from d = log P_s / P_t, where M is their mean.

    They differ by d, but to subtract it would lose the digits of the smaller where d is large.
    """
    tail = tl.log(1.0 + exp(-tl.abs(d)))
    return tl.minimum(d, 0.0) - tail + LN_2, tl.minimum(-d, 0.0) - tail + LN_2
