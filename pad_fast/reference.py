"""The log-probability rewards in plain PyTorch: the specification, and what tests compare with.

The softmax over the vocabulary is written out, autograd differentiates it, and no memory is saved.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def token_logprobs(
    logits: Tensor,  # (..., V)
    labels: Tensor,  # (...)
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    ignore_index: int = -100,
) -> Tensor:  # (...)
    """Log-probability of each label in nats, 0 where ignored; see :mod:`pad_fast.functional`.

    log softmax(z / temperature)[label] with z = softcap * tanh(logit_scale * logits / softcap)

    Example:
        >>> token_logprobs(torch.zeros(2, 4), torch.tensor([1, -100]))
        tensor([-1.3863,  0.0000])
    """
    z = logits.to(torch.promote_types(logits.dtype, torch.float32)) * logit_scale
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    live = labels != ignore_index
    columns = labels.long().where(live, 0).unsqueeze(-1)
    logps = (z / temperature).log_softmax(-1).gather(-1, columns).squeeze(-1)
    return logps.where(live, 0)


def linear_token_logprobs(
    hidden: Tensor,  # (..., D)
    weight: Tensor,  # (V, D)
    labels: Tensor,  # (...)
    *,
    bias: Tensor | None = None,  # (V,)
    **token_options: Any,
) -> Tensor:  # (...)
    """:func:`token_logprobs` of the logits ``hidden @ weight.T + bias``.

    Example:
        >>> linear_token_logprobs(torch.ones(1, 3), torch.zeros(4, 3), torch.tensor([2]))
        tensor([-1.3863])
    """
    wide = torch.promote_types(hidden.dtype, torch.float32)
    bias = None if bias is None else bias.to(wide)
    logits = torch.nn.functional.linear(hidden.to(wide), weight.to(wide), bias)
    return token_logprobs(logits, labels, **token_options)


def response_rewards(
    logps: Tensor,  # (R, T) or (M,)
    labels: Tensor,  # as logps
    *,
    normalize: str = "mean",
    response_ids: Tensor | None = None,  # (M,)
    num_responses: int | None = None,
    ignore_index: int = -100,
) -> Tensor:  # (R,)
    """Sum or mean of each response's live token log-probabilities; 0 for one without any.

    Unlike :func:`pad_fast.response_rewards` this takes log-probabilities and not logits.

    Example:
        >>> response_rewards(torch.tensor([[-1.0, -2.0]]), torch.tensor([[5, 6]]))
        tensor([-1.5000])
    """
    live = labels != ignore_index
    if response_ids is None:
        rows = [logps[r][live[r]] for r in range(len(logps))]
    else:
        count = int(response_ids.max()) + 1 if num_responses is None else num_responses
        rows = [logps[live & (response_ids == r)] for r in range(count)]
    rewards = [row.sum() / (max(len(row), 1) if normalize == "mean" else 1) for row in rows]
    return torch.stack(rewards) if rewards else logps.new_zeros(0)
