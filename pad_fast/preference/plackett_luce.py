"""Plackett-Luce distributions over rankings: conventions and parts that the losses share.

A ranking tau of n responses with rewards r has probability

    P(tau) = prod_k exp(beta * r[tau_k]) / sum_{l >= k} exp(beta * r[tau_l]).

A loss takes rewards (G, n), n >= 2, and returns losses (G,) in nats with their gradient (G, n) in
the student's rewards. Inside, x = beta * r has the responses first, (n, B), so that each step
reads long contiguous rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pad_fast.device import waits_for_values

LN2 = math.log(2)
# Elements of a temporary. On a CPU, 1 MiB stays in cache; 4 MiB took twice as long for the JSD.
# On a GPU launches cost more than memory does.
CPU_BLOCK, GPU_BLOCK = 1 << 18, 1 << 24

Result = tuple[Tensor, Tensor]  # losses (G,), gradient (G, n)
Core = Callable[[Tensor, Tensor], Result]  # student, teacher (n, B) -> losses (B,), gradient (n, B)


class RankingOptions(NamedTuple):
    """What a loss of rankings takes in addition to the rewards: each a number or a word.

    The schema of ``pad_fast::preference_loss`` is made of these fields.
    """

    beta: float  # factor of the student's rewards
    teacher_beta: float  # factor of the teacher's rewards
    num_samples: int = 256  # rankings to draw for each group, if they are drawn
    seed: int = 0  # 64 bits
    gamma: float = 0.0  # the margin of a pair, in nats
    pairs: str = "best_worst"  # or "all": which pairs of a group are compared


def scaled(rewards: Tensor, beta: float) -> Tensor:  # (G, n) -> (n, G)
    """x = beta * r, shifted so that the best is 0.

    The distribution does not depend on a shift, but float32 would spend its digits on it.
    """
    return (beta * (rewards - rewards.amax(1, keepdim=True))).T.contiguous()


def in_blocks(
    core: Core, student: Tensor, teacher: Tensor, options: RankingOptions, cost: int
) -> Result:
    """Run ``core`` on as many groups at a time as keep its temporaries within a block.

    ``cost`` is the number of elements that a group adds to the largest temporary.
    """
    s = scaled(student, options.beta)
    t = scaled(teacher.to(student.dtype), options.teacher_beta)
    size = max(1, (GPU_BLOCK if waits_for_values(s.device) else CPU_BLOCK) // cost)
    parts = [
        core(s[:, i : i + size].contiguous(), t[:, i : i + size].contiguous())
        for i in range(0, max(1, s.shape[1]), size)
    ]
    grad = torch.cat([grad for _, grad in parts], dim=1)
    return torch.cat([loss for loss, _ in parts]), grad.T.mul(options.beta).contiguous()


def take_rows(x: Tensor, index: Tensor) -> Tensor:  # (rows, B), (a, b) -> (a, b, B)
    """The rows of ``x`` at each index."""
    return x.index_select(0, index.flatten()).view(*index.shape, x.shape[1])


class Path:
    """Rankings, one in each column: x (n, ...) in ranked order, best first.

    Step k chooses among the positions k and later.
    """

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.log_total = torch.empty_like(x)  # log_total[k] = logsumexp_{l >= k} x[l]
        self.log_total[-1] = x[-1]
        for k in range(len(x) - 2, -1, -1):
            torch.logaddexp(x[k], self.log_total[k + 1], out=self.log_total[k])
        # The probability that step k chooses position k, and that it chooses a later one (n - 1,
        # ...).
        self.pick = (x - self.log_total).exp()
        self.stay = (self.log_total[1:] - self.log_total[:-1]).exp()

    def logp(self) -> Tensor:  # (...)
        """The log-probability of each ranking."""
        return (self.x - self.log_total).sum(0)

    def mean(self, values: Tensor) -> Tensor:
        """sum_{l >= k} softmax_k(x)_l values_l for each step k, as convex combinations."""
        out = values.clone()
        for k in range(len(values) - 2, -1, -1):
            out[k].mul_(self.pick[k]).addcmul_(self.stay[k], out[k + 1])
        return out

    def flow(self, weights: Tensor) -> Tensor:
        """sum_{k <= j} weights_k softmax_k(x)_j for each position j."""
        out = weights.clone()
        for j in range(1, len(weights)):
            out[j].addcmul_(self.stay[j - 1], out[j - 1])
        return out.mul_(self.pick)
