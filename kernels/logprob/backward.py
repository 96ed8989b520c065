"""logprob_bwd: the gradient of the logits in one read and one write."""

import triton
import triton.language as tl

from .softmax import logp_grad, steepest_slope


@triton.jit(do_not_specialize=["tokens", "vocabulary", "ignore_index"])
def logprob_bwd(
    dlogits_ptr,  # (R, T, V), may be logits_ptr
    logits_ptr,  # (R, T, V)
    grad_ptr,  # (M,), M = R * T
    labels_ptr,  # (M,)
    peak_ptr,  # (M,)
    total_ptr,  # (M,)
    tokens,
    vocabulary,
    dstride_r: tl.int64,
    dstride_t: tl.int64,
    dstride_v,
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
    VEC: tl.constexpr,
    CHUNK: tl.constexpr,  # columns of a program, a multiple of BLOCK_V
    AGAIN: tl.constexpr,  # whether the logits are not those of the forward, bit for bit
):
    """A program takes CHUNK columns of a row. Rows without a gradient are zeroed and not read."""
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * CHUNK
    last = tl.minimum(first + CHUNK, vocabulary)
    whole = first + (last - first) // BLOCK_V * BLOCK_V
    offsets = tl.arange(0, BLOCK_V // VEC)[:, None] * VEC + tl.arange(0, VEC)[None, :]
    steps, dsteps = offsets.to(tl.int64) * stride_v, offsets.to(tl.int64) * dstride_v
    block = tl.full((), BLOCK_V, tl.int64)  # times a stride it passes 2^31
    row_r, row_t = row // tokens, row % tokens
    out_ptr = dlogits_ptr + row_r * dstride_r + row_t * dstride_t + first.to(tl.int64) * dstride_v
    label = tl.load(labels_ptr + row).to(tl.int64)
    grad = tl.load(grad_ptr + row).to(ACC)

    if (label == ignore_index) | (grad == 0.0):
        zeros = tl.zeros(offsets.shape, dlogits_ptr.dtype.element_ty)
        for _ in range(first, whole, BLOCK_V):
            tl.store(out_ptr + dsteps, zeros)
            out_ptr += block * dstride_v
        if whole < last:
            tl.store(out_ptr + dsteps, zeros, mask=whole + offsets < last)
        return

    inner, outer = tl.full((), inner, ACC), tl.full((), outer, ACC)
    scale = grad * steepest_slope(inner, outer, CAPPED)
    total = tl.load(total_ptr + row)
    share = scale / total  # NaN for a label that is no column
    peak = tl.load(peak_ptr + row)
    label = label.to(tl.int32)  # 64-bit comparisons would double the registers
    tile_ptr = logits_ptr + row_r * stride_r + row_t * stride_t + first.to(tl.int64) * stride_v
    for start in range(first, whole, BLOCK_V):
        x = tl.load(tile_ptr + steps)
        place = label - start
        d = logp_grad(
            x, offsets, place, scale, share, peak, total, inner, outer, tanh, CAPPED, ACC, AGAIN
        )
        tl.store(out_ptr + dsteps, d.to(dlogits_ptr.dtype.element_ty))
        tile_ptr += block * stride_v
        out_ptr += block * dstride_v
    if whole < last:
        there = whole + offsets < last
        x = tl.load(tile_ptr + steps, mask=there, other=0.0)
        place = label - whole
        d = logp_grad(
            x, offsets, place, scale, share, peak, total, inner, outer, tanh, CAPPED, ACC, AGAIN
        )
        tl.store(out_ptr + dsteps, d.to(dlogits_ptr.dtype.element_ty), mask=there)
