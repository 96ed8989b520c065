"""Exact micro-batches of a listwise loss, whose gradient needs all rewards of a prompt together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor

from pad_fast import device

Slice = TypeVar("Slice")


def micro_batched_backward(
    rewards_of: Callable[[Slice], Tensor],
    slices: Sequence[Slice],
    loss_of: Callable[[Tensor], Tensor],
    *,
    backward: Callable[[Tensor], object] = torch.Tensor.backward,
    context: Callable[[int], AbstractContextManager] = lambda k: nullcontext(),
) -> tuple[Tensor, Tensor]:
    """Backward of a loss of all slices' rewards, with the activations of one slice at a time.

    It is that of ``loss_of(sum_k rewards_of(slices[k]))``.

    Args:
        rewards_of: the rewards of a slice's own responses, and 0 for all others, in one shape.
        loss_of: a scalar of all rewards; called once.
        backward: called with a scalar for each slice instead of its ``backward()``.
        context: entered for slice k's forward and backward; for example DDP's ``no_sync``.

    Returns:
        The loss and the rewards, detached.

    Raises:
        ValueError: there are no slices.

    Example:
        >>> weights = torch.ones(3, requires_grad=True)
        >>> features = [torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0.0, 3.0, 0.0])]
        >>> loss, _ = micro_batched_backward(
        ...     lambda part: part * weights, features, lambda rewards: rewards.square().sum()
        ... )
        >>> loss, weights.grad
        (tensor(14.), tensor([ 2., 18.,  8.]))

    Notes:
        The loss depends on the model through the rewards r alone, so its gradient is
        sum_i (d loss / d r_i) d r_i / d theta. All slices are scored without a gradient, then
        d loss / d r is taken, and then each slice is computed again, forward and backward, with
        these weights. It costs one more forward, which draws the same random numbers again.
    """
    if len(slices) == 0:
        raise ValueError("slices must not be empty, got none")
    states, found = [], []
    with torch.no_grad():
        for part in slices:
            states.append(device.random_states())
            found.append(rewards_of(part))
    rewards = torch.stack(found).sum(0).requires_grad_()
    loss = loss_of(rewards)
    (weights,) = torch.autograd.grad(loss, rewards)
    for k, part in enumerate(slices):
        with context(k):
            device.restore_random_states(states[k])
            backward((rewards_of(part) * weights).sum())
    return loss.detach(), rewards.detach()
