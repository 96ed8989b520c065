"""Values and gradients of the log-probability kernels against float64, over sizes and ranges."""

import pytest
import torch
import triton
import triton.language as tl
from pad_fast.kernels.common.numerics import scaled_tanh

from pad_fast import functional
from tests.kernels.logprob.cases import (
    CAPPED,
    DEVICE,
    OPTIONS,
    ROUNDING,
    TILE,
    check,
    draw,
    kernel_of,
    reference_of,
)

WIDE = {**CAPPED, "temperature": 0.2}  # 2^z is beyond float32's range


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "options",
    [OPTIONS, CAPPED, {**OPTIONS, "logit_scale": -0.5}, WIDE],
    ids=["plain", "capped", "negative", "wide"],
)
def test_values_and_gradients(small_tiles, dtype, options):
    check(*draw(2, 5, 1000, dtype=dtype), **options)


@pytest.mark.parametrize(
    "vocabulary", [1, TILE - 1, TILE, TILE + 1, 2 * TILE, 2 * TILE + 1, 4 * TILE, 4 * TILE + 1]
)
@pytest.mark.parametrize("options", [OPTIONS, CAPPED], ids=["plain", "capped"])
def test_every_boundary_of_tile_and_chunk(small_tiles, vocabulary, options):
    logits, labels, grad = draw(1, 3, vocabulary)
    labels[0, 0], labels[0, 1] = 0, vocabulary - 1  # the first and the last column
    check(logits, labels, grad, **options)


# Those of Llama 2 and 3, Qwen and Gemma, small ones, and one past 2^18.
@pytest.mark.parametrize("vocabulary", [127, 1000, 32001, 128256, 151936, 256000, 262145])
def test_vocabularies_in_the_launched_tiles(vocabulary):
    logits, labels, grad = draw(1, 2, vocabulary, dtype=torch.bfloat16, scale=3.0)
    labels[0, 0] = vocabulary - 1
    check(logits, labels, grad, **(CAPPED if vocabulary == 256000 else OPTIONS))


@pytest.mark.parametrize("level", [-500.0, 500.0])
def test_all_logits_far_from_zero(small_tiles, level):
    logits, labels, grad = draw(1, 3, 300, scale=2.0)
    logps, _ = check(logits + level, labels, grad, **OPTIONS)
    assert logps.isfinite().all()


@pytest.mark.parametrize(
    ("dtype", "lowest"), [(torch.float16, -65504.0), (torch.float32, -1e38)], ids=str
)
def test_rows_at_the_end_of_the_range(small_tiles, dtype, lowest):
    """The running maximum starts below anything that a row can hold."""
    _, labels, grad = draw(1, 2, 300)
    logps, _ = check(
        torch.full((1, 2, 300), lowest, dtype=dtype, device=DEVICE), labels, grad, **OPTIONS
    )
    torch.testing.assert_close(logps, -torch.full_like(logps, 300.0).log())


