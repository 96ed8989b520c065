"""Other losses of the same rewards, for comparison and for use, one function for each.

Each takes rewards of groups, student (G, n) and teacher (G, n), and returns losses (G,); autograd
differentiates it in the student's rewards. Below, x = beta * student and t = teacher. With an
anchor the student's rewards are log-ratios to the model that the training started from.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pad_fast.preference.best_and_worst import best_and_worst
from pad_fast.preference.plackett_luce import RankingOptions


def list_net(student: Tensor, teacher: Tensor, options: RankingOptions) -> Tensor:
    """ListNet, the cross-entropy of the distributions over the best response.

    -sum_i softmax(teacher_beta * t)_i log softmax(x)_i

    Source: Cao et al., Learning to Rank: From Pairwise Approach to Listwise Approach, ICML 2007,
    with top-one probabilities.
    """
    wanted = (options.teacher_beta * teacher.to(student.dtype)).softmax(1)
    return -(wanted * (options.beta * student).log_softmax(1)).sum(1)


def pair_logistic(student: Tensor, teacher: Tensor, options: RankingOptions) -> Tensor:
    """The logistic loss of pairs, -log sigmoid(x_w - x_l - gamma) for t_w > t_l.

    The pairs are the first and the last response of the teacher's ranking, or all, averaged. Equal
    rewards of the teacher are no pair; the loss of a group without one is 0.

    Source: DPO (arXiv 2305.18290) with an anchor, sums over tokens and gamma = 0; SimPO (arXiv
    2405.14734) with means over tokens and no anchor.
    """
    x = options.beta * student
    if options.pairs == "best_worst":
        ends = best_and_worst(teacher)
        (best, worst), (high, low) = x.gather(1, ends).T, teacher.gather(1, ends).T
        return -logsigmoid(best - worst - options.gamma).where(high > low, 0)
    better = _better(teacher)
    losses = -logsigmoid(x[:, :, None] - x[:, None, :] - options.gamma).where(better, 0)
    return losses.sum((1, 2)) / better.sum((1, 2)).clamp(min=1)


def rrhf(student: Tensor, teacher: Tensor, options: RankingOptions) -> Tensor:
    """RRHF's ranking part, sum over t_i < t_j of max(0, r_i - r_j), r being the student's rewards.

    RRHF adds the negative likelihood of the best response, which is the table's default here.

    Source: Yuan et al., arXiv 2304.05302, equations 2 and 3, with means over tokens.
    """
    # [g, j, i] = r_i - r_j. Equal rewards pull at neither: the slope of relu is 0 there.
    excess = (student[:, None, :] - student[:, :, None]).relu()
    return excess.where(_better(teacher), 0).sum((1, 2))


def pro(student: Tensor, teacher: Tensor, options: RankingOptions) -> Tensor:
    """PRO's ranking part, for responses in the order of the teacher's rewards, best first.

    -sum_{k < n} log( e^{x_k d_kk} / (e^{x_k d_kk} + sum_{i > k} e^{x_i d_ki}) ), with
    d_ki = teacher_beta * (t_k - t_i), the inverse of PRO's temperature, and d_kk = max_i d_ki

    PRO adds the negative likelihood of the best response, which is the table's default here.

    Source: Song et al., arXiv 2306.17492, equations 7 to 9, with means over tokens.
    """
    n = student.shape[1]
    order = teacher.argsort(dim=1, descending=True, stable=True)
    r, t = student.gather(1, order), teacher.to(student.dtype).gather(1, order)
    # z[g, k, i] = x_i d_ki - x_k d_kk, in which only differences of rewards meet: of two products
    # float32 would keep nothing but the rounding where rewards are far from 0.
    apart = t[:, :-1, None] - t[:, None, :]
    wins = apart * (r[:, None, :] - r[:, :-1, None])
    z = options.beta * options.teacher_beta * (wins + (t[:, -1:] - t)[:, None, :] * r[:, :-1, None])
    later = torch.ones(n - 1, n, dtype=torch.bool, device=r.device).triu(1)
    others = z.masked_fill(~later, -torch.inf).logsumexp(2)
    return -logsigmoid(-others).sum(1)


def lambda_loss(student: Tensor, teacher: Tensor, options: RankingOptions) -> Tensor:
    """LambdaLoss, the logistic loss of all pairs, each weighted by what it adds to the DCG.

    sum over psi_i > psi_j of |G_i - G_j| |1/D_i - 1/D_j| log(1 + e^{x_j - x_i}), with
    G = 2^psi - 1, D = log2(1 + rank by x), and psi_i the mean over the other responses j of
    sigmoid(teacher_beta * (t_i - t_j)). Weights are constants.

    Source: LiPO-lambda, Liu et al., arXiv 2402.01878, section 4.3, where rewards have an anchor.
    """
    x, t = options.beta * student, options.teacher_beta * teacher.to(student.dtype)
    n = x.shape[1]
    wins = (t[:, :, None] - t[:, None, :]).sigmoid()
    gain = 2 ** ((wins.sum(2) - 0.5) / (n - 1))  # without the pair of a response with itself
    rank = x.detach().argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    discount = 1 / torch.log2(2.0 + rank.to(x.dtype))
    weight = (gain[:, :, None] - gain[:, None, :]) * (discount[:, :, None] - discount[:, None, :])
    losses = -weight.abs() * logsigmoid(x[:, :, None] - x[:, None, :])
    return losses.where(_better(teacher), 0).sum((1, 2))


def rft(student: Tensor, teacher: Tensor, options: RankingOptions) -> Tensor:
    """Rejection-sampling fine-tuning: -r of the response that the teacher rewards most.

    With means over tokens it is SFT on the best of n, in nats per token; ties go to the first.

    Source: Yuan et al., arXiv 2308.01825; best-of-n distillation.
    """
    best = teacher.argsort(dim=1, descending=True, stable=True)[:, :1]
    return -student.gather(1, best)[:, 0]


def _better(teacher: Tensor) -> Tensor:  # (G, n) -> (G, n, n) bool
    """Whether the teacher prefers response i to response j, at [g, i, j]."""
    return teacher[:, :, None] > teacher[:, None, :]
