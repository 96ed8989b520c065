"""Unbiased estimates of the divergences from sampled rankings."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pad_fast.preference.plackett_luce import LN2, Core, Path, RankingOptions, Result, in_blocks


def _draw(x: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """``num`` rankings for each group by Gumbel's trick: (n, B) -> (n, B, num), best first."""
    exponential = torch.empty(*x.shape, num, dtype=x.dtype, device=x.device)
    exponential.exponential_(generator=generator)
    return (x[..., None] - exponential.log_()).argsort(dim=0, descending=True)


def _along(x: Tensor, order: Tensor) -> Path:
    return Path(x[..., None].expand_as(order).gather(0, order))


def _average(grad: Tensor, order: Tensor) -> Tensor:  # by position (n, B, K) -> by response (n, B)
    return torch.empty_like(grad).scatter_(0, order, grad).mean(2)


def _sampled(core: Core, student: Tensor, teacher: Tensor, options: RankingOptions) -> Result:
    return in_blocks(core, student, teacher, options, cost=student.shape[1] * options.num_samples)


def sampled_kl(
    student: Tensor, teacher: Tensor, options: RankingOptions, generator: torch.Generator
) -> Result:
    """KL(P_t || P_s): mean over rankings drawn from P_t of sum_k KL(softmax_k(t) || softmax_k(s)).

    It has the same mean as the log-ratio of the drawn rankings, and a fraction of the variance
    (Rao-Blackwell, step by step).
    """

    def core(s: Tensor, t: Tensor) -> Result:
        order = _draw(t, options.num_samples, generator)
        pt, ps = _along(t, order), _along(s, order)
        kl = pt.mean(pt.x - ps.x) - (pt.log_total - ps.log_total)
        ones = torch.ones_like(kl)
        return kl.sum(0).mean(1).clamp_(min=0), _average(ps.flow(ones) - pt.flow(ones), order)

    return _sampled(core, student, teacher, options)


def sampled_reverse_kl(
    student: Tensor, teacher: Tensor, options: RankingOptions, generator: torch.Generator
) -> Result:
    """KL(P_s || P_t) from rankings drawn from the student.

    The gradient is that of each step's KL, plus the score of each choice times the divergence still
    to go, less the mean of that over the group's other draws.
    """
    num = options.num_samples

    def core(s: Tensor, t: Tensor) -> Result:
        order = _draw(s, num, generator)
        ps, pt = _along(s, order), _along(t, order)
        log_total = ps.log_total - pt.log_total
        kl = ps.mean(ps.x - pt.x) - log_total
        total = kl.sum(0)
        to_go = total - kl.cumsum(0)
        advantage = (to_go - to_go.mean(2, keepdim=True)) * (num / (num - 1))
        grad = (
            advantage
            + (ps.x - pt.x) * ps.flow(torch.ones_like(kl))
            - ps.flow(log_total + kl + advantage)
        )
        return total.mean(1).clamp_(min=0), _average(grad, order)

    return _sampled(core, student, teacher, options)


def sampled_jsd(
    student: Tensor, teacher: Tensor, options: RankingOptions, generator: torch.Generator
) -> Result:
    """JSD(P_t, P_s) from draws of M, half of them (rounded up) from each side: P / M is at most 2.

    The gradient is the weighted score, the mean of P_s / (2 M) * (log(P_s / M) - b) * d log P_s /
    dx. The baseline b estimates the loss's student side from the group's other draws. It does not
    change the mean, and removes a tenth to a half of the variance.
    """
    pairs = (options.num_samples + 1) // 2

    def core(s: Tensor, t: Tensor) -> Result:
        order = torch.cat([_draw(t, pairs, generator), _draw(s, pairs, generator)], dim=2)
        ps, pt = _along(s, order), _along(t, order)
        d = ps.logp() - pt.logp()
        log_u, log_v = logsigmoid(d) + LN2, logsigmoid(-d) + LN2
        u, v = log_u.exp(), log_v.exp()
        loss = (u * log_u + v * log_v).mean(1) / 2
        # The baseline of a draw leaves out its whole pair, one draw of each side. It is then
        # independent of both; if only the draw were left out, its mean would depend on the side.
        by_pair = (u * log_u).unflatten(1, (2, pairs)).mean(1)
        b = (by_pair.sum(1, keepdim=True) - by_pair) / (pairs - 1)
        c = u * (log_u - b.repeat(1, 2))
        return loss.clamp_(0, LN2), _average(c * (1 - ps.flow(torch.ones_like(ps.x))), order) / 2

    return _sampled(core, student, teacher, options)
