"""preference_reduce: the sum or the mean of the losses of groups, and the number that divides it.

A mean is over the groups with two responses that count. One program reads all groups in a fixed
order and adds in float64, so that the result has the same bits from run to run.
"""

import triton
import triton.language as tl

from .primitives import load_live


@triton.jit(
    do_not_specialize=["groups", "responses"],
    do_not_specialize_on_alignment=[
        "reduced_ptr",
        "divisor_ptr",
        "loss_ptr",
        "live_ptr",
        "lengths_ptr",
    ],
)
def preference_reduce(
    reduced_ptr,  # ()
    divisor_ptr,  # (), of a mean: the number of groups that count, at least 1
    loss_ptr,  # (G,)
    live_ptr,  # (G, N) bool, or None
    lengths_ptr,  # (G, N) integers, or None
    groups,
    responses,
    MEAN: tl.constexpr,
    BLOCK_G: tl.constexpr,  # groups at a time
    BLOCK_N: tl.constexpr,  # responses, a power of two
):
    """One program. Groups that do not count have the loss 0."""
    place = tl.arange(0, BLOCK_N)
    total, count = tl.zeros((BLOCK_G,), tl.float64), tl.zeros((BLOCK_G,), tl.int32)
    for first in range(0, groups, BLOCK_G):
        row = first + tl.arange(0, BLOCK_G)
        total += tl.load(loss_ptr + row, mask=row < groups, other=0.0).to(tl.float64)
        if MEAN:
            there = (row < groups)[:, None] & (place < responses)[None, :]
            places = row.to(tl.int64)[:, None] * responses + place[None, :]
            live = load_live(live_ptr, lengths_ptr, places, there)
            count += (tl.sum(live.to(tl.int32), 1) >= 2).to(tl.int32)
    reduced = tl.sum(total, 0)
    if MEAN:
        divisor = tl.maximum(tl.sum(count, 0), 1).to(tl.float64)
        reduced = reduced / divisor
        tl.store(divisor_ptr, divisor.to(divisor_ptr.dtype.element_ty))
    tl.store(reduced_ptr, reduced.to(reduced_ptr.dtype.element_ty))
