"""Cases of results that are changed in place."""

from __future__ import annotations

import torch

from pad_fast import (
    linear_response_rewards,
    linear_token_logprobs,
    probabilistic_preference_loss,
    response_rewards,
    token_logprobs,
    vanilla_preference_loss,
)

from .compare import check_equal
from .draw import Draw


def inplace_case(draw: Draw) -> None:
    """A result can be changed in place, and the gradient is that of the changed result."""
    logits = draw.normal(3, 4, 9).requires_grad_()
    hidden, weight = draw.normal(3, 4, 5).requires_grad_(), draw.normal(9, 5).requires_grad_()
    labels = draw.tensor("labels", draw.integers(0, 9, 3, 4))
    student, teacher = draw.normal(3, 4).requires_grad_(), draw.normal(3, 4)
    calls = {
        "token_logprobs": lambda: token_logprobs(logits, labels),
        "response_rewards": lambda: response_rewards(logits, labels),
        "linear_token_logprobs": lambda: linear_token_logprobs(hidden, weight, labels),
        "linear_response_rewards": lambda: linear_response_rewards(hidden, weight, labels),
        "probabilistic": lambda: probabilistic_preference_loss(student, teacher, reduction="none"),
        "vanilla": lambda: vanilla_preference_loss(student, teacher, reduction="none"),
    }
    name = draw.choice("operation", list(calls))
    leaves = [logits, hidden, weight, student]
    mask = None
    gradients = []
    for inplace in (True, False):
        result = calls[name]()
        mask = draw.tensor("mask", draw.mask(0.5, *result.shape)) if mask is None else mask
        if inplace:
            result[mask] = 0
        else:
            result = result.masked_fill(mask, 0)
        gradients.append(torch.autograd.grad(result.sum(), leaves, allow_unused=True))
    for got, want in zip(*gradients, strict=True):
        if want is not None:
            check_equal(f"gradient after a change in place of {name}", got, want)
