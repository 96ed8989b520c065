"""linear_logprob_rows: log-probability, peak, total and scores of each row of a chunk of logits."""

import triton
import triton.language as tl

from ..common.numerics import LN_2, rounded, tree_sum
from ..logprob.backward import gradient
from ..logprob.forward import LOWEST, absorb, power, score


@triton.jit
def _logits(tile_ptr, bias_ptr, offsets, live, HAS_BIAS: tl.constexpr, MASKED: tl.constexpr):
    """A tile of logits with its bias, in the dtype of the logits."""
    if MASKED:
        x = tl.load(tile_ptr + offsets, mask=live, other=0.0)
        if HAS_BIAS:
            x += tl.load(bias_ptr + offsets, mask=live, other=0.0).to(x.dtype)
    else:
        x = tl.load(tile_ptr + offsets)
        if HAS_BIAS:
            x += tl.load(bias_ptr + offsets).to(x.dtype)
    return x


@triton.jit(do_not_specialize=["vocabulary"])
def linear_logprob_rows(
    logits_ptr,  # (C, V) float32 or wider, contiguous columns
    bias_ptr,  # (V,)
    labels_ptr,  # (C,)
    logp_ptr,  # (C,) w[label] - log sum exp w
    peak_ptr,  # (C,) max w, in w's unit
    total_ptr,  # (C,) sum power(w - peak)
    scores_ptr,  # (C, V) d logp / d logits, in the dtype of products
    vocabulary,
    stride_logits: tl.int64,
    stride_scores: tl.int64,
    inner: tl.float64,
    outer: tl.float64,
    HAS_BIAS: tl.constexpr,
    KEEP: tl.constexpr,  # write the scores
    CAPPED: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_V: tl.constexpr,
    VEC: tl.constexpr,
):
    """The second walk over a row goes backwards: it begins with what the first has just left in the second-level cache."""
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels_ptr + row).to(tl.int64)
    inner = tl.full((), inner, ACC)
    outer = tl.full((), outer, ACC)
    row_ptr = logits_ptr + row * stride_logits
    LANES: tl.constexpr = BLOCK_V // VEC
    offsets = tl.arange(0, LANES)[:, None] * VEC + tl.arange(0, VEC)[None, :]
    peak = tl.full((LANES,), LOWEST, ACC)
    total = tl.zeros((LANES,), ACC)

    whole = vocabulary // BLOCK_V * BLOCK_V
    live = whole + offsets < vocabulary
    for start in range(0, whole, BLOCK_V):
        x = _logits(row_ptr + start, bias_ptr + start, offsets, live, HAS_BIAS, False)
        peak, total = absorb(peak, total, score(x, inner, outer, CAPPED, ACC), CAPPED)
    if whole < vocabulary:
        w = score(
            _logits(row_ptr + whole, bias_ptr + whole, offsets, live, HAS_BIAS, True),
            inner,
            outer,
            CAPPED,
            ACC,
        )
        peak, total = absorb(peak, total, tl.where(live, w, float("-inf")), CAPPED)

    top = tl.max(peak, 0)
    parts = rounded(total * power(peak - top, CAPPED))
    sums = tl.max(tree_sum(tl.reshape(parts, (1, LANES))), 0)
    place = tl.zeros((1, 1), tl.int64) + label  # no column is not read, and NaN
    inside = (place >= 0) & (place < vocabulary)
    own = tl.load(row_ptr + place, mask=inside, other=float("nan"))
    if HAS_BIAS:
        own += tl.load(bias_ptr + place, mask=inside, other=0.0).to(own.dtype)
    own = tl.sum(tl.sum(score(own, inner, outer, CAPPED, ACC), 1), 0)
    below = own - top
    tl.store(logp_ptr + row, (below * LN_2 if CAPPED else below) - tl.log(sums))
    tl.store(peak_ptr + row, top)
    sums = tl.where(
        (label >= 0) & (label < vocabulary), sums, float("nan")
    )  # makes the gradient NaN too
    tl.store(total_ptr + row, sums)

    if KEEP:
        out_ptr = scores_ptr + row * stride_scores
        kind = scores_ptr.dtype.element_ty
        if sums != sums:  # NaN: passed on by the upstream gradient's factor, which can be 0
            zeros = tl.zeros(offsets.shape, kind)
            for start in range(0, whole, BLOCK_V):
                tl.store(out_ptr + start + offsets, zeros)
            tl.store(out_ptr + whole + offsets, zeros, mask=live)
            return
        slope = inner * (outer * LN_2) if CAPPED else inner
        rest = slope / sums
        column = label.to(tl.int32)
        if whole < vocabulary:
            x = _logits(row_ptr + whole, bias_ptr + whole, offsets, live, HAS_BIAS, True)
            d = gradient(x, offsets, column - whole, slope, rest, top, inner, outer, CAPPED, ACC)
            tl.store(out_ptr + whole + offsets, d.to(kind), mask=live)
        for back in range(BLOCK_V, whole + BLOCK_V, BLOCK_V):
            start = whole - back
            x = _logits(row_ptr + start, bias_ptr + start, offsets, live, HAS_BIAS, False)
            d = gradient(x, offsets, column - start, slope, rest, top, inner, outer, CAPPED, ACC)
            tl.store(out_ptr + start + offsets, d.to(kind))
