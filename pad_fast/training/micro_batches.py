"""Exact micro-batches of a listwise loss: memory of a few responses at a time, the gradient of all of them together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor

Slice = TypeVar("Slice")


def micro_batched_backward(
    rewards_of: Callable[[Slice], Tensor],
    slices: Sequence[Slice],
    loss_of: Callable[[Tensor], Tensor],
    *,
    backward: Callable[[Tensor], object] = torch.Tensor.backward,
    context: Callable[[int], AbstractContextManager] = lambda k: nullcontext(),
) -> tuple[Tensor, Tensor]:
    """The backward of ``loss_of(r)``, r = sum_k ``rewards_of(slices[k])``, holding the activations of one slice at a time.

    A slice gives the rewards of its own responses, and 0 for all others, so that r holds every reward. The loss sees the model
    through r alone, so d loss / d theta = sum_k sum_i (d loss / d r_i) d r_i / d theta over the responses i of slice k: all slices
    are scored without a gradient, then d loss / d r is taken, then each slice is computed again, forward and backward, with those
    weights. It costs one more forward. What is random in a forward is drawn again as it was.

    Args:
        rewards_of: the rewards of a slice, of the same shape for each.
        loss_of: a scalar of the rewards; called once, with rewards that require a gradient.
        backward: called with a scalar for each slice, in place of its own ``backward()``.
        context: entered for slice k's forward and backward, as to hold back DDP's all-reduce for all but the last.

    Returns:
        The loss and the rewards, detached.

    Raises:
        ValueError: no slices.
    """
    if len(slices) == 0:
        raise ValueError("slices must not be empty, got none")
    states, found = [], []
    with torch.no_grad():
        for part in slices:
            states.append(_random_states())
            found.append(rewards_of(part))
    rewards = torch.stack(found).sum(0).requires_grad_()
    loss = loss_of(rewards)
    (weights,) = torch.autograd.grad(loss, rewards)
    for k, part in enumerate(slices):
        with context(k):
            _replay(states[k])
            backward((rewards_of(part) * weights).sum())
    return loss.detach(), rewards.detach()


def _random_states() -> list[Tensor]:
    """Of the host's generator, and of the accelerator's."""
    states = [torch.get_rng_state()]
    return (
        [*states, torch.get_device_module().get_rng_state()]
        if torch.accelerator.is_available()
        else states
    )


def _replay(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.get_device_module().set_rng_state(states[1])
