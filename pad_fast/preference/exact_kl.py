"""The exact KL divergences between two Plackett-Luce distributions, in O(n 2^n).

The probability of the next choice depends only on the set of responses that remain. There are 2^n
such sets, where there are n! rankings.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from pad_fast.preference.plackett_luce import RankingOptions, Result, in_blocks, take_rows


class Level(NamedTuple):
    """All C = C(n, m) sets of m responses.

    A transition (j, set) ranks the set's j-th response next; its flat index is j * C + set.
    """

    members: Tensor  # (m, C) the j-th response of each set
    children: Tensor  # (m, C) the set that remains, as a column of the level below
    # (n - m, C) the transitions of the level above that lead to each set; (1, 1) for the full set
    arrivals: Tensor
    by_response: Tensor  # (n, C(n-1, m-1)) the transitions that rank each response


@lru_cache(maxsize=64)
def subset_levels(n: int, device: torch.device) -> list[Level]:
    """The levels m = n, n-1, ..., 2. A set of one response adds nothing to a divergence."""
    sets = torch.arange(1 << n, device=device)
    contains = (sets[:, None] >> sets[:n]) & 1  # (2^n, n)
    size = contains.sum(1)
    column = torch.empty_like(sets)
    for m in range(n + 1):
        column[size == m] = sets[: math.comb(n, m)]
    levels: list[Level] = []
    arrivals = sets[:1, None]
    for m in range(n, 1, -1):
        of_size = sets[size == m]
        members = contains[of_size].nonzero()[:, 1].view(-1, m).T
        children = column[of_size ^ (1 << members)]
        tables = (members, children, arrivals, members.flatten().argsort(stable=True).view(n, -1))
        levels.append(Level(*(table.contiguous() for table in tables)))
        arrivals = children.flatten().argsort(stable=True).view(-1, n - m + 1).T
    return levels


def exact_kl(student: Tensor, teacher: Tensor, options: RankingOptions) -> Result:
    """KL(P_t || P_s) = sum_S w_S KL(softmax_S(t) || softmax_S(s)).

    w_S is the teacher's probability that S is the remaining set at some step.
    """
    n = student.shape[1]
    levels = subset_levels(n, student.device)

    def core(s: Tensor, t: Tensor) -> Result:
        loss, grad, flow = torch.zeros_like(s[0]), torch.zeros_like(s), torch.ones_like(s[:1])
        for level in levels:
            weight = take_rows(flow, level.arrivals).sum(0)  # (C, B)
            logp = take_rows(t, level.members).log_softmax(0)
            logq = take_rows(s, level.members).log_softmax(0)
            p = logp.exp()
            flow = (weight * p).flatten(0, 1)
            loss += (flow * (logp - logq).flatten(0, 1)).sum(0)
            step = (weight * (logq.exp() - p)).flatten(0, 1)
            grad += take_rows(step, level.by_response).sum(1)
        return loss.clamp_(min=0), grad  # only rounding makes it negative

    return in_blocks(core, student, teacher, options, cost=n * math.comb(n, n // 2))


def exact_reverse_kl(student: Tensor, teacher: Tensor, options: RankingOptions) -> Result:
    """KL(P_s || P_t) by the same recursion; its gradient also passes through w, now the student's.

    With p and q the student's and the teacher's softmax on S, and the divergence left at S
    V(S) = sum_i p_i (log p_i/q_i + V(S without i)),

        d KL / d x_i = sum_S w_S p_i (log p_i/q_i + V(S without i) - V(S)).
    """
    n = student.shape[1]
    levels = subset_levels(n, student.device)

    def core(s: Tensor, t: Tensor) -> Result:
        grad, flow = torch.zeros_like(s), torch.ones_like(s[:1])
        steps = []
        for level in levels:
            weight = take_rows(flow, level.arrivals).sum(0)
            logp = take_rows(s, level.members).log_softmax(0)
            p = logp.exp()
            flow = (weight * p).flatten(0, 1)
            ratio = logp - take_rows(t, level.members).log_softmax(0)
            steps.append((level, p, flow, ratio))
        left = torch.zeros_like(s)  # (C, B) nothing is left at the n sets of one response
        for level, p, flow, ratio in reversed(steps):
            to_go = ratio + take_rows(left, level.children)
            left = (p * to_go).sum(0)
            grad += take_rows(flow * (to_go - left).flatten(0, 1), level.by_response).sum(1)
        return left[0].clamp_(min=0), grad

    # All levels are kept until the way back.
    return in_blocks(core, student, teacher, options, cost=n << (n - 1))
