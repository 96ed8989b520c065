"""Device functions: exp and tanh that are cheap on GPUs, and sums in a fixed order."""

import triton
import triton.language as tl

# tanh(q) / q as a polynomial of q^2 on |q| <= 1, with the least maximum of the relative error
# (Remez): 5.0e-8 in exact arithmetic. In float32, q * polynomial is within 1.7e-7 of tanh, where a
# correctly rounded tanh is within 0.6e-7.
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
    """e^x, and 0 for denormal results, which cost ``tl.exp`` three more instructions."""
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
def _float64_tanh(q, scale):
    """scale * tanh(q) with a relative error of a few units in the last place."""
    # The continued fraction q / (1 + q^2 / (3 + q^2 / (5 + ...))), which 1 - e would cancel in.
    y = q * q
    d = 13.0 + y / 15.0
    d = 11.0 + y / d
    d = 9.0 + y / d
    d = 7.0 + y / d
    d = 5.0 + y / d
    d = 3.0 + y / d
    d = 1.0 + y / d
    return tl.where(tl.abs(q) > 0.5, _far_tanh(q, scale), scale * (q / d))


@triton.jit
def scaled_tanh(x, inner, scale, ACC: tl.constexpr):
    """scale * tanh(inner * x) of a tile (A, B), in float32 or float64."""
    # The special-function units give 16 results per clock and multiprocessor, the others 128, and
    # the softmax's exponential needs them too. A tanh made of an exponential and a reciprocal
    # would take longer than reading 16-bit logits does. So a tile with |inner * x| <= 1 everywhere
    # (logits within their softcap) takes the polynomial, and a tile with any larger entry takes the
    # exponential for those entries. Both branches start from x as it was read, so that no other
    # copy of it occupies registers.
    if ACC == tl.float64:  # noqa: SIM300
        t = _float64_tanh(inner * x.to(ACC), scale)
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
    """scale * tanh(inner * x) in float32, entry by entry: for the result of a matrix product.

    It has no maximum over the tile: before Triton 3.9 the layout of a product on sm_100 has no room
    for one. Its exponentials are few compared with the product's multiplications.
    """
    q = inner * x
    return tl.where(tl.abs(q) > 1.0, _far_tanh(q, scale), _near_tanh(q, scale))


@triton.jit
def rounded(product):
    """A product of non-negative numbers, unchanged (NaN too), but rounded.

    The compiler cannot fuse it with an addition, since a maximum is in between.
    """
    return tl.maximum(product, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def tree_sum(x):
    """Sum the rows of x, (A, B) -> (A,), with the same bits in every layout. B is a power of two.

    x must not be a product unless it went through :func:`rounded`: a layout that adds within a
    thread would fuse the first addition with it, and one that adds across threads would not.
    """
    # Each step adds the two halves of a row until one column is left. A plain tl.sum adds in the
    # order of the layout, which follows the pointers' alignment, the vector width and the warps.
    for _ in tl.static_range(16):
        if x.shape[1] > 1:
            x = tl.sum(tl.reshape(x, (x.shape[0], 2, x.shape[1] // 2)), axis=1)
    return tl.sum(x, axis=1)
