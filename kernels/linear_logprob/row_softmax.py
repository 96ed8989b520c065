"""linear_logprob_rows: the softmax of each row of a chunk of logits, and d log p / d logits.

A library's matrix product has written the logits before. What the softmax computes is in
``kernels/logprob/softmax.py``.
"""

import triton
import triton.language as tl

from ..logprob.softmax import (
    add_tile,
    is_column,
    join_lanes,
    label_logp,
    logp_grad,
    no_columns,
    steepest_slope,
    transform,
)


@triton.jit
def _load_tile(tile_ptr, bias_ptr, offsets, there, HAS_BIAS: tl.constexpr, MASKED: tl.constexpr):
    """A tile of logits with its bias, in the dtype of the logits."""
    if MASKED:
        x = tl.load(tile_ptr + offsets, mask=there, other=0.0)
        if HAS_BIAS:
            x += tl.load(bias_ptr + offsets, mask=there, other=0.0).to(x.dtype)
    else:
        x = tl.load(tile_ptr + offsets)
        if HAS_BIAS:
            x += tl.load(bias_ptr + offsets).to(x.dtype)
    return x


@triton.jit
def _sum_row(
    row_ptr,
    bias_ptr,
    offsets,
    vocabulary,
    inner,
    outer,
    tanh,
    HAS_BIAS: tl.constexpr,
    CAPPED: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """The maximum and the sum of exponentials of a row: whole tiles, then the tail."""
    whole = vocabulary // BLOCK_V * BLOCK_V
    there = whole + offsets < vocabulary
    peak, total = no_columns(offsets.shape[0], CAPPED, ACC)
    for start in range(0, whole, BLOCK_V):
        x = _load_tile(row_ptr + start, bias_ptr + start, offsets, there, HAS_BIAS, False)
        z = transform(x, inner, outer, tanh, CAPPED, ACC)
        peak, total = add_tile(peak, total, z, CAPPED)
    if whole < vocabulary:
        x = _load_tile(row_ptr + whole, bias_ptr + whole, offsets, there, HAS_BIAS, True)
        z = transform(x, inner, outer, tanh, CAPPED, ACC)
        peak, total = add_tile(peak, total, tl.where(there, z, float("-inf")), CAPPED)
    return join_lanes(peak, total, CAPPED)


@triton.jit
def _label_logits(
    row_ptr,
    bias_ptr,
    label,
    vocabulary,
    inner,
    outer,
    tanh,
    HAS_BIAS: tl.constexpr,
    CAPPED: tl.constexpr,
    ACC: tl.constexpr,
):
    """The label's z; NaN, and nothing read, for a label that is no column."""
    place = tl.zeros((1, 1), tl.int64) + label
    inside = is_column(place, vocabulary)
    x = tl.load(row_ptr + place, mask=inside, other=float("nan"))
    if HAS_BIAS:
        x += tl.load(bias_ptr + place, mask=inside, other=0.0).to(x.dtype)
    return tl.sum(tl.sum(transform(x, inner, outer, tanh, CAPPED, ACC), 1), 0)


@triton.jit
def _write_zeros(out_ptr, offsets, vocabulary, BLOCK_V: tl.constexpr):
    """Zeros in a row."""
    whole = vocabulary // BLOCK_V * BLOCK_V
    zeros = tl.zeros(offsets.shape, out_ptr.dtype.element_ty)
    for start in range(0, whole, BLOCK_V):
        tl.store(out_ptr + start + offsets, zeros)
    tl.store(out_ptr + whole + offsets, zeros, mask=whole + offsets < vocabulary)


@triton.jit
def _write_grad(
    out_ptr,
    row_ptr,
    bias_ptr,
    offsets,
    vocabulary,
    label,
    peak,
    total,
    inner,
    outer,
    tanh,
    HAS_BIAS: tl.constexpr,
    CAPPED: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """d log p / d logits of a row: the tail, then whole tiles from the last to the first.

    So it begins with the logits that :func:`_sum_row` has left in the second-level cache.
    """
    whole = vocabulary // BLOCK_V * BLOCK_V
    there = whole + offsets < vocabulary
    dtype = out_ptr.dtype.element_ty
    scale = steepest_slope(inner, outer, CAPPED)
    share = scale / total
    place = label.to(tl.int32)  # 64-bit comparisons would double the registers
    if whole < vocabulary:
        x = _load_tile(row_ptr + whole, bias_ptr + whole, offsets, there, HAS_BIAS, True)
        own_place = place - whole
        d = logp_grad(
            x, offsets, own_place, scale, share, peak, total, inner, outer, tanh, CAPPED, ACC
        )
        tl.store(out_ptr + whole + offsets, d.to(dtype), mask=there)
    for back in range(BLOCK_V, whole + BLOCK_V, BLOCK_V):
        start = whole - back
        x = _load_tile(row_ptr + start, bias_ptr + start, offsets, there, HAS_BIAS, False)
        own_place = place - start
        d = logp_grad(
            x, offsets, own_place, scale, share, peak, total, inner, outer, tanh, CAPPED, ACC
        )
        tl.store(out_ptr + start + offsets, d.to(dtype))


@triton.jit(do_not_specialize=["vocabulary"])
def linear_logprob_rows(
    logits_ptr,  # (C, V), float32 or wider, contiguous columns
    bias_ptr,  # (V,)
    labels_ptr,  # (C,)
    logp_ptr,  # (C,), log p of the label
    peak_ptr,  # (C,), max z, in z's unit; 0 if NARROW
    total_ptr,  # (C,), sum of power(z - peak)
    logp_grad_ptr,  # (C, V), d log p / d logits, in the dtype of products
    vocabulary,
    stride_logits: tl.int64,
    stride_logp_grad: tl.int64,
    inner: tl.float64,
    outer: tl.float64,
    tanh,  # the softcap's polynomial, () without one
    HAS_BIAS: tl.constexpr,
    KEEP: tl.constexpr,  # whether logp_grad_ptr is written
    CAPPED: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_V: tl.constexpr,
    VEC: tl.constexpr,
):
    """A program takes a row, and walks over it twice where it writes the gradient."""
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels_ptr + row).to(tl.int64)
    inner = tl.full((), inner, ACC)
    outer = tl.full((), outer, ACC)
    row_ptr = logits_ptr + row * stride_logits
    offsets = tl.arange(0, BLOCK_V // VEC)[:, None] * VEC + tl.arange(0, VEC)[None, :]
    peak, total = _sum_row(
        row_ptr, bias_ptr, offsets, vocabulary, inner, outer, tanh, HAS_BIAS, CAPPED, ACC, BLOCK_V
    )
    z = _label_logits(
        row_ptr, bias_ptr, label, vocabulary, inner, outer, tanh, HAS_BIAS, CAPPED, ACC
    )
    tl.store(logp_ptr + row, label_logp(z, peak, total, CAPPED))
    tl.store(peak_ptr + row, peak)
    # A label that is no column makes the gradient NaN too.
    total = tl.where(is_column(label, vocabulary), total, float("nan"))
    tl.store(total_ptr + row, total)
    if KEEP:
        out_ptr = logp_grad_ptr + row * stride_logp_grad
        # Zeros where the row is NaN: the caller multiplies by the upstream gradient, which carries
        # the NaN on unless it is 0.
        if total != total:
            _write_zeros(out_ptr, offsets, vocabulary, BLOCK_V)
            return
        _write_grad(
            out_ptr,
            row_ptr,
            bias_ptr,
            offsets,
            vocabulary,
            label,
            peak,
            total,
            inner,
            outer,
            tanh,
            HAS_BIAS,
            CAPPED,
            ACC,
            BLOCK_V,
        )
