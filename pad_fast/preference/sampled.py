"""Losses along single rankings, best first: ListMLE, and the unbiased estimates of the divergences from sampled rankings.

The conventions are those of :mod:`pad_fast.preference.plackett_luce`: rewards (G, n) in, loss (G,) and gradient (G, n) out, cores on x (n, B).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pad_fast.preference.plackett_luce import LN2, Core, Path, RankingOptions, Result, in_blocks


def _draw(x: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """``num`` rankings a prompt from P, by Gumbel's trick: (n, B) -> (n, B, num) responses, best first."""
    exponential = torch.empty(*x.shape, num, dtype=x.dtype, device=x.device).exponential_(
        generator=generator
    )
    return (x[..., None] - exponential.log_()).argsort(dim=0, descending=True)


def _along(x: Tensor, order: Tensor) -> Path:
    return Path(x[..., None].expand_as(order).gather(0, order))


def _average(grad: Tensor, order: Tensor) -> Tensor:  # by position (n, B, K) -> by response (n, B)
    return torch.empty_like(grad).scatter_(0, order, grad).mean(2)


def _sampled(core: Core, student: Tensor, teacher: Tensor, options: RankingOptions) -> Result:
    return in_blocks(core, student, teacher, options, cost=student.shape[1] * options.num_samples)


def sampled_kl(
    student: Tensor,
    teacher: Tensor,
    options: RankingOptions,
    generator: torch.Generator,
) -> Result:
    """KL(P_t || P_s): the mean over drawn rankings of sum_k KL(softmax_k(t) || softmax_k(s)), and its derivative. Unbiased.

    Against the log-ratio of the whole ranking this has the same mean and a fraction of the variance (Rao-Blackwell, step by step).
    """

    def core(s: Tensor, t: Tensor) -> Result:
        order = _draw(t, options.num_samples, generator)
        pt, ps = _along(t, order), _along(s, order)
        kl = pt.mean(pt.x - ps.x) - (pt.log_total - ps.log_total)
        ones = torch.ones_like(kl)
        return kl.sum(0).mean(1).clamp_(min=0), _average(ps.flow(ones) - pt.flow(ones), order)

    return _sampled(core, student, teacher, options)


def sampled_reverse_kl(
    student: Tensor,
    teacher: Tensor,
    options: RankingOptions,
    generator: torch.Generator,
) -> Result:
    """KL(P_s || P_t) from the student's own draws. Unbiased.

    The gradient is that of each step's KL plus the score of each choice times the divergence still to go,
    less its mean over the prompt's other draws.
    """

    def core(s: Tensor, t: Tensor) -> Result:
        order = _draw(s, options.num_samples, generator)
        ps, pt = _along(s, order), _along(t, order)
        log_total = ps.log_total - pt.log_total
        kl = ps.mean(ps.x - pt.x) - log_total
        total = kl.sum(0)
        to_go = total - kl.cumsum(0)
        advantage = (to_go - to_go.mean(2, keepdim=True)) * (
            options.num_samples / (options.num_samples - 1)
        )
        grad = (
            advantage
            + (ps.x - pt.x) * ps.flow(torch.ones_like(kl))
            - ps.flow(log_total + kl + advantage)
        )
        return total.mean(1).clamp_(min=0), _average(grad, order)

    return _sampled(core, student, teacher, options)


def sampled_jsd(
    student: Tensor,
    teacher: Tensor,
    options: RankingOptions,
    generator: torch.Generator,
) -> Result:
    """JSD(P_t, P_s) from draws of M, half of them (rounded up) from each side, so that P / M never exceeds 2. Unbiased.

    The gradient is the weighted score, mean of P_s / (2 M) * (log(P_s / M) - b) * d log P_s / dx, where b is an estimate of the loss's
    student side from the prompt's other draws: it leaves the mean alone and takes a tenth to a half of the variance.
    """
    pairs = (options.num_samples + 1) // 2

    def core(s: Tensor, t: Tensor) -> Result:
        order = torch.cat([_draw(t, pairs, generator), _draw(s, pairs, generator)], dim=2)
        ps, pt = _along(s, order), _along(t, order)
        d = ps.logp() - pt.logp()
        log_u, log_v = logsigmoid(d) + LN2, logsigmoid(-d) + LN2
        u, v = log_u.exp(), log_v.exp()
        loss = (u * log_u + v * log_v).mean(1) / 2
        # b leaves out whole pairs, so that it is independent of both; without one side only, its mean would depend on the side.
        by_pair = (u * log_u).unflatten(1, (2, pairs)).mean(1)
        b = (by_pair.sum(1, keepdim=True) - by_pair) / (pairs - 1)
        c = u * (log_u - b.repeat(1, 2))
        return loss.clamp_(0, LN2), _average(c * (1 - ps.flow(torch.ones_like(ps.x))), order) / 2

    return _sampled(core, student, teacher, options)
