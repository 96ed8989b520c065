"""The sets and orders that preference_jsd walks over, made once for each n and device."""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations, permutations

import torch
from torch import Tensor


def _orders(size: int) -> Tensor:
    """All orders of ``size`` things, a column each: which thing is at each place."""
    return torch.tensor(list(permutations(range(size))), dtype=torch.int32).T.contiguous()


@lru_cache(maxsize=16)
def sets_and_orders(n: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The sets of K = n // 2 responses that can be ranked first, and the orders of either half.

    Args:
        n: Responses of a group.
        device: Where the tables are kept.

    Returns:
        sets: (C(n, K),) int64. Each holds all n responses in 4 bits each: those of the set, from
            the lowest bits up, then the rest.
        first: (K, K!) int32, the orders of those that are ranked first.
        rest: (n - K, (n - K)!) int32, the orders of the rest.
    """
    size = n // 2
    rows = [(*some, *sorted(set(range(n)) - set(some))) for some in combinations(range(n), size)]
    sets = [sum(response << (4 * place) for place, response in enumerate(row)) for row in rows]
    packed = torch.tensor(sets, dtype=torch.int64)
    return packed.to(device), _orders(size).to(device), _orders(n - size).to(device)
