"""The exact Jensen-Shannon divergence between two Plackett-Luce distributions.

The JSD does not add up over the steps of a ranking as a KL does, so all n! rankings count. They are
never listed: for each set A of responses that may come last, the rankings are pairs of an order of
the first half and an order of A, whose log-probabilities add.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, threshold

from pad_fast.preference.plackett_luce import LN2, RankingOptions, Result, in_blocks, take_rows


class Tree(NamedTuple):
    """Ordered choices from some root sets: a node has a child for each response that is left.

    Child (j, node) of a depth has the flat index j * nodes + node.
    """

    members: list[Tensor]  # (width, nodes) for each depth: the responses that are left
    by_response: list[Tensor]  # (n, ...) for each depth: the children that choose each response
    leaves: Tensor  # (leaves,) the set that is left, as a bit mask


def _grow(roots: Tensor, widths: range, n: int) -> Tree:
    tree = Tree([], [], roots)
    for width in widths:
        contains = (tree.leaves[:, None] >> torch.arange(n, device=roots.device)) & 1
        chosen = contains.nonzero()[:, 1].view(-1, width).T
        tree.members.append(chosen.contiguous())
        tree.by_response.append(chosen.flatten().argsort(stable=True).view(n, -1))
        tree = tree._replace(leaves=(tree.leaves ^ (1 << chosen)).flatten())
    return tree


def _descend(x: Tensor, tree: Tree, roots: int) -> tuple[Tensor, list[Tensor]]:
    """Log-probabilities of the leaves (leaves, B) and of every choice on the way."""
    logp, steps = x.new_zeros(roots, x.shape[1]), []
    for members in tree.members:
        steps.append(take_rows(x, members).log_softmax(0))
        logp = (logp + steps[-1]).flatten(0, 1)
    return logp, steps


def _ascend(weight: Tensor, tree: Tree, steps: list[Tensor], grad: Tensor) -> None:
    """Add sum over leaves of weight * d log P(leaf) / dx to ``grad``; weights are (leaves, B).

    The weight of a node is the sum of its children's.
    """
    for step, by_response in zip(reversed(steps), reversed(tree.by_response), strict=True):
        children = weight.view_as(step)
        weight = children.sum(0)
        grad += take_rows((children - weight * step.exp()).flatten(0, 1), by_response).sum(1)


class HalfOrders(NamedTuple):
    """The orders of the first half, and of the rest for each set that the first half leaves."""

    top: Tree  # from the full set: the orders of n // 2 responses that come first
    by_set: Tensor  # (orders, A) the leaves of ``top``, grouped by the set that they leave
    bottom: Tree  # from each of those A sets: the orders of the rest (the last choice is forced)


@lru_cache(maxsize=64)
def half_orders(n: int, device: torch.device) -> HalfOrders:
    """The index tables for groups of ``n`` responses."""
    rest = n - n // 2
    top = _grow(torch.tensor([(1 << n) - 1], device=device), range(n, rest, -1), n)
    by_set = top.leaves.argsort(stable=True).view(math.comb(n, rest), -1).T.contiguous()
    return HalfOrders(top, by_set, bottom=_grow(top.leaves[by_set[0]], range(rest, 1, -1), n))


def _probabilities(logp: Tensor) -> Tensor:
    # Below the square root of the smallest normal number (1e-19 in float32) a half becomes 0. The
    # product of two halves is then never subnormal, which CPUs are slow at.
    floor = math.sqrt(torch.finfo(logp.dtype).tiny)
    return threshold(logp.exp(), floor, 0.0)


def exact_jsd(student: Tensor, teacher: Tensor, options: RankingOptions) -> Result:
    """JSD(P_t, P_s) in nats, in O(n!) sums without a table of rankings.

    log P(tau) = a(order of the first half, A) + b(order of the rest): an outer sum for each set A.
    The gradient is sum_tau c d log P_s(tau) / d x with c = P_s / 2 * log(P_s / M); summed over one
    half, c weighs the other.
    """
    n = student.shape[1]
    top, by_set, bottom = half_orders(n, student.device)
    sets = by_set.shape[1]

    def split(x: Tensor) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        """The two terms of log P(tau), (orders, 1, A, B) and (1, orders, A, B), and their steps."""
        (a, a_steps), (b, b_steps) = _descend(x, top, 1), _descend(x, bottom, sets)
        b = b.view(1, len(b) // sets, sets, x.shape[1])
        return take_rows(a, by_set)[:, None], b, a_steps, b_steps

    def core(s: Tensor, t: Tensor) -> Result:
        a_s, b_s, a_steps, b_steps = split(s)
        a_t, b_t, _, _ = split(t)
        d = (a_s - a_t) + (b_s - b_t)  # log P_s / P_t
        c = (_probabilities(a_s) * _probabilities(b_s)).mul_(logsigmoid(d).add_(LN2))
        # log P_t / M. As log P_s / M less d it would lose its digits where d is large.
        log_v = logsigmoid(d.neg_()).add_(LN2)
        loss = torch.addcmul(c, _probabilities(a_t) * _probabilities(b_t), log_v).sum((0, 1, 2)) / 2
        grad, by_top = torch.zeros_like(s), c.sum(1).flatten(0, 1)
        by_leaf = torch.empty_like(by_top).index_copy_(0, by_set.flatten(), by_top)
        _ascend(by_leaf, top, a_steps, grad)
        _ascend(c.sum(0).flatten(0, 1), bottom, b_steps, grad)
        return loss.clamp_(0, LN2), grad / 2

    return in_blocks(core, student, teacher, options, cost=math.factorial(n))
