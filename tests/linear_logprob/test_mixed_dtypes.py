"""Hidden states and an output head of two dtypes, without autocast: the head is cast."""

import pytest
import torch
from logprobs import draw

from pad_fast import linear_preference_loss, linear_token_logprobs

MIXTURES = pytest.mark.parametrize(
    ("states", "head"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float16),
    ],
    ids=str,
)


@MIXTURES
@pytest.mark.parametrize("budget", ["auto", 0])
def test_the_head_is_cast_to_the_dtype_of_hidden(small_tiles, states, head, budget):
    """As a cast by hand; each gradient has the dtype of its own tensor."""
    hidden, weight, bias, labels, grad = draw()
    results = []
    for by_hand in (True, False):
        leaves = [
            tensor.to(dtype).requires_grad_()
            for tensor, dtype in ((hidden, states), (weight, head), (bias, head))
        ]
        own = [leaf.to(states) if by_hand else leaf for leaf in leaves[1:]]
        options = {"bias": own[1], "memory_budget": budget}
        logps = linear_token_logprobs(leaves[0], own[0], labels, **options)
        gradients = torch.autograd.grad(logps, leaves, grad.to(logps.dtype))
        assert [found.dtype for found in gradients] == [states, head, head]
        results.append((logps.detach(), *gradients))
    for wanted, found in zip(*results, strict=True):
        assert torch.equal(wanted, found)


@MIXTURES
def test_a_frozen_head_and_a_loss_by_chunks_are_cast_too(states, head):
    hidden, weight, _, labels, _ = draw(rows=(4, 6))
    hidden, weight = hidden.to(states).requires_grad_(), weight.to(head)
    teacher = torch.arange(4.0).view(2, 2)
    losses = [
        linear_preference_loss(hidden, given, labels, teacher)[0]
        for given in (weight, weight.to(states), weight.clone().requires_grad_())
    ]
    assert losses[0] == losses[1] == losses[2]
    first, second, _ = (torch.autograd.grad(loss, hidden)[0] for loss in losses)
    assert first.dtype == states
    assert torch.equal(first, second)


def test_float64_is_not_mixed():
    hidden, weight, _, labels, _ = draw()
    with pytest.raises(ValueError, match="weight must have the dtype and device of hidden"):
        linear_token_logprobs(hidden.double(), weight.float(), labels)
    with pytest.raises(ValueError, match="weight must have the dtype and device of hidden"):
        linear_token_logprobs(hidden.float(), weight.double(), labels)
