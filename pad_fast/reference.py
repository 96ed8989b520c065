"""Rewards and losses in plain PyTorch: the specification, and what tests compare with.

The softmax over the vocabulary is written out, autograd differentiates it, and no memory is saved.
The losses of rewards are written for one prompt, response by response.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from math import log2
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


# Losses of one prompt's rewards, student x (n,) and teacher t (n,), with their factors applied.


def list_net(x: Tensor, t: Tensor) -> Tensor:
    """-sum_i p_i log q_i, with p_i = e^t_i / sum_j e^t_j and q of x (ListNet, ICML 2007)."""
    p, q = (values.exp() / values.exp().sum() for values in (t, x))
    return -sum((p[i] * q[i].log() for i in range(len(x))), x.new_zeros(()))


def pair_logistic(x: Tensor, t: Tensor, gamma: float = 0.0, pairs: str = "best_worst") -> Tensor:
    """Mean of -log sigmoid(x_w - x_l - gamma) over pairs (DPO 2305.18290, SimPO 2405.14734)."""
    n = len(x)
    chosen = [(i, j) for i in range(n) for j in range(n) if t[i] > t[j]]
    if pairs == "best_worst" and chosen:
        best = next(i for i in range(n) if t[i] == t.max())
        worst = next(i for i in reversed(range(n)) if t[i] == t.min())
        chosen = [(best, worst)]
    losses = [-(1 / (1 + (-(x[i] - x[j] - gamma)).exp())).log() for i, j in chosen]
    return sum(losses, x.sum() * 0) / max(len(losses), 1)


def rrhf(x: Tensor, t: Tensor) -> Tensor:
    """Sum over t_i < t_j of max(0, x_i - x_j) (RRHF, 2304.05302, equation 2)."""
    n, zero = len(x), x.sum() * 0
    return sum(((x[i] - x[j]).relu() for i in range(n) for j in range(n) if t[i] < t[j]), zero)


def pro(x: Tensor, t: Tensor) -> Tensor:
    """-sum_{k<n} log( e^{x_k/T_kk} / (e^{x_k/T_kk} + sum_{i>k} e^{x_i/T_ki}) ), best first.

    T_ki = 1 / (t_k - t_i) and T_kk = min_i T_ki (PRO, 2306.17492, equations 7 to 9).
    """
    order = sorted(range(len(t)), key=lambda i: -t[i].item())
    total = x.sum() * 0
    for place, k in enumerate(order[:-1]):
        later = order[place + 1 :]
        own = (x[k] * max(t[k] - t[i] for i in later)).exp()
        others = sum(((x[i] * (t[k] - t[i])).exp() for i in later), x.new_zeros(()))
        total = total - (own / (own + others)).log()
    return total


def lambda_loss(x: Tensor, t: Tensor) -> Tensor:
    """Sum over psi_i > psi_j of |G_i - G_j| |1/D_i - 1/D_j| log(1 + e^(x_j - x_i)).

    G = 2^psi - 1, D = log2(1 + rank by x), psi_i = mean over j != i of 1 / (1 + e^(t_j - t_i))
    (LiPO, 2402.01878).
    """
    n, total = len(x), x.sum() * 0
    others = [[j for j in range(n) if j != i] for i in range(n)]
    psi = [sum(1 / (1 + (t[j] - t[i]).exp().item()) for j in others[i]) / (n - 1) for i in range(n)]
    by_x = sorted(range(n), key=lambda i: -x[i].item())
    discount = [1 / log2(2 + by_x.index(i)) for i in range(n)]
    for i in range(n):
        for j in others[i]:
            if psi[i] > psi[j]:
                weight = abs(2 ** psi[i] - 2 ** psi[j]) * abs(discount[i] - discount[j])
                total = total + weight * (1 + (x[j] - x[i]).exp()).log()
    return total


def rft(x: Tensor, t: Tensor) -> Tensor:
    """-x of the first response of the largest t (best-of-n fine-tuning, 2308.01825)."""
    return -x[next(i for i in range(len(t)) if t[i] == t.max())]


def list_mle(x: Tensor, t: Tensor) -> Tensor:
    """-sum_k log( e^x_k / sum_{i>=k} e^x_i ), best first, ties by index (Plackett-Luce)."""
    order = sorted(range(len(t)), key=lambda i: -t[i].item())
    steps = (x[k] - x[order[place:]].logsumexp(0) for place, k in enumerate(order))
    return -sum(steps, x.sum() * 0)


def rankings(x: Tensor) -> Tensor:
    """log P(tau) of all n! rankings, P(tau) = prod_k e^x_k / sum_{i>=k} e^x_i (Plackett-Luce)."""
    n = len(x)
    ranked = torch.stack([x[list(order)] for order in permutations(range(n))])
    return sum((ranked[:, k] - ranked[:, k:].logsumexp(1) for k in range(n)), x.new_zeros(()))


def kl(x: Tensor, t: Tensor) -> Tensor:
    """sum_tau P_t log(P_t / P_s), over all rankings."""
    student, teacher = rankings(x), rankings(t)
    return (teacher.exp() * (teacher - student)).sum()


def reverse_kl(x: Tensor, t: Tensor) -> Tensor:
    """sum_tau P_s log(P_s / P_t), over all rankings."""
    return kl(t, x)


def jsd(x: Tensor, t: Tensor) -> Tensor:
    """(KL(P_t || M) + KL(P_s || M)) / 2 with M = (P_t + P_s) / 2 (PAD, 2502.14272, equation 10)."""
    student, teacher = rankings(x), rankings(t)
    middle = ((student.exp() + teacher.exp()) / 2).log()
    parts = [(p.exp() * (p - middle)).sum() for p in (teacher, student)]
    return (parts[0] + parts[1]) / 2


# The divergences of distributions over all rankings, by their names.
DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "jsd": jsd,
    "kl": kl,
    "reverse_kl": reverse_kl,
}

# By the names of the kinds in pad_fast/preference/loss_kinds.py.
LOSSES: dict[str, Callable[..., Tensor]] = {
    "vpd": list_mle,
    "listnet": list_net,
    "pair": pair_logistic,
    "rrhf": rrhf,
    "pro": pro,
    "lambda_loss": lambda_loss,
    "rft": rft,
}


def likelihood(r: Tensor, t: Tensor, on: str, beta: float = 10.0, own: Any = None) -> Tensor:
    """-sum_i w_i r_i of one prompt; w is 1 for the best, equal for the teacher's, or softmax."""
    if on == "best":
        return rft(r, t)
    if on == "teacher":
        mine = [i for i in range(len(r)) if own[i]]
        return -sum((r[i] for i in mine), r.sum() * 0) / max(len(mine), 1)
    weights = (beta * t).exp() / (beta * t).exp().sum()
    return -(weights * r).sum()
