"""Rewards and lengths of responses from the log-probabilities of their tokens.

response_sums takes padded responses in one launch. Packed rows may lie in any order:
response_scatter adds each to its response with an atomic, and response_finish divides. The results
have the same bits as PyTorch's path (``pad_fast/logprob/response_op.py``), see below.
"""

import triton
import triton.language as tl

# float32 log-probabilities are rounded to multiples of STEP and added in float64. A sum below 2^53
# steps is then exact, so that no order of additions changes a bit of it, not even that of atomics.
# float64 log-probabilities are not rounded. Where they are packed, each response reads all rows and
# picks its own, so that their sum too has the same bits from run to run.
STEP = tl.constexpr(2.0**-30)
# Added and subtracted, SHIFT rounds numbers below 2^51 to integers, half to even.
SHIFT = tl.constexpr(1.5 * 2.0**52)


@triton.jit
def _on_grid(logps):
    """Round log-probabilities (BLOCK,) to the grid, as float64.

    A float32 of 2^24 steps or more is on the grid already and stays as it is, infinities too.
    """
    wide = logps.to(tl.float64)
    if logps.dtype == tl.float32:
        wide = ((wide * (1.0 / STEP) + SHIFT) - SHIFT) * STEP
    return wide


@triton.jit
def _write(rewards_ptr, lengths_ptr, response, total, count, MEAN: tl.constexpr):
    """Write a response's sum, or its mean, and its length."""
    dtype = rewards_ptr.dtype.element_ty
    reward = total.to(dtype)
    if MEAN:
        # A quotient of float32 numbers in float64 rounds to the same float32 as theirs.
        reward = (reward.to(tl.float64) / tl.maximum(count, 1).to(tl.float64)).to(dtype)
    tl.store(rewards_ptr + response, reward)
    tl.store(lengths_ptr + response, count)


@triton.jit(do_not_specialize=["rows", "ignore_index"])
def response_sums(
    logps_ptr,  # (R, T), or (M,) where PACKED
    labels_ptr,  # (R, T), or (M,) where PACKED
    ids_ptr,  # (M,), read where PACKED
    rewards_ptr,  # (R,)
    lengths_ptr,  # (R,)
    rows,  # T or M
    ignore_index,
    PACKED: tl.constexpr,
    MEAN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program takes a response. An id past the last response makes all rewards NaN."""
    response = tl.program_id(0).to(tl.int64)
    start = response * 0 if PACKED else response * rows
    columns = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float64)
    count = tl.zeros((BLOCK,), tl.int64)
    for first in range(0, rows, BLOCK):
        own = first + columns < rows
        if PACKED:
            ids = tl.load(ids_ptr + first + columns, mask=own, other=-1)
            own &= ids == response
            total = tl.where(ids >= tl.num_programs(0), float("nan"), total)
        places = start + first + columns
        total += _on_grid(tl.load(logps_ptr + places, mask=own, other=0.0))
        labels = tl.load(labels_ptr + places, mask=own, other=0)
        count += (own & (labels != ignore_index)).to(tl.int64)
    _write(rewards_ptr, lengths_ptr, response, tl.sum(total, 0), tl.sum(count, 0), MEAN)


@triton.jit(do_not_specialize=["rows", "responses", "ignore_index"])
def response_scatter(
    logps_ptr,  # (M,)
    labels_ptr,  # (M,)
    ids_ptr,  # (M,)
    totals_ptr,  # (R + 1,) float64, zeros before
    counts_ptr,  # (R,) int32, zeros before
    rows,
    responses,
    ignore_index,
    BLOCK: tl.constexpr,
):
    """A program takes BLOCK rows. A negative id belongs to no response.

    An id past the last response makes ``totals[R]`` NaN.
    """
    rows_here = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    ids = tl.load(ids_ptr + rows_here, mask=rows_here < rows, other=-1).to(tl.int64)
    own = (ids >= 0) & (ids < responses)
    logps = _on_grid(tl.load(logps_ptr + rows_here, mask=own, other=0.0))
    labels = tl.load(labels_ptr + rows_here, mask=own, other=0)
    tl.atomic_add(totals_ptr + ids, logps, mask=own, sem="relaxed")
    tl.atomic_add(counts_ptr + ids, 1, mask=own & (labels != ignore_index), sem="relaxed")
    tl.store(totals_ptr + responses + ids * 0, float("nan"), mask=ids >= responses)


@triton.jit(do_not_specialize=["responses"])
def response_finish(
    totals_ptr,  # (R + 1,)
    counts_ptr,  # (R,)
    rewards_ptr,  # (R,)
    lengths_ptr,  # (R,)
    responses,
    MEAN: tl.constexpr,
):
    """A program takes a response; ``totals[R]`` is 0, or NaN where an id was past the last."""
    response = tl.program_id(0).to(tl.int64)
    total = tl.load(totals_ptr + response) + tl.load(totals_ptr + responses)
    count = tl.load(counts_ptr + response).to(tl.int64)
    _write(rewards_ptr, lengths_ptr, response, total, count, MEAN)
