"""What the tests of hidden states times the output head share: inputs and comparisons.

The library's matrix product runs as it is. The tests are about the kernels around it. They run on a
GPU where there is one, and elsewhere under Triton's interpreter.
"""

import pytest
import torch

from pad_fast import functional, reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PLAIN: dict = {}
CAPPED = {"temperature": 0.7, "softcap": 30.0, "logit_scale": 1.3}
WIDE = {**CAPPED, "temperature": 0.2}  # 2^z is beyond float32's range
OPTIONS = pytest.mark.parametrize("options", [PLAIN, CAPPED], ids=["plain", "capped"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
# Tolerances of gradients, which are rounded twice: the logits' gradient, and its product.
ROUNDING = {
    torch.float32: 1e-5,
    torch.bfloat16: 8e-3,
    torch.float16: 1e-3,
}
# Bytes in which 4 of the 9 live rows of ``draw`` keep float32 scores, and 8 such in 16 bits.
SOME = 5600
BUDGETS = pytest.mark.parametrize("budget", ["auto", SOME, 0])


def draw(rows=11, width=24, vocabulary=300, dtype=torch.float32, scale=1.5, seed=0):
    """Hidden states, weight, bias, labels of which every fifth is ignored, and a gradient."""
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, width, generator=g).to(dtype).to(DEVICE)
    weight = (torch.randn(vocabulary, width, generator=g) * scale).to(dtype).to(DEVICE)
    bias = torch.randn(vocabulary, generator=g).to(dtype).to(DEVICE)
    labels = torch.randint(vocabulary, (rows,), generator=g).to(DEVICE)
    labels[4::5] = -100
    return hidden, weight, bias, labels, torch.randn(rows, generator=g).to(DEVICE)


def run(function, leaves, labels, grad, **options):
    """Log-probabilities and the gradients of hidden states, weight and bias."""
    hidden, weight, bias = (leaf.detach().clone().requires_grad_() for leaf in leaves)
    logps = function(hidden, weight, labels, bias=bias, **options)
    return logps.detach(), torch.autograd.grad(logps, (hidden, weight, bias), grad.to(logps.dtype))


def ours(hidden, weight, labels, **options):
    """The public function with the kernels."""
    return functional.linear_token_logprobs(hidden, weight, labels, impl="triton", **options)


def close(got, want, tolerance):
    """Assert equality up to ``tolerance`` of the largest entry."""
    size = want.abs().max().item() + 1e-30
    torch.testing.assert_close(
        got.double() / size, want.double() / size, rtol=tolerance, atol=tolerance
    )


def check(hidden, weight, bias, labels, grad, **options):
    """Assert values within twice the error of eager float32, and gradients within ROUNDING."""
    plain = reference.linear_token_logprobs
    leaves = (hidden, weight, bias)
    token_options = {key: value for key, value in options.items() if key != "memory_budget"}
    logps, got = run(ours, leaves, labels, grad, **options)
    exact, want = run(plain, [x.double() for x in leaves], labels, grad, **token_options)
    eager, _ = run(plain, [x.float() for x in leaves], labels, grad, **token_options)
    assert logps.dtype == torch.float32
    slack = 2e-6 * exact.abs().clamp(min=1)
    assert ((logps - exact).abs() <= 2 * (eager - exact).abs().amax() + slack).all()
    for g, w in zip(got, want, strict=True):
        assert g.dtype == hidden.dtype
        close(g, w, ROUNDING[hidden.dtype])
