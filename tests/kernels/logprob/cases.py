"""What the tests of the log-probability kernels share: inputs, results and the comparison.

Tests run on a GPU where there is one, and elsewhere under Triton's interpreter.
"""

import torch

from pad_fast import functional, reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OPTIONS = {"temperature": 1.0, "softcap": None, "logit_scale": 1.0}
CAPPED = {"temperature": 0.7, "softcap": 30.0, "logit_scale": 1.3}
# Relative rounding of each dtype, to nearest even: half of its eps.
ROUNDING = {
    torch.float32: 6e-8,
    torch.bfloat16: 4e-3,
    torch.float16: 5e-4,
}
TILE = 64  # float32 columns in a tile of the fixture small_tiles


def draw(*shape, dtype=torch.float32, scale=8.0, seed=0):
    """Logits, labels of which every fifth is ignored, and an upstream gradient for each token."""
    g = torch.Generator().manual_seed(seed)
    logits = (torch.randn(*shape, generator=g) * scale).to(dtype).to(DEVICE)
    labels = torch.randint(shape[-1], shape[:-1], generator=g).to(DEVICE)
    labels.view(-1)[4::5] = -100
    return logits, labels, torch.randn(shape[:-1], generator=g).to(DEVICE)


def reference_of(logits, labels, grad, dtype, **options):
    """Log-probabilities and the logits' gradient of the reference in ``dtype``."""
    leaf = logits.detach().to(dtype).requires_grad_()
    logps = reference.token_logprobs(leaf, labels, **options)
    return logps.detach(), torch.autograd.grad(logps, leaf, grad.to(logps.dtype))[0]


def kernel_of(logits, labels, grad, **options):
    """Log-probabilities and the logits' gradient of the kernels."""
    leaf = logits.detach().requires_grad_()
    logps = functional.token_logprobs(leaf, labels, impl="triton", **options)
    return logps.detach(), torch.autograd.grad(logps, leaf, grad.to(logps.dtype))[0]


def check(logits, labels, grad, **options):
    """Assert an error against float64 of at most eager float32's and a few roundings.

    Gradients are compared row by row. Returns the kernel's log-probabilities and gradient.
    """
    exact, dexact = reference_of(logits, labels, grad, torch.float64, **options)
    eager, deager = reference_of(logits, labels, grad, torch.float32, **options)
    logps, dlogits = kernel_of(logits, labels, grad, **options)
    assert logps.dtype == torch.float32
    assert dlogits.dtype == logits.dtype
    size = exact.abs().clamp(min=1)
    assert ((logps - exact).abs() <= 2 * (eager - exact).abs().amax() + 1e-6 * size).all()
    scale = abs(options["logit_scale"] / options["temperature"])
    slack = 2 * (deager - dexact).abs().amax(-1) + 2.4e-7 * scale * grad.abs()
    rounding = ROUNDING[logits.dtype] * dexact.abs()
    if logits.dtype == torch.float16:
        rounding += 6e-8  # the smallest float16
    assert ((dlogits - dexact).abs() <= slack.unsqueeze(-1) + rounding).all()
    return logps, dlogits
