"""response_sums, response_scatter, response_finish: rewards and lengths of responses from the log-probabilities of their tokens.

float32 log-probabilities are rounded to the grid of STEP and added in float64. Every sum below 2^53 steps is then exact, so that
no order of additions, not that of atomics either, changes a bit of it: the results are those of PyTorch's path. Padded responses
take one launch. Packed ones may lie in any order: each token is added to its response by an atomic of float64, which sm_80 and
gfx942 have, and a second launch divides. float64 log-probabilities are not rounded; packed, each response then reads all rows and
picks its own, so that their sum too has the same bits from run to run.
"""

import triton
import triton.language as tl

STEP = tl.constexpr(2.0**-30)
SHIFT = tl.constexpr(
    1.5 * 2.0**52
)  # added and taken away, it rounds numbers below 2^51 to whole ones, half to even


@triton.jit
def _on_grid(logps):
    """(BLOCK,) -> float64. float32 of 2^24 steps and more is a multiple of them: it passes as it is, infinities too."""
    wide = logps.to(tl.float64)
    if logps.dtype == tl.float32:
        wide = ((wide * (1.0 / STEP) + SHIFT) - SHIFT) * STEP
    return wide


@triton.jit
def _write(rewards_ptr, lengths_ptr, response, total, count, MEAN: tl.constexpr):
    """The sum, rounded, then over the length: in float64, which rounds a float32 quotient like float32 does."""
    reward = total.to(rewards_ptr.dtype.element_ty)
    if MEAN:
        reward = (reward.to(tl.float64) / tl.maximum(count, 1).to(tl.float64)).to(
            rewards_ptr.dtype.element_ty
        )
    tl.store(rewards_ptr + response, reward)
    tl.store(lengths_ptr + response, count)


@triton.jit(do_not_specialize=["rows", "ignore_index"])
def response_sums(
    logps_ptr,  # (R, T), or (M,) where PACKED
    labels_ptr,  # as logps
    ids_ptr,  # (M,)
    rewards_ptr,  # (R,)
    lengths_ptr,  # (R,)
    rows,  # T or M
    ignore_index,
    PACKED: tl.constexpr,
    MEAN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a response; NaN for all of them where an id is past the last."""
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
        count += (own & (tl.load(labels_ptr + places, mask=own, other=0) != ignore_index)).to(
            tl.int64
        )
    _write(rewards_ptr, lengths_ptr, response, tl.sum(total, 0), tl.sum(count, 0), MEAN)


@triton.jit(do_not_specialize=["rows", "responses", "ignore_index"])
def response_scatter(
    logps_ptr,  # (M,)
    labels_ptr,  # (M,)
    ids_ptr,  # (M,)
    totals_ptr,  # (R + 1,) float64, zeros
    counts_ptr,  # (R,) int32, zeros
    rows,
    responses,
    ignore_index,
    BLOCK: tl.constexpr,
):
    """One program a block of rows. A row of no response is left out; an id past the last makes ``totals[R]`` NaN."""
    rows_here = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = rows_here < rows
    ids = tl.load(ids_ptr + rows_here, mask=live, other=-1).to(tl.int64)
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
    """One program a response."""
    response = tl.program_id(0).to(tl.int64)
    total = tl.load(totals_ptr + response) + tl.load(totals_ptr + responses)
    _write(
        rewards_ptr, lengths_ptr, response, total, tl.load(counts_ptr + response).to(tl.int64), MEAN
    )
