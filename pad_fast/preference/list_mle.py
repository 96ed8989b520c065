"""ListMLE: the negative log-likelihood of the teacher's ranking."""

from __future__ import annotations

import torch
from torch import Tensor

from pad_fast.preference.plackett_luce import Path, RankingOptions, Result, scaled


def list_mle(student: Tensor, teacher: Tensor, options: RankingOptions) -> Result:
    """-log P_s of the responses in the order of the teacher's rewards, ties by index.

    The gradient at position j is sum_{k <= j} softmax_k(x)_j - 1.
    """
    order = teacher.argsort(dim=1, descending=True, stable=True).T  # (n, G)
    path = Path(scaled(student, options.beta).gather(0, order))
    grad = path.flow(torch.ones_like(path.x)).sub_(1).mul_(options.beta)
    return -path.logp(), torch.empty_like(grad).scatter_(0, order, grad).T.contiguous()
