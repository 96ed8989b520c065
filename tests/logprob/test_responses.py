"""Rewards of responses, padded and packed, and the sums that they are made of."""

import numpy as np
import pytest
import torch
from logprobs import CAPPED, close, draw

from pad_fast import functional, reference
from pad_fast.logprob import response_op


@pytest.mark.parametrize("normalize", ["mean", "sum"])
@pytest.mark.parametrize("head", [False, True])
def test_rewards_padded_and_packed(small_tiles, normalize, head):
    hidden, weight, _, labels, _ = draw(rows=(3, 5))
    labels[1] = -100  # a response without tokens
    ids = torch.arange(3).repeat_interleave(5)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(0))
    ids[order[0]], labels.view(-1)[order[0]] = -1, 7  # a row of no response
    weights = torch.tensor([1.0, 2.0, -0.5])

    def rewards(function, h, w, y, **packing):
        logits = (h, w) if head else (h @ w.T,)
        return function(*logits, y, normalize=normalize, **packing, **CAPPED)

    ours = functional.linear_response_rewards if head else functional.response_rewards
    flat_h, flat_y = hidden.view(15, -1), labels.view(-1)
    leaves = [x.clone().requires_grad_() for x in (flat_h, weight)]
    packed = rewards(
        ours, leaves[0][order], leaves[1], flat_y[order], response_ids=ids[order], num_responses=3
    )
    (packed * weights).sum().backward()

    exact_leaves = [x.detach().double().requires_grad_() for x in (flat_h, weight)]
    own = flat_y.where(ids >= 0, -100)
    logps = reference.linear_token_logprobs(*exact_leaves, own, **CAPPED)
    exact = reference.response_rewards(logps.view(3, 5), own.view(3, 5), normalize=normalize)
    (exact * weights).sum().backward()
    torch.testing.assert_close(packed.double(), exact, rtol=1e-6, atol=1e-6)
    assert packed[1] == 0
    for leaf, exact_leaf in zip(leaves, exact_leaves, strict=True):
        close(leaf.grad, exact_leaf.grad, torch.float32)

    padded = rewards(ours, hidden, weight, own.view(3, 5))
    counted = rewards(
        ours, flat_h, weight, flat_y, response_ids=ids
    )  # the number of responses out of the ids
    torch.testing.assert_close(padded, packed)
    torch.testing.assert_close(counted, packed)


def test_lengths():
    labels = torch.tensor([[1, -100, 3], [-100, -100, -100]])
    assert functional.response_lengths(labels).tolist() == [2, 0]
    ids = torch.tensor([0, 0, 2, 2, -1, 2])
    assert functional.response_lengths(
        labels.view(-1), response_ids=ids, num_responses=4
    ).tolist() == [1, 0, 1, 0]
    assert functional.response_lengths(labels.view(-1), response_ids=ids).tolist() == [1, 0, 1]


def test_sums_are_exact_in_any_order():
    """The sum is the rounded true sum, where float32's last bits depend on the order."""
    values = -torch.rand(4096, generator=torch.Generator().manual_seed(0)) * 20
    ids = torch.zeros(4096, dtype=torch.int64)
    exact = values.double().sum().float()
    assert len({np.add.accumulate(values[torch.randperm(4096)].numpy())[-1] for _ in range(20)}) > 1
    for _ in range(20):
        order = torch.randperm(4096)
        assert (
            response_op.response_sums(values[order], ids, ids, 1, -100, False, "torch")[0] == exact
        )
        assert (
            response_op.response_sums(
                values[order].view(1, -1), ids.view(1, -1), None, 1, -100, False, "torch"
            )[0]
            == exact
        )


def test_sums_keep_what_is_not_finite():
    values = torch.tensor([[0.0, -torch.inf], [torch.nan, -1.0], [-1e30, -1e30]])
    sums, _ = response_op.response_sums(values, values, None, 3, -100, False, "torch")
    assert sums[0] == -torch.inf
    assert sums[1].isnan()
    assert sums[2] == pytest.approx(-2e30)


@pytest.mark.parametrize("mean", [False, True])
def test_opcheck(mean):
    labels = draw(rows=(6,), vocabulary=20)[3]
    ids = torch.tensor([0, 2, -1, 2, 0, 1])
    torch.library.opcheck(
        response_op.response_sums.library,
        (torch.randn(6, requires_grad=True), labels, ids, 4, -100, mean, "torch"),
    )
    torch.library.opcheck(
        response_op.response_sums.library,
        (torch.randn(2, 3, requires_grad=True), labels.view(2, 3), None, 2, -100, mean, "torch"),
    )
