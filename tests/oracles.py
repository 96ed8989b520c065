"""Plackett-Luce losses by their definition: all n! rankings, under plain autograd.

Nothing here is used by the library or uses it.
"""

from __future__ import annotations

from itertools import permutations

import torch
from torch import Tensor


def log_probabilities(rewards: Tensor, beta: float) -> Tensor:
    """The log-probability of each ranking, (n,) -> (n!,), as itertools.permutations has them."""
    ranked = beta * rewards[torch.tensor(list(permutations(range(len(rewards)))))]  # (n!, n)
    return sum(ranked[:, k] - ranked[:, k:].logsumexp(1) for k in range(len(rewards)))


def divergence(
    student: Tensor, teacher: Tensor, beta: float, teacher_beta: float, kind: str
) -> Tensor:
    """The divergence of the two distributions over rankings of one prompt, (n,), (n,) -> ()."""
    s, t = log_probabilities(student, beta), log_probabilities(teacher, teacher_beta)
    if kind == "kl":
        return (t.exp() * (t - s)).sum()
    if kind == "reverse_kl":
        return (s.exp() * (s - t)).sum()
    m = torch.logaddexp(s, t) - torch.log(torch.tensor(2.0, dtype=s.dtype))
    return ((t.exp() * (t - m)).sum() + (s.exp() * (s - m)).sum()) / 2


def listmle(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """-log P_s of the teacher's ranking of one prompt, ties by index."""
    order = sorted(range(len(teacher)), key=lambda i: -teacher[i].item())
    x = beta * student[order]
    return -sum(x[k] - x[k:].logsumexp(0) for k in range(len(order)))


def preference_loss(
    student: Tensor,
    teacher: Tensor,
    kind: str,
    beta: float = 10.0,
    teacher_beta: float | None = None,
) -> Tensor:
    """Any of the losses, prompt by prompt: (P, n), (P, n) -> (P,)."""
    if kind == "vpd":
        return torch.stack([listmle(s, t, beta) for s, t in zip(student, teacher, strict=True)])
    scale = beta if teacher_beta is None else teacher_beta
    return torch.stack(
        [divergence(s, t, beta, scale, kind) for s, t in zip(student, teacher, strict=True)]
    )


def value_and_gradient(
    student: Tensor,
    teacher: Tensor,
    kind: str,
    beta: float = 10.0,
    teacher_beta: float | None = None,
):
    """The loss (P,) and the gradient of its sum in the student's rewards (P, n)."""
    leaf = student.detach().clone().requires_grad_()
    loss = preference_loss(leaf, teacher, kind, beta, teacher_beta)
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


def by_clocks(
    student: Tensor, teacher: Tensor, kind: str, beta: float, teacher_beta: float
) -> Tensor:
    """A KL of one prompt of any n, (n,), (n,) -> (), without rankings and without recursion.

    Let response i ring at an exponential time of rate exp(beta * r_i). The order of the rings is
    then Plackett-Luce, and S is the remaining set at some step if all others ring before the first
    of S does. The probability is an integral over the time t of that ring, here over log t.
    """
    x, y = teacher_beta * teacher, beta * student
    if kind == "reverse_kl":
        x, y = y, x
    x = x - x.max()
    n, width = len(x), 0.1
    t = torch.arange(-30.0, 8.0, width, dtype=x.dtype).exp()
    sets = ((torch.arange(1, 1 << n)[:, None] >> torch.arange(n)) & 1).bool()  # (2^n - 1, n)
    rate = sets.to(x.dtype) @ x.exp()
    log_rung = torch.log(-torch.expm1(-x.exp()[:, None] * t))  # (n, T)
    density = (rate.log()[:, None] + t.log()) - rate[:, None] * t + (~sets).to(x.dtype) @ log_rung
    reached = density.exp().sum(1) * width
    p, q = (z.expand(len(sets), n).masked_fill(~sets, -1e9).log_softmax(1) for z in (x, y))
    return (reached * (p.exp() * (p - q)).sum(1)).sum()
