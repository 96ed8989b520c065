"""The online softmax of a row of logits and its gradient, shared by all log-probability kernels.

The host's counterpart is ``pad_fast/logprob/softmax.py``. Logits z are those after softcap and
scale: z = inner * x in nats, or with a softcap z = outer * tanh(inner * x) in bits. Bits save a
multiplication for each entry, which the softcap's polynomial needs; nats keep z exact.
"""

import triton
import triton.language as tl

from ..common.numerics import LN_2, exp, rounded, scaled_tanh, tree_sum

LOWEST = tl.constexpr(-3.4028234663852886e38)  # finite, so that -inf minus a peak is never NaN


@triton.jit
def transform(x, inner, outer, CAPPED: tl.constexpr, ACC: tl.constexpr):
    """The logits z of a tile x of logits as the model gives them."""
    return scaled_tanh(x, inner, outer, ACC) if CAPPED else inner * x.to(ACC)


@triton.jit
def power(z, CAPPED: tl.constexpr):
    """The exponential of z in its unit: 2^z of bits, e^z of nats."""
    return tl.exp2(z) if CAPPED else exp(z)


@triton.jit
def is_column(label, vocabulary):
    """Whether a label is a column of the logits."""
    return (label >= 0) & (label < vocabulary)


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
    higher = tl.maximum(peak, tl.max(z, 1))
    return higher, total * power(peak - higher, CAPPED) + tree_sum(
        power(z - higher[:, None], CAPPED)
    )


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
    """log p of labels in nats, from their z, the maximum of the row and its sum of exponentials."""
    below = z - peak
    return (below * LN_2 if CAPPED else below) - tl.log(total)


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
    inner,
    outer,
    CAPPED: tl.constexpr,
    ACC: tl.constexpr,
    AGAIN: tl.constexpr = False,  # x was computed again, and may exceed its peak by a rounding
):
    """The gradient of the label's log p for x, times the upstream gradient.

    It is (scale * onehot - share * power(z - peak)) * (1 - tanh^2). With s = 1 - |tanh|,
    1 - tanh^2 = s * (2 - s), and outer - |z| is exact: a saturated logit has a slope of exactly
    0, and no slope has the wrong sign.
    """
    z = transform(x, inner, outer, CAPPED, ACC)
    below = tl.minimum(z - peak, 0.0) if AGAIN else z - peak
    d = -share * power(below, CAPPED)
    # In tiles without the label the comparison would only cost registers.
    if is_column(place, offsets.shape[0] * offsets.shape[1]):
        d = tl.where(offsets == place, scale + d, d)
    if CAPPED:
        s = (outer - tl.abs(z)) * (1.0 / outer)
        d *= s * (2.0 - s)
    return d
