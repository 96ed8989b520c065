"""Exact Plackett-Luce divergences between two reward vectors: value and gradient together, dense, no autograd over rankings.

A ranking tau of n responses with rewards r has probability

    P(tau) = prod_k exp(beta * r[tau_k]) / sum_{l >= k} exp(beta * r[tau_l])

and its log-denominators depend only on the SET of the responses that remain: there are 2^n of them, not n!. The functions exact_*
take student and teacher rewards (G, n), n >= 2, float32 or float64, and return the loss (G,) in nats and its gradient in the student's
rewards (G, n).

The cores work on x = beta * r with the responses in front, (n, B), so that every step is a long contiguous row whatever B is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LN2 = math.log(2)
BLOCK = (
    1 << 18
)  # elements of a temporary on a CPU: 1 MiB stays in cache and in the heap, 4 MiB took twice as long for JSD
DEVICE_BLOCK = 1 << 24  # elsewhere, where launches cost more than memory does

Result = tuple[Tensor, Tensor]  # loss (G,), gradient (G, n)
Core = Callable[[Tensor, Tensor], Result]  # student, teacher (n, B) -> loss (B,), gradient (n, B)


@dataclass(frozen=True)
class RankingOptions:
    """What a loss of rankings takes in addition to the rewards."""

    beta: float  # factor of the student's rewards
    teacher_beta: float  # factor of the teacher's
    num_samples: int = 256  # rankings that are drawn for a group, where they are
    seed: int = 0  # 64 bits


def scaled(rewards: Tensor, beta: float) -> Tensor:  # (G, n) -> (n, G)
    """x = beta * r, the best at 0: P is invariant to a shift, and float32 would spend its digits on a common offset."""
    return (beta * (rewards - rewards.amax(1, keepdim=True))).T.contiguous()


def in_blocks(
    core: Core, student: Tensor, teacher: Tensor, options: RankingOptions, cost: int
) -> Result:
    """Run ``core`` on so many prompts at a time that its temporaries, ``cost`` elements a prompt, stay within a block."""
    s = scaled(student, options.beta)
    t = scaled(teacher.to(student.dtype), options.teacher_beta)
    size = max(1, (BLOCK if s.device.type == "cpu" else DEVICE_BLOCK) // cost)
    parts = [
        core(s[:, i : i + size].contiguous(), t[:, i : i + size].contiguous())
        for i in range(0, max(1, s.shape[1]), size)
    ]
    return torch.cat([loss for loss, _ in parts]), torch.cat(
        [grad for _, grad in parts], dim=1
    ).T.mul(options.beta).contiguous()


def _rows(x: Tensor, index: Tensor) -> Tensor:  # (rows, B), (a, b) -> (a, b, B)
    return x.index_select(0, index.flatten()).view(*index.shape, x.shape[1])


class Path:
    """One ranking a column: x (n, ...) in its order, best first. Step k chooses among the positions k and later."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.log_total = (
            x,
            torch.empty_like(x),
        )  # (n, ...); log_total_k = logsumexp_{l >= k} x_l
        self.log_total[-1] = x[-1]
        for k in range(len(x) - 2, -1, -1):
            torch.logaddexp(x[k], self.log_total[k + 1], out=self.log_total[k])
        self.pick = (x - self.log_total).exp()  # the chance that step k chooses what it did
        self.stay = (
            self.log_total[1:] - self.log_total[:-1]
        ).exp()  # and that it does not, (n - 1, ...)

    def logp(self) -> Tensor:  # (...)
        return (self.x - self.log_total).sum(0)

    def mean(self, values: Tensor) -> Tensor:
        """sum_{l >= k} softmax_k(x)_l values_l for every step k, as convex combinations from the end."""
        out = values.clone()
        for k in range(len(values) - 2, -1, -1):
            out[k].mul_(self.pick[k]).addcmul_(self.stay[k], out[k + 1])
        return out

    def flow(self, weights: Tensor) -> Tensor:
        """sum_{k <= j} weights_k softmax_k(x)_j for every position j."""
        out = weights.clone()
        for j in range(1, len(weights)):
            out[j].addcmul_(self.stay[j - 1], out[j - 1])
        return out.mul_(self.pick)
