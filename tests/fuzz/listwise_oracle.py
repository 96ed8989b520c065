"""Losses over rankings in float64: by enumeration, and for the KLs of many responses by recursion.

Gradients are PyTorch's own, of these definitions. The bounds count roundings of unit roundoff u:
with x = beta * r and X the largest |x|, a log-probability x_i - logsumexp(x) within a set is off by
at most (4 X + n) u, one of a whole ranking by n times that; a probability is off by that
relatively.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import combinations, permutations

import torch
from torch import Tensor

ENUMERATED = 6  # up to here a ranking's probability is computed as it is written
LN2 = math.log(2)


@lru_cache
def _rankings(n: int) -> Tensor:
    return torch.tensor(list(permutations(range(n))))  # (n!, n)


@lru_cache
def _remaining(n: int) -> Tensor:
    """(n!, n) what remains at each step of each ranking: a set as n bits, less one."""
    bits = 1 << _rankings(n)
    return bits.flip(1).cumsum(1).flip(1) - 1


@lru_cache
def _sets(n: int) -> list[tuple[Tensor, Tensor]]:
    """For each size k: members (C, k) of its sets, and the row of the set without each member."""
    levels, before = [], {(): 0}
    for k in range(1, n + 1):
        sets = list(combinations(range(n), k))
        without = [[before[(*s[:i], *s[i + 1 :])] for i in range(k)] for s in sets]
        levels.append((torch.tensor(sets), torch.tensor(without)))
        before = {s: row for row, s in enumerate(sets)}
    return levels


def ranking_logprobs(x: Tensor) -> Tensor:
    """(B, n) -> (B, n!)."""
    n = x.shape[1]
    if n <= ENUMERATED:
        ranked = x[:, _rankings(n)]
        steps = [ranked[..., k] - ranked[..., k:].logsumexp(-1) for k in range(n)]
        return torch.stack(steps).sum(0)
    sets = ((torch.arange(1, 1 << n)[:, None] >> torch.arange(n)) & 1).bool()
    denominators = x[:, None].masked_fill(~sets, -torch.inf).logsumexp(-1)  # (B, 2^n - 1)
    return x.sum(1, keepdim=True) - denominators[:, _remaining(n)].sum(-1)


def kl(x: Tensor, y: Tensor) -> Tensor:
    """KL of the rankings of x (B, n) from those of y: what is still to come from each set on."""
    n = x.shape[1]
    if n <= ENUMERATED:
        p, q = ranking_logprobs(x), ranking_logprobs(y)
        return (p.exp() * (p - q)).sum(1)
    to_come = x.new_zeros(len(x), 1)
    for members, without in _sets(n):
        p, q = x[:, members].log_softmax(-1), y[:, members].log_softmax(-1)
        to_come = (p.exp() * (p - q + to_come[:, without])).sum(-1)
    return to_come[:, 0]


def jsd(x: Tensor, y: Tensor) -> Tensor:
    p, q = ranking_logprobs(x), ranking_logprobs(y)
    m = torch.logaddexp(p, q) - LN2
    return (p.exp() * (p - m) + q.exp() * (q - m)).sum(1) / 2


def vpd(x: Tensor, teacher: Tensor) -> Tensor:
    """-log P of the teacher's order, ties by index."""
    orders = [
        sorted(range(len(row)), key=row.tolist().__getitem__, reverse=True) for row in teacher
    ]
    ranked = x.gather(1, torch.tensor(orders))
    steps = [ranked[:, k:].logsumexp(1) - ranked[:, k] for k in range(x.shape[1])]
    return torch.stack(steps).sum(0)


def loss_oracle(
    kind: str, student: Tensor, teacher: Tensor, beta: float, teacher_beta: float
) -> tuple[Tensor, Tensor]:
    """Losses (B,) and their gradients in the student's rewards (B, n), all in float64."""
    with torch.enable_grad():
        leaf = student.detach().double().requires_grad_()
        x, y = beta * leaf, teacher_beta * teacher.double()
        if kind == "vpd":
            loss = vpd(x, teacher)
        elif kind == "jsd":
            loss = jsd(x, y)
        else:
            loss = kl(y, x) if kind == "kl" else kl(x, y)
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    return loss.detach(), gradient


def loss_bounds(
    kind: str, student: Tensor, teacher: Tensor, beta: float, teacher_beta: float, unit: float
) -> tuple[Tensor, Tensor]:
    """How far rounding may move each loss (B,) and each entry of its gradient (B, 1)."""
    n = student.shape[1]
    x, y = beta * student.double(), teacher_beta * teacher.double()
    xs, ys = x.abs().amax(1), y.abs().amax(1)
    if kind == "vpd":
        value, slope = n * (6 * xs + 2 * n), n * (4 * xs + n + 4)
    elif kind == "jsd":
        # |d JSD| <= sum of P |log P / M| times the error of log P, and a sum of n! terms is 1.
        one = n * (4 * (xs + ys) + n + 8)
        value, slope = 2 * one + 8 * math.factorial(min(n, 10)) ** 0.5, 4 * n * one
    else:
        # Every log-ratio of a choice lies within the range of x - y; n of them make a ranking's.
        most = (x - y).amax(1) - (x - y).amin(1)
        source = ys if kind == "kl" else xs
        relative = n * (4 * source + n + 4)  # a set's weight is a product of n probabilities
        ratio = 4 * (xs + ys) + n + 4
        value = n * (2 * ratio + relative * most)
        slope = n * (ratio + relative) + (
            0 if kind == "kl" else (n + 1) * relative * most + n * ratio
        )
    return unit * value, (unit * beta * slope)[:, None]
