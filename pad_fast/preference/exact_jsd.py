"""The exact Jensen-Shannon divergence between two Plackett-Luce distributions, which meets in the middle."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, threshold

from pad_fast.preference.plackett_luce import LN2, RankingOptions, Result, _rows, in_blocks

# --- meeting in the middle: exact JSD ----------------------------------------------------------------------------------------


class Tree(NamedTuple):
    """Ordered choices from some root sets: each node of a depth has ``width`` responses left and a child for each."""

    members: list[
        Tensor
    ]  # a depth each: (width, nodes); child (j, node) has flat index j * nodes + node
    by_response: list[
        Tensor
    ]  # a depth each: (n, ...) the flat indices of the children that choose each response
    leaves: Tensor  # (leaves,) the set that is left, as a bit mask


def _grow(roots: Tensor, widths: range, n: int) -> Tree:
    tree = Tree([], [], roots)
    for width in widths:
        chosen = (
            ((tree.leaves[:, None] >> torch.arange(n, device=roots.device)) & 1)
            .nonzero()[:, 1]
            .view(-1, width)
            .T
        )
        tree.members.append(chosen.contiguous())
        tree.by_response.append(chosen.flatten().argsort(stable=True).view(n, -1))
        tree = tree._replace(leaves=(tree.leaves ^ (1 << chosen)).flatten())
    return tree


def _descend(x: Tensor, tree: Tree, roots: int) -> tuple[Tensor, list[Tensor]]:
    """Log-probabilities of the leaves (leaves, B) and of every choice on the way."""
    logp, steps = x.new_zeros(roots, x.shape[1]), []
    for members in tree.members:
        steps.append(_rows(x, members).log_softmax(0))
        logp = (logp + steps[-1]).flatten(0, 1)
    return logp, steps


def _ascend(weight: Tensor, tree: Tree, steps: list[Tensor], grad: Tensor) -> None:
    """grad += sum over leaves (leaves, B) of weight * d log P(leaf) / dx; the weights of a node's children add up to its own."""
    for step, by_response in zip(reversed(steps), reversed(tree.by_response), strict=True):
        children = weight.view_as(step)
        weight = children.sum(0)
        grad += _rows((children - weight * step.exp()).flatten(0, 1), by_response).sum(1)


class Halves(NamedTuple):
    top: Tree  # from the full set: which n // 2 responses come first, in which order
    by_set: Tensor  # (orders, A) the top's leaves, grouped by the set that they leave to the bottom
    bottom: (
        Tree  # from each of those sets, A roots: the order of the rest (the last choice is forced)
    )


@lru_cache(maxsize=64)
def halves(n: int, device: torch.device) -> Halves:
    rest = n - n // 2
    top = _grow(torch.tensor([(1 << n) - 1], device=device), range(n, rest, -1), n)
    by_set = top.leaves.argsort(stable=True).view(math.comb(n, rest), -1).T.contiguous()
    return Halves(top, by_set, bottom=_grow(top.leaves[by_set[0]], range(rest, 1, -1), n))


def _probabilities(logp: Tensor) -> Tensor:
    # A half below the root of the smallest normal number, 1e-19 in float32, becomes 0: products of two are never subnormal (slow).
    floor = math.sqrt(torch.finfo(logp.dtype).tiny)
    return threshold(logp.exp(), floor, 0.0)


def exact_jsd(student: Tensor, teacher: Tensor, options: RankingOptions) -> Result:
    """JSD(P_t, P_s) in nats, with log P(tau) = a(order of the first half, set A) + b(order of the rest): an outer sum for each A.

    d JSD / d x = sum_tau c d log P_s(tau) / d x with c = P_s / 2 * log(P_s / M); c is summed over one half to weigh the other.
    """
    n = student.shape[1]
    top, by_set, bottom = halves(n, student.device)
    sets = by_set.shape[1]

    def split(x: Tensor) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        (a, a_steps), (b, b_steps) = _descend(x, top, 1), _descend(x, bottom, sets)
        return (
            _rows(a, by_set)[:, None],
            b.view(1, -1, sets, x.shape[1]),
            a_steps,
            b_steps,
        )  # (O1, 1, A, B), (1, O2, A, B)

    def core(s: Tensor, t: Tensor) -> Result:
        a_s, b_s, a_steps, b_steps = split(s)
        a_t, b_t, _, _ = split(t)
        d = (a_s - a_t) + (b_s - b_t)  # log P_s / P_t
        c = (_probabilities(a_s) * _probabilities(b_s)).mul_(logsigmoid(d).add_(LN2))
        log_v = logsigmoid(d.neg_()).add_(
            LN2
        )  # log P_t / M; by a subtraction of d it would lose its digits where d is large
        loss = torch.addcmul(c, _probabilities(a_t) * _probabilities(b_t), log_v).sum((0, 1, 2)) / 2
        grad, by_top = torch.zeros_like(s), c.sum(1).flatten(0, 1)
        _ascend(
            torch.empty_like(by_top).index_copy_(0, by_set.flatten(), by_top), top, a_steps, grad
        )
        _ascend(c.sum(0).flatten(0, 1), bottom, b_steps, grad)
        return loss.clamp_(0, LN2), grad / 2

    return in_blocks(core, student, teacher, options, cost=math.factorial(n))
