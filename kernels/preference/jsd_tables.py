"""The sets and orders that preference_jsd walks over, made once for each n and device."""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations, permutations

import torch
from torch import Tensor


def _orders(size: int) -> Tensor:
    """(size, size!): the places of each order, one column an order."""
    return torch.tensor(list(permutations(range(size))), dtype=torch.int32).T.contiguous()


@lru_cache(maxsize=16)
def halves(n: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Sets (C(n, n // 2),) int64 with 4 bits a response, those that are ranked first and the rest, and the orders of either half."""
    first = n // 2
    rows = [(*some, *sorted(set(range(n)) - set(some))) for some in combinations(range(n), first)]
    packed = torch.tensor(
        [sum(response << (4 * place) for place, response in enumerate(row)) for row in rows],
        dtype=torch.int64,
    )
    return packed.to(device), _orders(first).to(device), _orders(n - first).to(device)
