"""The online softmax of a row of logits and its gradient, shared by all log-probability kernels.

The host's counterpart is ``pad_fast/logprob/softmax.py``. Logits z are those after softcap and
scale: z = inner * x in nats, or with a softcap z = outer * tanh(inner * x) in bits. Bits save a
multiplication for each entry, which the softcap's polynomial needs; nats keep z exact.
"""

import triton
import triton.language as tl

from ..common.numerics import LN_2, exp, rounded, scaled_tanh, tree_sum

LOWEST = tl.constexpr(-3.4028234663852886e38)  # finite, so that -inf minus a peak is never NaN
# What CAPPED is with a softcap; 0 is without. NARROW, |z| is at most 100 bits, and a row sums 2^z
# as it is, without a maximum: its peak is 0.
NARROW, WIDE = tl.constexpr(1), tl.constexpr(2)


@triton.jit
def transform(x, inner, outer, tanh, CAPPED: tl.constexpr, ACC: tl.constexpr):
    """The logits z of a tile x of logits as the model gives them."""
    if CAPPED:
        z = scaled_tanh(x, inner, outer, tanh, CAPPED == NARROW, ACC)
    else:
        z = inner * x.to(ACC)
    return z


@triton.jit
def power(z, CAPPED: tl.constexpr):
    """The exponential of z in its unit: 2^z of bits, e^z of nats."""
    return tl.exp2(z) if CAPPED else exp(z)


@triton.jit
def is_column(label, vocabulary):
    """Whether a label is a column of the logits."""
    return (label >= 0) & (label < vocabulary)


@triton.jit
def no_columns(LANES: tl.constexpr, CAPPED: tl.constexpr, ACC: tl.constexpr):
    """The peak and the total of each lane before its first column."""
    START: tl.constexpr = 0.0 if CAPPED == NARROW else LOWEST
    return tl.full((LANES,), START, ACC), tl.zeros((LANES,), ACC)


@triton.jit
def add_tile(
    peak,  # (LANES,)
    total,  # (LANES,)
    z,  # (LANES, VEC)
    CAPPED: tl.constexpr,
):
    """Add a tile to each lane's running maximum and sum of exponentials.

    A lane has its own maximum, so no word passes between threads: VEC + 1 exponentials a lane.
    """
    if CAPPED == NARROW:
        total += tree_sum(tl.exp2(z))
    else:
        higher = tl.maximum(peak, tl.max(z, 1))
        total = total * power(peak - higher, CAPPED) + tree_sum(power(z - higher[:, None], CAPPED))
        peak = higher
    return peak, total


@triton.jit
def join_lanes(
    peak,  # (LANES,)
    total,  # (LANES,)
    CAPPED: tl.constexpr,
):
    """The maximum and the sum of exponentials of the row."""
    top = tl.max(peak, 0)
    parts = rounded(total * power(peak - top, CAPPED))
    return top, tl.max(tree_sum(tl.reshape(parts, (1, parts.shape[0]))), 0)


@triton.jit
def label_logp(z, peak, total, CAPPED: tl.constexpr):
    """log p of labels in nats, from their z, the row's peak and its sum of exponentials.

    It is never above 0. total - own is not negative where own has the same bits as the term in the
    sum, and is exact where p is near 1. A compiler that fuses one of them otherwise changes that.
    """
    if CAPPED == NARROW:
        own = tl.exp2(z)
        logp = tl.where(
            total < own * 2.0**60,  # beyond, the quotient might leave float32's range
            0.0 - tl.log(1.0 + tl.maximum(total - own, 0.0, tl.PropagateNan.ALL) / own),
            (z - tl.log2(total)) * LN_2,
        )
    else:
        below = z - peak
        logp = (below * LN_2 if CAPPED else below) - tl.log(total)
    return logp


@triton.jit
def steepest_slope(inner, outer, CAPPED: tl.constexpr):
    """d z / d x in nats where the softcap does not bend."""
    return inner * (outer * LN_2) if CAPPED else inner


@triton.jit
def logp_grad(
    x,  # (A, B)
    offsets,  # (A, B), the columns of the tile
    place,  # the label's column in the tile, or any other number
    scale,  # steepest_slope * upstream gradient
    share,  # scale / total
    peak,
    total,
    inner,
    outer,
    tanh,
    CAPPED: tl.constexpr,
    ACC: tl.constexpr,
    AGAIN: tl.constexpr = False,  # x was computed again, and may exceed its peak by a rounding
):
    """The gradient of the label's log p for x, times the upstream gradient.

    It is (scale * onehot - share * power(z - peak)) * (1 - tanh^2). With s = 1 - |tanh|,
    1 - tanh^2 = s * (2 - s), and outer - |z| is exact: a saturated logit has a slope of exactly
    0, and no slope has the wrong sign. A NARROW label has share * (total - 2^z), exact near p = 1.
    """
    z = transform(x, inner, outer, tanh, CAPPED, ACC)
    # In tiles without the label the comparison would only cost registers.
    hit = is_column(place, offsets.shape[0] * offsets.shape[1])
    if CAPPED == NARROW:
        d = tl.minimum(tl.exp2(z), total) if AGAIN else tl.exp2(z)
        if hit:
            d = tl.where(offsets == place, d - total, d)
        d = d * (-share / (outer * outer)) * (outer - tl.abs(z)) * (outer + tl.abs(z))
    else:
        below = tl.minimum(z - peak, 0.0) if AGAIN else z - peak
        d = -share * power(below, CAPPED)
        if hit:
            d = tl.where(offsets == place, scale + d, d)
        if CAPPED:
            s = (outer - tl.abs(z)) * (1.0 / outer)
            d *= s * (2.0 - s)
    return d
