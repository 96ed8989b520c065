"""logprob_fwd: log-probability, peak and total of each row of logits, in one read of the live rows.

Rows that start at multiples of 16 bytes are read 16 bytes at a time, and a lane is a thread. Where V or a stride forbids that
(50,257 columns of 16-bit logits, a view that starts off the grid), the compiler spreads a lane over neighbouring threads: each
reads one entry at a time, and each of them rescales the lane's sum, which makes two exponentials an entry where there was one
and an eighth. Reading such a row from its first aligned entry on would make its sums run in an order that follows its address,
so that a row had other bits in another place of the batch. It is not done: whoever can should pad V to a multiple of 16 bytes.
"""

import triton
import triton.language as tl

from ..common.numerics import LN_2, exp, rounded, scaled_tanh, tree_sum

LOWEST = tl.constexpr(-3.4028234663852886e38)  # finite, so that -inf minus a peak is never NaN


@triton.jit
def score(x, inner, outer, CAPPED: tl.constexpr, ACC: tl.constexpr):
    """What the softmax is taken of: w = inner * x in nats, or with a softcap w = outer * tanh(inner * x) in bits.

    In bits one multiplication an entry less is left, and the polynomial takes the unit on. Without a softcap nats keep w exact.
    """
    return scaled_tanh(x, inner, outer, ACC) if CAPPED else inner * x.to(ACC)


@triton.jit
def power(w, CAPPED: tl.constexpr):
    """The exponential of a score."""
    return tl.exp2(w) if CAPPED else exp(w)


@triton.jit
def absorb(peak, total, w, CAPPED: tl.constexpr):  # (LANES,), (LANES,), (LANES, VEC)
    """Take a tile into each lane's running maximum and sum of exponentials: VEC + 1 exponentials, no word between threads."""
    higher = tl.maximum(peak, tl.max(w, 1))
    return higher, total * power(peak - higher, CAPPED) + tree_sum(
        power(w - higher[:, None], CAPPED)
    )


@triton.jit(do_not_specialize=["tokens", "vocabulary", "ignore_index"])
def logprob_fwd(
    logits_ptr,  # (R, T, V)
    labels_ptr,  # (M,), M = R * T
    logp_ptr,  # (M,) w[label] - log sum exp w
    peak_ptr,  # (M,) max w, in w's unit
    total_ptr,  # (M,) sum power(w - peak)
    tokens,
    vocabulary,
    stride_r: tl.int64,
    stride_t: tl.int64,
    stride_v,
    ignore_index,
    inner: tl.float64,
    outer: tl.float64,
    CAPPED: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_V: tl.constexpr,
    VEC: tl.constexpr,  # columns of a lane: 16 bytes
):
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels_ptr + row).to(tl.int64)
    if label == ignore_index:
        tl.store(logp_ptr + row, 0.0)
        tl.store(peak_ptr + row, 0.0)
        tl.store(total_ptr + row, 0.0)
        return
    inner = tl.full((), inner, ACC)
    outer = tl.full((), outer, ACC)
    row_ptr = logits_ptr + (row // tokens) * stride_r + (row % tokens) * stride_t
    LANES: tl.constexpr = BLOCK_V // VEC
    offsets = tl.arange(0, LANES)[:, None] * VEC + tl.arange(0, VEC)[None, :]
    steps = offsets.to(tl.int64) * stride_v
    block = tl.full((), BLOCK_V, tl.int64)  # times a stride it passes 2^31
    tile_ptr = row_ptr  # a scalar that moves on: a tile of pointers would live in registers
    peak = tl.full((LANES,), LOWEST, ACC)
    total = tl.zeros((LANES,), ACC)

    whole = vocabulary // BLOCK_V * BLOCK_V
    for _ in range(0, whole, BLOCK_V):
        w = score(tl.load(tile_ptr + steps), inner, outer, CAPPED, ACC)
        peak, total = absorb(peak, total, w, CAPPED)
        tile_ptr += block * stride_v
    if whole < vocabulary:
        live = whole + offsets < vocabulary
        w = score(tl.load(tile_ptr + steps, mask=live, other=0.0), inner, outer, CAPPED, ACC)
        peak, total = absorb(peak, total, tl.where(live, w, float("-inf")), CAPPED)

    top = tl.max(peak, 0)
    parts = rounded(total * power(peak - top, CAPPED))
    sums = tl.max(tree_sum(tl.reshape(parts, (1, LANES))), 0)
    place = tl.zeros((1, 1), tl.int64) + label  # no column is not read, and NaN
    own = tl.load(
        row_ptr + place * stride_v, mask=(place >= 0) & (place < vocabulary), other=float("nan")
    )
    own = tl.sum(tl.sum(score(own, inner, outer, CAPPED, ACC), 1), 0)
    below = own - top
    tl.store(logp_ptr + row, (below * LN_2 if CAPPED else below) - tl.log(sums))
    tl.store(peak_ptr + row, top)
    tl.store(
        total_ptr + row, tl.where((label >= 0) & (label < vocabulary), sums, float("nan"))
    )  # makes the gradient NaN too
