"""linear_logprob_rows: the softmax of each row of a chunk of logits, and its scores.

A library's matrix product has written the logits before. What the softmax computes is in
``kernels/logprob/softmax.py``. Scores are d log p / d logits but for a number of each row, its
scale. Where their dtype can hold them, a row is walked over once: they are written before its sum
is known, and the label's is put right in the end.
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
    power,
    steepest_slope,
    transform,
)

# Nats by which a row's maximum may exceed its label's logit in one walk: scores are e^40 at most.
FARTHEST = tl.constexpr(40.0)


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
def _label_logits(
    row_ptr,
    bias_ptr,
    label,
    vocabulary,
    cap,  # inner, outer and tanh
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
    return tl.sum(tl.sum(transform(x, *cap, CAPPED, ACC), 1), 0)


@triton.jit
def _early_scores(z, peak, own, cap, CAPPED: tl.constexpr):
    """A tile of scores that need no sum, from its z and the lanes' peaks: -d log p / d z of others.

    Without a softcap they are e^(z - own), own the label's, from exponentials that the sum needs
    too. A NARROW one has 2^z * (outer^2 - z^2), the slope of its tanh but for a number.
    """
    if CAPPED:
        outer = cap[1]
        scores = tl.exp2(z) * (outer - tl.abs(z)) * (outer + tl.abs(z))
    else:
        scores = power(z - peak[:, None], CAPPED) * power(peak - own, CAPPED)[:, None]
    return scores


@triton.jit
def _walk(
    row_ptr,
    bias_ptr,
    scores_ptr,  # the row's, written if ONCE
    label,
    offsets,
    vocabulary,
    cap,  # inner, outer and tanh
    HAS_BIAS: tl.constexpr,
    ONCE: tl.constexpr,
    CAPPED: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """The label's z, the maximum and the sum of exponentials of a row: whole tiles, then a tail."""
    own = 0.0
    if ONCE:  # else it would occupy a register meanwhile
        own = _label_logits(row_ptr, bias_ptr, label, vocabulary, cap, HAS_BIAS, CAPPED, ACC)
    dtype = scores_ptr.dtype.element_ty
    whole = vocabulary // BLOCK_V * BLOCK_V
    there = whole + offsets < vocabulary
    peak, total = no_columns(offsets.shape[0], CAPPED, ACC)
    for start in range(0, whole, BLOCK_V):
        x = _load_tile(row_ptr + start, bias_ptr + start, offsets, there, HAS_BIAS, False)
        z = transform(x, *cap, CAPPED, ACC)
        peak, total = add_tile(peak, total, z, CAPPED)
        if ONCE:
            scores = _early_scores(z, peak, own, cap, CAPPED)
            tl.store(scores_ptr + start + offsets, scores.to(dtype))
    if whole < vocabulary:
        x = _load_tile(row_ptr + whole, bias_ptr + whole, offsets, there, HAS_BIAS, True)
        z = transform(x, *cap, CAPPED, ACC)
        peak, total = add_tile(peak, total, tl.where(there, z, float("-inf")), CAPPED)
        if ONCE:
            scores = _early_scores(z, peak, own, cap, CAPPED)
            tl.store(scores_ptr + whole + offsets, scores.to(dtype), mask=there)
    peak, total = join_lanes(peak, total, CAPPED)
    if not ONCE:
        own = _label_logits(row_ptr, bias_ptr, label, vocabulary, cap, HAS_BIAS, CAPPED, ACC)
    return own, peak, total


@triton.jit
def _finish(
    scores_ptr,  # the row's
    own,  # the label's z
    label,
    peak,
    total,
    cap,  # inner, outer and tanh
    CAPPED: tl.constexpr,
    ACC: tl.constexpr,
):
    """Write the label's score after one walk. Returns the row's scale, 0 where one was not enough.

    That is so where the label is so improbable that other scores would be out of range.
    """
    inner, outer, _ = cap
    scale = steepest_slope(inner, outer, CAPPED)
    if CAPPED:
        score = (tl.exp2(own) - total) * (outer - tl.abs(own)) * (outer + tl.abs(own))
        row_scale = -scale / (total * (outer * outer))
        enough = total == total
    else:
        above = power(peak - own, CAPPED)
        score = (power(own - peak, CAPPED) - total) * above
        row_scale = -scale / (total * above)
        enough = peak - own <= FARTHEST
    # The label's score is as large as all others together, or nearly with a softcap. So the scale
    # is made for it as it is rounded.
    stored = score.to(scores_ptr.dtype.element_ty)
    tl.store(scores_ptr + label, stored, mask=enough)
    stored = stored.to(ACC)
    row_scale = tl.where(stored == 0.0, row_scale, row_scale * (score / stored))
    return tl.where(enough, row_scale, 0.0)


