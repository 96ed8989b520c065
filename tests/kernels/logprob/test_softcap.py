"""Logits with a softcap whose powers 2^z are summed as they are, and those that need a maximum."""

import math

import numpy as np
import pytest
import torch
from pad_fast.kernels.common.numerics import TANH
from pad_fast.kernels.logprob import launch
from pad_fast.kernels.logprob.softmax import NARROW, WIDE

from pad_fast.logprob.softmax import TokenOptions
from tests.kernels.logprob.cases import DEVICE, TILE, kernel_of, reference_of

pytestmark = pytest.mark.usefixtures("small_tiles")


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        (TokenOptions(), 0),
        (TokenOptions(softcap=30.0), NARROW.value),  # Gemma 2
        (TokenOptions(softcap=30.0, temperature=0.44), NARROW.value),  # 98 bits
        (TokenOptions(softcap=30.0, temperature=0.43), WIDE.value),  # 101 bits
        (TokenOptions(softcap=30.0, logit_scale=-0.0625), NARROW.value),
        (TokenOptions(softcap=30.0, logit_scale=0.03), WIDE.value),  # 0.001^13 times the last
        (TokenOptions(softcap=1e-25, temperature=1e-25), WIDE.value),
        (TokenOptions(softcap=1e25), WIDE.value),
    ],
)
def test_a_softcap_is_narrow_where_its_numbers_are_in_range(options, kind):
    assert launch.softcap_of(options)[0] == kind


@pytest.mark.parametrize("scale", [1.3, -0.0625])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("even", [False, True])
def test_coefficients_hold_the_softcap(scale, temperature, even):
    options = TokenOptions(temperature, 30.0, scale)
    kind, coefficients = launch.softcap_of(options, even)
    inner, outer = launch.constants(options)
    x = np.linspace(-1, 1, 1001) / inner
    u = x if kind == NARROW.value and not even else inner * x
    found = u * np.polynomial.polynomial.polyval(u * u, coefficients)
    assert len(coefficients) == len(TANH)
    np.testing.assert_allclose(found, outer * np.tanh(inner * x), rtol=5.1e-8)


@pytest.mark.parametrize("label", [3, TILE + 5], ids=["tile", "tail"])
@pytest.mark.parametrize("temperature", [0.2, 0.7, 1.0, 2.0])
def test_a_confident_label_is_exact_and_never_above_0(label, temperature):
    """As p approaches 1, log p and the gradient 1 - p are as exact as float32 can have them."""
    logits = torch.linspace(-9, -3, TILE + 12, device=DEVICE).repeat(1, 24, 1)
    logits[0, :, label] = torch.cat([torch.linspace(0, 29, 16), torch.logspace(1.5, 4, 8)])
    labels, grad = torch.full((1, 24), label, device=DEVICE), torch.ones(1, 24, device=DEVICE)
    options = {"softcap": 30.0, "temperature": temperature}
    exact, dexact = reference_of(logits, labels, grad, torch.float64, **options)
    logps, dlogits = kernel_of(logits, labels, grad, **options)
    assert (logps <= 0).all()
    assert (logps[exact > -1e-9] == 0).all()
    torch.testing.assert_close(logps.double(), exact, rtol=2e-6, atol=2.4e-7)
    torch.testing.assert_close(dlogits.double(), dexact, rtol=1e-5, atol=2.4e-7 / temperature)
    assert (dlogits[..., label] >= 0).all()


def test_the_labels_own_term_has_the_same_bits_in_any_tile():
    """Alone, beside a logit beyond the cap, and on both sides of it: p = 1 is log p = 0 exactly."""
    edges = torch.tensor([30.0, -30.0]).repeat(8) + torch.linspace(-2e-5, 2e-5, 16)
    own = torch.cat([torch.linspace(-29, 40, 48), edges]).to(DEVICE)
    labels = torch.zeros(1, len(own), dtype=torch.int64, device=DEVICE)
    for others in (None, -1e4):
        logits = own[None, :, None]
        if others:
            logits = torch.cat([logits, torch.full_like(logits, others)], 2)
        logps, _ = kernel_of(logits, labels, torch.ones_like(own)[None], softcap=30.0)
        assert (logps[own[None] > -10] == 0).all()
        assert (logps <= 0).all()


@pytest.mark.parametrize("temperature", [0.44, 1.0])
def test_the_least_likely_label(temperature):
    """Twice the softcap below the most likely one, where p is 2^-200."""
    logits = torch.full((1, 2, 2 * TILE), 1e4, device=DEVICE)
    logits[..., 7] = -1e4
    labels = torch.tensor([[7, 8]], device=DEVICE)
    logps, _ = kernel_of(
        logits, labels, torch.ones(1, 2).to(DEVICE), softcap=30.0, temperature=temperature
    )
    most = -math.log(2 * TILE - 1)
    wanted = torch.tensor([[most - 60 / temperature, most]], device=DEVICE)
    torch.testing.assert_close(logps, wanted, rtol=2e-7, atol=0)


@pytest.mark.parametrize("scale", [1.0, -1.3])
def test_small_logits_keep_their_digits(scale):
    """A tile within the cap takes the polynomial, whatever the sign of the scale."""
    logits = torch.linspace(-1e-3, 1e-3, TILE, device=DEVICE).repeat(1, 16, 1)
    labels, grad = torch.arange(0, TILE, 4, device=DEVICE)[None], torch.ones(1, 16, device=DEVICE)
    options = {"softcap": 30.0, "temperature": 0.44, "logit_scale": scale}
    exact, _ = reference_of(logits, labels, grad, torch.float64, **options)
    logps, _ = kernel_of(logits, labels, grad, **options)
    torch.testing.assert_close(logps.double(), exact, rtol=0, atol=8e-7)
