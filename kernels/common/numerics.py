"""Device functions: tanh on the multiply-add pipes, and sums whose order is written down."""

import triton
import triton.language as tl

# tanh(q) / q in y = q^2 on |q| <= 1, the minimax polynomial of the relative error (Remez): 5.0e-8 in exact arithmetic, and
# q * polynomial in float32 is within 1.7e-7 of tanh relatively, where a correctly rounded tanh is within 0.6e-7.
TANH_0 = tl.constexpr(0.9999999502407366)
TANH_1 = tl.constexpr(-0.33332839153070787)
TANH_2 = tl.constexpr(0.13325204075825553)
TANH_3 = tl.constexpr(-0.05345702956824571)
TANH_4 = tl.constexpr(0.020289980423137597)
TANH_5 = tl.constexpr(-0.006203379104791954)
TANH_6 = tl.constexpr(0.0010410226337449705)


LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def exp(x):
    """e^x. ``tl.exp`` of float32 also serves denormal results, at three more instructions an entry; this one gives 0 for them."""
    return tl.exp2(x * LOG2_E)


@triton.jit
def _far_tanh(q, scale):
    e = exp(-2.0 * tl.abs(q))
    t = scale * ((1.0 - e) / (1.0 + e))
    return tl.where(q < 0, -t, t)


@triton.jit
def _near_tanh(q, scale):
    y = q * q
    p = y * (scale * TANH_6) + scale * TANH_5
    p = y * p + scale * TANH_4
    p = y * p + scale * TANH_3
    p = y * p + scale * TANH_2
    p = y * p + scale * TANH_1
    return q * (y * p + scale * TANH_0)


@triton.jit
def scaled_tanh(x, inner, scale, ACC: tl.constexpr):
    """scale * tanh(inner * x) of a tile (A, B), in float32 or float64.

    The special-function units give 16 results per clock and multiprocessor, the others 128, and the softmax's exponential
    needs them too: a tanh out of exponential and reciprocal would take longer than reading 16-bit logits does. So a tile within
    |inner * x| <= 1, that is of logits within their softcap, takes a polynomial, and a tile with any larger entry takes the
    exponential for those entries. Both branches start from x as it was read, which is all that is kept in registers meanwhile.
    """
    if ACC == tl.float64:  # noqa: SIM300
        t = _far_tanh(inner * x.to(ACC), scale)
    else:
        reach = tl.max(tl.max(tl.abs(x.to(ACC)), 1), 0) * tl.abs(inner)
        if reach > 1.0:
            q = inner * x.to(ACC)
            t = tl.where(tl.abs(q) > 1.0, _far_tanh(q, scale), _near_tanh(q, scale))
        else:
            t = _near_tanh(inner * x.to(ACC), scale)
    return t


@triton.jit
def even_tanh(x, inner, scale):
    """scale * tanh(inner * x) in float32 without a look at the whole tile: for a product's result, whose layout on sm_100 has no room
    for one before Triton 3.9, and whose exponentials are few beside its multiplications."""
    q = inner * x
    return tl.where(tl.abs(q) > 1.0, _far_tanh(q, scale), _near_tanh(q, scale))


@triton.jit
def rounded(product):
    """A product of numbers that are not negative, as it is, NaN too: behind a maximum it cannot be fused with an addition."""
    return tl.maximum(product, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def tree_sum(x):
    """(A, B) -> (A,), B a power of two: the two halves of each row are added until one column is left.

    Each step adds two numbers, so that the result has the same bits whatever layout, vector width or number of warps the
    compiler chose: a plain ``tl.sum`` adds in the order of the layout, which follows the alignment of the pointers. x must not
    be a product, where fusion is allowed: a layout that adds within a thread would fuse the first addition with it, and one that
    adds across threads would not. Pass it through :func:`rounded` first.
    """
    for _ in tl.static_range(16):
        if x.shape[1] > 1:
            x = tl.sum(tl.reshape(x, (x.shape[0], 2, x.shape[1] // 2)), axis=1)
    return tl.sum(x, axis=1)
