"""The log-probability rewards in plain PyTorch, the vocabulary softmax written out and differentiated by autograd.

This is the specification and the tests' oracle: it holds no hand-written gradient and saves no memory.
"""

from __future__ import annotations

import torch


def token_logprobs(
    logits: torch.Tensor,  # (..., V)
    labels: torch.Tensor,  # (...)
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    ignore_index: int = -100,
) -> torch.Tensor:  # (...)
    """log softmax(z / temperature)[label] with z = softcap * tanh(logit_scale * logits / softcap); 0 where ignored."""
    z = logits.to(torch.promote_types(logits.dtype, torch.float32)) * logit_scale
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    live = labels != ignore_index
    picked = (
        (z / temperature)
        .log_softmax(-1)
        .gather(-1, labels.long().where(live, 0).unsqueeze(-1))
        .squeeze(-1)
    )
    return picked.where(live, 0)


def linear_token_logprobs(
    hidden: torch.Tensor,  # (..., D)
    weight: torch.Tensor,  # (V, D)
    labels: torch.Tensor,  # (...)
    *,
    bias: torch.Tensor | None = None,
    **token_options,
) -> torch.Tensor:  # (...)
    """:func:`token_logprobs` of the logits hidden @ weight.T + bias."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    logits = torch.nn.functional.linear(
        hidden.to(wide), weight.to(wide), None if bias is None else bias.to(wide)
    )
    return token_logprobs(logits, labels, **token_options)


def response_rewards(
    logps: torch.Tensor,  # (R, T) or (M,)
    labels: torch.Tensor,  # as logps
    *,
    normalize: str = "mean",
    response_ids: torch.Tensor | None = None,  # (M,)
    num_responses: int | None = None,
    ignore_index: int = -100,
) -> torch.Tensor:  # (R,)
    """The sum, or the mean, of each response's live token log-probabilities; 0 for a response without any."""
    live = labels != ignore_index
    if response_ids is None:
        rows = [logps[r][live[r]] for r in range(len(logps))]
    else:
        count = int(response_ids.max()) + 1 if num_responses is None else num_responses
        rows = [logps[live & (response_ids == r)] for r in range(count)]
    rewards = [row.sum() / (max(len(row), 1) if normalize == "mean" else 1) for row in rows]
    return torch.stack(rewards) if rewards else logps.new_zeros(0)
