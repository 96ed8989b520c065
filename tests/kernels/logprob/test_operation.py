"""The operations around the kernels: rewards, opcheck, torch.compile, choice of implementation."""

import pytest
import torch

from pad_fast import functional, reference
from pad_fast.logprob import op as logprob_op
from tests.kernels.logprob.cases import CAPPED, DEVICE, draw


@pytest.mark.parametrize("normalize", ["mean", "sum"])
def test_response_rewards(small_tiles, normalize):
    """Rewards and their gradients; a response without a token has reward 0 and gradient 0."""
    logits, labels, _ = draw(3, 5, 200)
    labels[1] = -100
    weights = torch.tensor([1.0, -2.0, 0.5], device=DEVICE)
    leaf, exact_leaf = logits.clone().requires_grad_(), logits.double().requires_grad_()
    rewards = functional.response_rewards(
        leaf, labels, normalize=normalize, impl="triton", **CAPPED
    )
    exact = reference.response_rewards(
        reference.token_logprobs(exact_leaf, labels, **CAPPED), labels, normalize=normalize
    )
    torch.testing.assert_close(rewards.double(), exact, rtol=1e-6, atol=1e-6)
    assert rewards[1] == 0
    (rewards * weights).sum().backward()
    (exact * weights.double()).sum().backward()
    torch.testing.assert_close(leaf.grad.double(), exact_leaf.grad, rtol=1e-5, atol=1e-6)


def test_rewards_have_the_same_bits_in_any_packing(small_tiles):
    logits, labels, _ = draw(3, 5, 200)
    padded = functional.response_rewards(logits, labels, impl="triton")
    order = torch.randperm(15, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    ids = torch.arange(3, device=DEVICE).repeat_interleave(5)[order]
    packed = functional.response_rewards(
        logits.view(15, -1)[order],
        labels.view(15)[order],
        response_ids=ids,
        num_responses=3,
        impl="triton",
    )
    left = functional.response_rewards(
        torch.cat([torch.full_like(logits, torch.nan), logits], 1),
        torch.cat([torch.full_like(labels, -100), labels], 1),
        impl="triton",
    )
    assert torch.equal(padded, packed)
    assert torch.equal(padded, left)


@pytest.mark.parametrize("inplace", [False, True])
def test_opcheck(small_tiles, inplace):
    logits, labels, grad = draw(1, 3, 100)
    options = (0.7, 30.0, 1.0, -100, "triton")
    torch.library.opcheck(
        logprob_op.token_logprobs.library,
        (logits.clone().requires_grad_(), labels, *options, False),
    )
    _, peak, total = logprob_op.token_logprobs(logits, labels, *options, inplace)
    backward = (
        logprob_op.token_logprobs_backward_ if inplace else logprob_op.token_logprobs_backward
    )
    torch.library.opcheck(backward.library, (grad, logits, labels, peak, total, *options))


@pytest.mark.parametrize("inplace", [False, True])
def test_compiles_whole(small_tiles, inplace):
    logits, labels, _ = draw(2, 3, 100)

    def loss(x):
        return functional.response_rewards(
            x * 2, labels, impl="triton", inplace_backward=inplace, **CAPPED
        ).sum()

    leaf, compiled_leaf = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    expected, got = (
        loss(leaf),
        torch.compile(loss, fullgraph=True, backend="aot_eager")(compiled_leaf),
    )
    expected.backward()
    got.backward()
    assert torch.equal(got, expected)
    assert torch.equal(compiled_leaf.grad, leaf.grad)


def test_compiles_whole_in_place_for_any_shape(small_tiles):
    torch.compiler.reset()

    def loss(x, labels):
        return functional.token_logprobs(x * 1, labels, impl="triton", inplace_backward=True).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for shape in ((2, 3, 50), (3, 5, 60), (4, 7, 129)):
        logits, labels, _ = draw(*shape)
        leaf, compiled_leaf = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        loss(leaf, labels).backward()
        compiled(compiled_leaf, labels).backward()
        assert torch.equal(compiled_leaf.grad, leaf.grad)


@pytest.mark.parametrize(("before", "after"), [("triton", "torch"), ("torch", "triton")])
def test_forward_and_backward_are_of_one_implementation(small_tiles, monkeypatch, before, after):
    """The backward takes the forward's implementation, even if PAD_FAST_IMPL has changed since.

    Peaks and totals are in the unit of the implementation that computed them.
    """
    logits, labels, grad = draw(1, 3, 200)
    logits.requires_grad_()
    monkeypatch.setenv("PAD_FAST_IMPL", before)
    logps = functional.token_logprobs(logits, labels, **CAPPED)
    (expected,) = torch.autograd.grad(logps, logits, grad, retain_graph=True)
    monkeypatch.setenv("PAD_FAST_IMPL", after)
    (got,) = torch.autograd.grad(logps, logits, grad)
    assert torch.equal(got, expected)
