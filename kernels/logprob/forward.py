"""logprob_fwd: log-probability, peak and total of each row of logits, in one read of live rows.

Rows that start at multiples of 16 bytes are read 16 bytes at a time, and a lane is a thread.
Other rows are slower, see the comment below: pad V to a multiple of 16 bytes.
"""

import triton
import triton.language as tl

from .softmax import add_tile, is_column, join_lanes, label_logp, no_columns, transform

# Where V or a stride forbids 16-byte reads (50,257 columns of 16-bit logits, a view that starts at
# an odd address), the compiler spreads a lane over neighbouring threads. Each reads one entry at a
# time and rescales the lane's sum, which makes two exponentials for each entry where there was one
# and an eighth. It would be faster to read such a row from its first aligned entry on. But then
# the order of its sums would follow its address, and it would have other bits in another place of
# the batch.


@triton.jit(do_not_specialize=["tokens", "vocabulary", "ignore_index"])
def logprob_fwd(
    logits_ptr,  # (R, T, V)
    labels_ptr,  # (M,), M = R * T
    logp_ptr,  # (M,), log p of the label
    peak_ptr,  # (M,), max z, in z's unit; 0 if NARROW
    total_ptr,  # (M,), sum of power(z - peak)
    tokens,
    vocabulary,
    stride_r: tl.int64,
    stride_t: tl.int64,
    stride_v,
    ignore_index,
    inner: tl.float64,
    outer: tl.float64,
    tanh,  # the softcap's polynomial, () without one
    CAPPED: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_V: tl.constexpr,
    VEC: tl.constexpr,  # columns of a lane: 16 bytes
):
    """A program takes a row. Ignored rows get zeros and are not read."""
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
    peak, total = no_columns(LANES, CAPPED, ACC)

    whole = vocabulary // BLOCK_V * BLOCK_V
    for _ in range(0, whole, BLOCK_V):
        z = transform(tl.load(tile_ptr + steps), inner, outer, tanh, CAPPED, ACC)
        peak, total = add_tile(peak, total, z, CAPPED)
        tile_ptr += block * stride_v
    if whole < vocabulary:
        there = whole + offsets < vocabulary
        x = tl.load(tile_ptr + steps, mask=there, other=0.0)
        z = transform(x, inner, outer, tanh, CAPPED, ACC)
        peak, total = add_tile(peak, total, tl.where(there, z, float("-inf")), CAPPED)

    top, sums = join_lanes(peak, total, CAPPED)
    place = tl.zeros((1, 1), tl.int64) + label
    # A label that is no column is not read. Its log p is NaN, and through the total its gradient.
    x = tl.load(row_ptr + place * stride_v, mask=is_column(place, vocabulary), other=float("nan"))
    z = tl.sum(tl.sum(transform(x, inner, outer, tanh, CAPPED, ACC), 1), 0)
    tl.store(logp_ptr + row, label_logp(z, top, sums, CAPPED))
    tl.store(peak_ptr + row, top)
    tl.store(total_ptr + row, tl.where(is_column(label, vocabulary), sums, float("nan")))
