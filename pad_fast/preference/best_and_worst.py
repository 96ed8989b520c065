"""Which responses are the best and the worst of a prompt, where rewards are equal too."""

from __future__ import annotations

import torch
from torch import Tensor


def best_and_worst(teacher: Tensor, live: Tensor | None = None) -> Tensor:  # (P, N) -> (P, 2)
    """The places of the first and the last response of the teacher's ranking, ties by index.

    Of equal best responses it is therefore the first, and of equal worst ones the last.

    Args:
        teacher: rewards.
        live: True for the responses that are ranked, None for all; the others may hold NaN.

    Example:
        >>> best_and_worst(torch.tensor([[1.0, 3.0, 3.0, 1.0]]))
        tensor([[1, 3]])
    """
    dead = torch.zeros_like(teacher, dtype=torch.bool) if live is None else ~live
    best = teacher.masked_fill(dead, -torch.inf).argmax(1)
    from_behind = teacher.masked_fill(dead, torch.inf).flip(1).argmin(1)
    return torch.stack([best, teacher.shape[1] - 1 - from_behind], 1)