@triton.jit
def _write_zeros(out_ptr, offsets, vocabulary, BLOCK_V: tl.constexpr):
    """Zeros in a row that is NaN.

    The caller multiplies them by the upstream gradient, which carries the NaN on unless it is 0.
    """
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
    cap,  # inner, outer and tanh
    HAS_BIAS: tl.constexpr,
    CAPPED: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """d log p / d logits of a row: the tail, then whole tiles from the last to the first.

    So it begins with the logits that :func:`_walk` has left in the second-level cache.
    """
    whole = vocabulary // BLOCK_V * BLOCK_V
    there = whole + offsets < vocabulary
    dtype = out_ptr.dtype.element_ty
    inner, outer, _ = cap
    scale = steepest_slope(inner, outer, CAPPED)
    share = scale / total
    place = label.to(tl.int32)  # 64-bit comparisons would double the registers
    if whole < vocabulary:
        x = _load_tile(row_ptr + whole, bias_ptr + whole, offsets, there, HAS_BIAS, True)
        own_place = place - whole
        d = logp_grad(x, offsets, own_place, scale, share, peak, total, *cap, CAPPED, ACC)
        tl.store(out_ptr + whole + offsets, d.to(dtype), mask=there)
    for back in range(BLOCK_V, whole + BLOCK_V, BLOCK_V):
        start = whole - back
        x = _load_tile(row_ptr + start, bias_ptr + start, offsets, there, HAS_BIAS, False)
        own_place = place - start
        d = logp_grad(x, offsets, own_place, scale, share, peak, total, *cap, CAPPED, ACC)
        tl.store(out_ptr + start + offsets, d.to(dtype))


@triton.jit
def _keep(
    out_ptr,
    row_scale_ptr,
    row_ptr,
    bias_ptr,
    own,  # the label's z
    label,
    offsets,
    vocabulary,
    peak,
    total,
    cap,  # inner, outer and tanh
    HAS_BIAS: tl.constexpr,
    ONCE: tl.constexpr,
    CAPPED: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Write of a row's scores what :func:`_walk` has not written, and their scale."""
    if ONCE:
        tl.debug_barrier()  # what follows is written over what the walk has written
    row_scale = tl.zeros((), ACC)  # 0 asks for a second walk
    if total != total:
        _write_zeros(out_ptr, offsets, vocabulary, BLOCK_V)
    else:
        if ONCE:
            row_scale = _finish(out_ptr, own, label, peak, total, cap, CAPPED, ACC)
        if not (ONCE and CAPPED) and row_scale == 0.0:
            _write_grad(
                out_ptr,
                row_ptr,
                bias_ptr,
                offsets,
                vocabulary,
                label,
                peak,
                total,
                cap,
                HAS_BIAS,
                CAPPED,
                ACC,
                BLOCK_V,
            )
    tl.store(row_scale_ptr, tl.where(row_scale == 0.0, 1.0, row_scale))


@triton.jit(do_not_specialize=["vocabulary"])
def linear_logprob_rows(
    logits_ptr,  # (C, V), float32 or wider, contiguous columns
    bias_ptr,  # (V,)
    labels_ptr,  # (C,)
    logp_ptr,  # (C,), log p of the label
    peak_ptr,  # (C,), max z, in z's unit; 0 if NARROW
    total_ptr,  # (C,), sum of power(z - peak)
    scores_ptr,  # (C, V), in the dtype of products: d log p / d logits = row_scale * scores
    row_scale_ptr,  # (C,)
    vocabulary,
    stride_logits: tl.int64,
    stride_scores: tl.int64,
    inner: tl.float64,
    outer: tl.float64,
    tanh,  # the softcap's polynomial, () without one
    HAS_BIAS: tl.constexpr,
    KEEP: tl.constexpr,  # whether scores are written
    ONCE: tl.constexpr,  # whether one walk over the row is tried, if KEEP
    CAPPED: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_V: tl.constexpr,
    VEC: tl.constexpr,
):
    """A program takes a row, and walks over it once or twice."""
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels_ptr + row).to(tl.int64)
    cap = (tl.full((), inner, ACC), tl.full((), outer, ACC), tanh)  # what turns logits into z
    row_ptr, out_ptr = logits_ptr + row * stride_logits, scores_ptr + row * stride_scores
    offsets = tl.arange(0, BLOCK_V // VEC)[:, None] * VEC + tl.arange(0, VEC)[None, :]
    z, peak, total = _walk(
        row_ptr,
        bias_ptr,
        out_ptr,
        label,
        offsets,
        vocabulary,
        cap,
        HAS_BIAS,
        ONCE,
        CAPPED,
        ACC,
        BLOCK_V,
    )
    tl.store(logp_ptr + row, label_logp(z, peak, total, CAPPED))
    tl.store(peak_ptr + row, peak)
    # A label that is no column makes the gradient NaN too.
    total = tl.where(is_column(label, vocabulary), total, float("nan"))
    tl.store(total_ptr + row, total)
    if KEEP:
        _keep(
            out_ptr,
            row_scale_ptr + row,
            row_ptr,
            bias_ptr,
            z,
            label,
            offsets,
            vocabulary,
            peak,
            total,
            cap,
            HAS_BIAS,
            ONCE,
            CAPPED,
            ACC,
            BLOCK_V,
        )