@pytest.mark.parametrize("options", [OPTIONS, CAPPED, WIDE], ids=["plain", "capped", "wide"])
def test_infinite_logits(small_tiles, options):
    logits, labels, grad = draw(1, 4, 300)
    logits[0, 0, 7] = -torch.inf
    logits[0, 1, :TILE] = -torch.inf  # an entire tile
    labels[0, 1] = 100
    logits[0, 2, 0] = -torch.inf
    labels[0, 2] = 0  # the label itself: log p is -inf, and there is a gradient all the same
    exact, dexact = reference_of(logits, labels, grad, torch.float64, **options)
    logps, dlogits = kernel_of(logits, labels, grad, **options)
    torch.testing.assert_close(logps.double(), exact, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(dlogits.double(), dexact, rtol=1e-5, atol=1e-6)


def test_softcap_on_both_sides_of_the_polynomial(small_tiles):
    """Tiles within the cap take a polynomial, others exponentials; both are as good as eager."""
    logits, labels, grad = draw(1, 4, 256)
    logits[0, 0] = torch.linspace(-30, 30, 256)  # all within the cap
    logits[0, 1] = torch.linspace(-300, 300, 256)
    logits[0, 2] = torch.linspace(-1e-3, 1e-3, 256)
    logits[0, 3] = torch.linspace(29.9, 30.1, 256)  # across the cap
    # A low temperature makes log-probabilities of capped logits large, so that any error shows.
    for temperature in (0.01, 0.44, 1.0):
        for scale in (1.0, -1.3):
            check(logits, labels, grad, softcap=30.0, temperature=temperature, logit_scale=scale)


@pytest.mark.parametrize("temperature", [0.25, 0.35, 0.5, 0.7, 0.9, 1.0, 1.1, 1.5])
def test_saturated_logits_have_no_slope(small_tiles, temperature):
    """Where tanh is 1 the gradient is exactly 0, not a rounding error of either sign."""
    logits, labels, grad = draw(1, 4, 200)
    logits[..., ::2] = torch.where(logits[..., ::2] < 0, -3000.0, 3000.0)
    _, dlogits = kernel_of(logits, labels, grad.abs(), softcap=30.0, temperature=temperature)
    assert (dlogits[..., ::2] == 0).all()
    others = torch.ones_like(logits, dtype=torch.bool).scatter_(
        -1, labels.clamp(min=0).unsqueeze(-1), False
    )
    assert (dlogits[others] <= 0).all()


@pytest.mark.parametrize("softcap", [1e-25, 1e25])
def test_softcaps_at_the_end_of_the_range(small_tiles, softcap):
    logits, labels, grad = draw(1, 3, 200)
    options = {"softcap": softcap, "temperature": min(softcap, 1.0)}
    exact = reference_of(logits, labels, grad, torch.float64, **options)
    for got, want in zip(kernel_of(logits, labels, grad, **options), exact, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("label", [3, 199], ids=["tile", "tail"])
@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.9])
def test_confident_label_keeps_its_gradient(small_tiles, label, temperature):
    """As p approaches 1, the gradient 1 - p and log p stay as exact as float32 can have them.

    This holds for a large peak too, whose product with the temperature's inverse is rounded: a
    fused multiply-add on a GPU would round it in one place and not in another.
    """
    for level in (0.0, 30.3, 500.3):
        logits = torch.full((1, 4, 200), level, device=DEVICE)
        logits[0, :, label] += torch.tensor([12.0, 15.0, 18.0, 20.0], device=DEVICE)
        labels, grad = torch.full((1, 4), label, device=DEVICE), torch.ones(1, 4, device=DEVICE)
        exact, dexact = reference_of(logits, labels, grad, torch.float64, temperature=temperature)
        logps, dlogits = kernel_of(logits, labels, grad, temperature=temperature)
        torch.testing.assert_close(logps.double(), exact, rtol=0.01, atol=2.4e-7)
        torch.testing.assert_close(dlogits.double(), dexact, rtol=1e-5, atol=2.4e-7 / temperature)
        assert (logps <= 0).all()


def test_long_sums_do_not_drift():
    """A sum of 262,145 equal terms is exact; in bfloat16 it would stop growing at 256."""
    logits = torch.full((1, 1, 262145), 1.5, dtype=torch.bfloat16, device=DEVICE)
    labels, grad = (
        torch.zeros(1, 1, dtype=torch.int64, device=DEVICE),
        torch.ones(1, 1, device=DEVICE),
    )
    logps, dlogits = kernel_of(logits, labels, grad)
    assert logps.item() == pytest.approx(-torch.tensor(262145.0).log().item(), rel=1e-6)
    assert dlogits[0, 0, 1:].double().sum().item() == pytest.approx(
        -1.0, rel=ROUNDING[torch.bfloat16]
    )


@pytest.mark.parametrize("options", [OPTIONS, CAPPED], ids=["plain", "capped"])
def test_gradcheck_drives_the_kernels(small_tiles, options):
    """Finite differences agree, since the kernels accumulate in float64 for float64 logits."""
    logits, labels, _ = draw(1, 3, 70, dtype=torch.float64, scale=20.0)
    labels[0, 2] = -100
    torch.autograd.gradcheck(
        lambda x: functional.token_logprobs(x, labels, impl="triton", **options),
        logits.requires_grad_(),
        fast_mode=True,
    )


def test_float64_values(small_tiles):
    logits, labels, grad = draw(2, 5, 200, dtype=torch.float64, scale=20.0)
    for options in (OPTIONS, CAPPED, WIDE):
        exact = reference_of(logits, labels, grad, torch.float64, **options)
        for got, want in zip(kernel_of(logits, labels, grad, **options), exact, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)


@triton.jit
def _tanh(x_ptr, out_ptr, inner: tl.float64, scale: tl.float64, SIZE: tl.constexpr):
    places = tl.arange(0, SIZE)[:, None] + tl.arange(0, 1)[None, :]
    inner, scale = tl.full((), inner, tl.float64), tl.full((), scale, tl.float64)
    x = tl.load(x_ptr + places)
    tl.store(out_ptr + places, scaled_tanh(x, inner, scale, (), False, tl.float64))


def test_float64_softcap_has_all_its_digits():
    """Near 0 too, where 1 - exp(-2 q) would cancel."""
    x = torch.logspace(-12, 3, 512, dtype=torch.float64, device=DEVICE)
    x[::2] *= -1
    found = torch.empty_like(x)
    _tanh[(1,)](x, found, 1 / 30.0, 30.0, SIZE=512)
    torch.testing.assert_close(found, 30 * (x / 30).tanh(), rtol=2e-15, atol=0)
