"""What the tests of log-probabilities share: inputs, gradients and tolerances."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pad_fast import functional, reference

CAPPED = {"temperature": 0.7, "softcap": 30.0, "logit_scale": 1.3}
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1.5e-3}


def draw(dtype=torch.float32, rows=(2, 4), width=12, vocabulary=45, scale=3.0):
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(*rows, width, generator=g).to(dtype)
    weight = (torch.randn(vocabulary, width, generator=g) * scale).to(dtype)
    bias = torch.randn(vocabulary, generator=g).to(dtype)
    labels = torch.randint(vocabulary, rows, generator=g)
    labels.view(-1)[2::5] = -100
    return hidden, weight, bias, labels, torch.randn(rows, generator=g)


def gradients(function, leaves, labels, grad, **options):
    """Values and gradients of ``function(*leaves, labels)``, each leaf in its own dtype."""
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    values = function(*leaves, labels, **options)
    return values.detach(), torch.autograd.grad(values, leaves, grad.to(values.dtype))


def close(got, want, dtype):
    size = want.abs().max().item() + 1e-30
    torch.testing.assert_close(
        got.double() / size, want.double() / size, rtol=ROUNDING[dtype], atol=ROUNDING[dtype]
    )


def linear(hidden, weight, bias, labels, **options):
    return functional.linear_token_logprobs(
        hidden, weight, labels, bias=bias, impl="torch", **options
    )


def linear_reference(hidden, weight, bias, labels, **options):
    return reference.linear_token_logprobs(hidden, weight, labels, bias=bias, **options)


def watch(monkeypatch, mode, *functions):
    """Enter ``mode`` within these functions, as a mode sees only the outside of our operations."""

    def watched(inner):
        def run(*args, **kwargs):
            with mode:
                return inner(*args, **kwargs)

        return run

    for module, name in functions:
        monkeypatch.setattr(module, name, watched(getattr(module, name)))


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that PyTorch made; views of ``known`` tensors do not count."""

    def __init__(self, *known: torch.Tensor):
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if (
                isinstance(leaf, torch.Tensor)
                and leaf.numel()
                and leaf.untyped_storage().data_ptr() not in self.known
            ):
                self.bytes = max(self.bytes, leaf.untyped_storage().nbytes())
        return result
