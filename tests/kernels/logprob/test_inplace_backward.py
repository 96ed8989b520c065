"""``inplace_backward``: the backward that writes the gradient over the logits."""

import pytest
import torch

from pad_fast import functional
from tests.kernels.logprob.cases import CAPPED, draw


@pytest.mark.parametrize("impl", ["triton", "torch"])
def test_inplace_backward_gives_the_same_gradient(small_tiles, impl):
    logits, labels, grad = draw(2, 5, 300)
    leaf = logits.clone().requires_grad_()
    functional.token_logprobs(leaf, labels, impl=impl, **CAPPED).backward(grad)
    other = logits.clone().requires_grad_()
    functional.token_logprobs(other, labels, impl=impl, inplace_backward=True, **CAPPED).backward(
        grad
    )
    assert torch.equal(leaf.grad, other.grad)
    assert torch.equal(other.detach(), leaf.grad)  # the backward has overwritten the logits
    assert torch.equal(leaf.detach(), logits)  # the forward had not
    assert leaf._version == 0


@pytest.mark.parametrize("impl", ["triton", "torch"])
def test_inplace_backward_is_seen_by_autograd(small_tiles, impl):
    """Another operation that saved the logits gets an error in its backward, not wrong numbers."""
    logits, labels, grad = draw(1, 3, 200)
    hidden = logits.clone().requires_grad_()
    produced = hidden * 1.0
    squares = produced.square().sum()
    logps = functional.token_logprobs(produced, labels, impl=impl, inplace_backward=True)
    logps.backward(grad, retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squares.backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logps.backward(grad)


def test_inplace_backward_refuses_overlapping_logits():
    logits, labels, _ = draw(1, 1, 200)
    with pytest.raises(ValueError, match="logits must not overlap in memory"):
        functional.token_logprobs(
            logits.expand(2, 3, 200), labels.expand(2, 3), inplace_backward=True
        )


def test_inplace_backward_refuses_logits_that_it_would_copy(small_tiles):
    logits, labels, grad = draw(6, 2, 100)
    four, labels, grad = logits.view(2, 3, 2, 100), labels.view(2, 3, 2), grad.view(2, 3, 2)
    with pytest.raises(ValueError, match="logits must have a view in three dimensions"):
        functional.token_logprobs(
            four.transpose(0, 1), labels.transpose(0, 1), inplace_backward=True
        )
    # Both have a view in three dimensions, the second since one of its sizes is 1.
    single = four.clone().transpose(1, 2).contiguous().transpose(1, 2)[:1]
    for leaf in (four.clone(), single):
        leaf = leaf.requires_grad_()
        rows = slice(len(leaf))
        logps = functional.token_logprobs(leaf, labels[rows], impl="triton", inplace_backward=True)
        logps.backward(grad[rows])
        assert torch.equal(leaf.detach(), leaf.grad)
