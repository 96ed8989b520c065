"""Device functions: exp and tanh that are cheap on GPUs, and sums in a fixed order."""

import triton
import triton.language as tl

# tanh(q) / q as a polynomial of q^2 on |q| <= 1, with the least maximum of the relative error
# (Remez): 5.0e-8 in exact arithmetic, and 1.7e-7 of tanh where float32 evaluates it. A correctly
# rounded tanh is within 0.6e-7. Launchers multiply the coefficients by the softcap.
TANH = (
    0.9999999502407366,
    -0.33332839153070787,
    0.13325204075825553,
    -0.05345702956824571,
    0.020289980423137597,
    -0.006203379104791954,
    0.0010410226337449705,
)

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
def _near_tanh(u, tanh):
    """A softcap's tanh where it is a polynomial, u times one of u^2 with the coefficients tanh."""
    y = u * u
    p = y * tanh[6] + tanh[5]
    p = y * p + tanh[4]
    p = y * p + tanh[3]
    p = y * p + tanh[2]
    p = y * p + tanh[1]
    return u * (y * p + tanh[0])


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
def _largest(x):
    """max |x| of a float32 tile (A, B)."""
    # Floats that are not negative are ordered as their bits are, and a warp finds the largest of 32
    # integers in one instruction. For floats it takes ten before sm_100.
    rows = tl.max(tl.abs(x), 1)
    return tl.max(rows.to(tl.int32, bitcast=True), 0).to(tl.float32, bitcast=True)


@triton.jit
def scaled_tanh(x, inner, scale, tanh, FOLDED: tl.constexpr, ACC: tl.constexpr):
    """scale * tanh(inner * x) of a tile (A, B), in float32 or float64.

    FOLDED says whether the coefficients tanh are of a polynomial of x, and not of inner * x.
    """
    # The special-function units give 16 results per clock and multiprocessor, the others 128, and
    # the softmax's exponential needs them too. A tanh made of an exponential and a reciprocal
    # would take longer than reading 16-bit logits does. So a tile with |inner * x| <= 1 everywhere
    # (logits within their softcap) takes the polynomial, and a tile with any larger entry takes the
    # exponential for those entries. Both branches start from x as it was read, so that no other
    # copy of it occupies registers, and give an entry the same bits.
    if ACC == tl.float64:  # noqa: SIM300
        t = _float64_tanh(inner * x.to(ACC), scale)
    else:
        factor = 1.0 if FOLDED else inner
        bound = 1.0 / tl.abs(inner) if FOLDED else 1.0
        reach = _largest(x.to(ACC)) * tl.abs(factor)
        if reach > bound:
            u = factor * x.to(ACC)
            far = _far_tanh(inner * x.to(ACC), scale)
            t = tl.where(tl.abs(u) > bound, far, _near_tanh(u, tanh))
        else:
            t = _near_tanh(factor * x.to(ACC), tanh)
    return t


@triton.jit
def even_tanh(x, inner, scale, tanh):
    """scale * tanh(inner * x) in float32, entry by entry: for the result of a matrix product.

    It has no maximum over the tile: before Triton 3.9 the layout of a product on sm_100 has no room
    for one. Its exponentials are few compared with the product's multiplications.
    """
    q = inner * x
    return tl.where(tl.abs(q) > 1.0, _far_tanh(q, scale), _near_tanh(q, tanh))


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
