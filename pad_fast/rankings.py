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
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, threshold

LN2 = math.log(2)
BLOCK = 1 << 18  # elements of a temporary on a CPU: 1 MiB stays in cache and in the heap, 4 MiB took twice as long for JSD
DEVICE_BLOCK = 1 << 24  # elsewhere, where launches cost more than memory does

Result = tuple[Tensor, Tensor]  # loss (G,), gradient (G, n)
Core = Callable[[Tensor, Tensor], Result]  # student, teacher (n, B) -> loss (B,), gradient (n, B)


def scaled(rewards: Tensor, beta: float) -> Tensor:  # (G, n) -> (n, G)
    """x = beta * r, the best at 0: P is invariant to a shift, and float32 would spend its digits on a common offset."""
    return (beta * (rewards - rewards.amax(1, keepdim=True))).T.contiguous()


def in_blocks(core: Core, student: Tensor, teacher: Tensor, beta: float, teacher_beta: float, cost: int) -> Result:
    """Run ``core`` on so many prompts at a time that its temporaries, ``cost`` elements a prompt, stay within a block."""
    s, t = scaled(student, beta), scaled(teacher, teacher_beta)
    size = max(1, (BLOCK if s.device.type == "cpu" else DEVICE_BLOCK) // cost)
    parts = [core(s[:, i : i + size].contiguous(), t[:, i : i + size].contiguous()) for i in range(0, max(1, s.shape[1]), size)]
    return torch.cat([loss for loss, _ in parts]), torch.cat([grad for _, grad in parts], dim=1).T.mul(beta).contiguous()


def _rows(x: Tensor, index: Tensor) -> Tensor:  # (rows, B), (a, b) -> (a, b, B)
    return x.index_select(0, index.flatten()).view(*index.shape, x.shape[1])


# --- the lattice of remaining sets: exact KL ---------------------------------------------------------------------------------


class Level(NamedTuple):
    """All C = C(n, m) sets of m responses. A transition (j, set) ranks the set's j-th response next; it has flat index j * C + set."""

    members: Tensor  # (m, C) the set's j-th response
    children: Tensor  # (m, C) the set that remains, as a column of the level below
    arrivals: Tensor  # (n - m, C) the transitions of the level above that lead to this set; (1, 1) for the full set
    by_response: Tensor  # (n, C(n-1, m-1)) the transitions that rank each response


@lru_cache(maxsize=64)
def lattice(n: int, device: torch.device) -> list[Level]:
    """The levels m = n, n-1, ..., 2: sets of one response add nothing to a divergence."""
    sets = torch.arange(1 << n, device=device)
    contains = (sets[:, None] >> sets[:n]) & 1  # (2^n, n)
    size = contains.sum(1)
    column = torch.empty_like(sets)
    for m in range(n + 1):
        column[size == m] = sets[: math.comb(n, m)]
    levels: list[Level] = []
    arrivals = sets[:1, None]
    for m in range(n, 1, -1):
        of_size = sets[size == m]
        members = contains[of_size].nonzero()[:, 1].view(-1, m).T
        children = column[of_size ^ (1 << members)]
        tables = (members, children, arrivals, members.flatten().argsort(stable=True).view(n, -1))
        levels.append(Level(*(table.contiguous() for table in tables)))
        arrivals = children.flatten().argsort(stable=True).view(-1, n - m + 1).T
    return levels


def exact_kl(student: Tensor, teacher: Tensor, beta: float, teacher_beta: float) -> Result:
    """KL(P_t || P_s) = sum_S w_S KL(softmax_S(t) || softmax_S(s)), w_S = P_t(S is the remaining set at some step). O(n 2^n)."""
    n = student.shape[1]
    levels = lattice(n, student.device)

    def core(s: Tensor, t: Tensor) -> Result:
        loss, grad, flow = torch.zeros_like(s[0]), torch.zeros_like(s), torch.ones_like(s[:1])
        for level in levels:
            weight = _rows(flow, level.arrivals).sum(0)  # (C, B)
            logp, logq = _rows(t, level.members).log_softmax(0), _rows(s, level.members).log_softmax(0)
            p = logp.exp()
            flow = (weight * p).flatten(0, 1)
            loss += (flow * (logp - logq).flatten(0, 1)).sum(0)
            grad += _rows((weight * (logq.exp() - p)).flatten(0, 1), level.by_response).sum(1)
        return loss.clamp_(min=0), grad  # not negative but for rounding

    return in_blocks(core, student, teacher, beta, teacher_beta, cost=n * math.comb(n, n // 2))


def exact_reverse_kl(student: Tensor, teacher: Tensor, beta: float, teacher_beta: float) -> Result:
    """KL(P_s || P_t) by the same recursion; its gradient also flows through w, which is the student's now. O(n 2^n).

    With p, q the student's and the teacher's softmax on S and V(S) = sum_i p_i (log p_i/q_i + V(S without i)) the divergence left at S,
        d KL / d x_i = sum_S w_S p_i (log p_i/q_i + V(S without i) - V(S)).
    """
    n = student.shape[1]
    levels = lattice(n, student.device)

    def core(s: Tensor, t: Tensor) -> Result:
        grad, flow = torch.zeros_like(s), torch.ones_like(s[:1])
        steps = []
        for level in levels:
            weight = _rows(flow, level.arrivals).sum(0)
            logp = _rows(s, level.members).log_softmax(0)
            p = logp.exp()
            flow = (weight * p).flatten(0, 1)
            steps.append((level, p, flow, logp - _rows(t, level.members).log_softmax(0)))
        left = torch.zeros_like(s)  # (C, B): nothing is left at the n sets of one response
        for level, p, flow, ratio in reversed(steps):
            to_go = ratio + _rows(left, level.children)
            left = (p * to_go).sum(0)
            grad += _rows(flow * (to_go - left).flatten(0, 1), level.by_response).sum(1)
        return left[0].clamp_(min=0), grad

    return in_blocks(core, student, teacher, beta, teacher_beta, cost=n << (n - 1))  # all levels are kept


# --- meeting in the middle: exact JSD ----------------------------------------------------------------------------------------


class Tree(NamedTuple):
    """Ordered choices from some root sets: each node of a depth has ``width`` responses left and a child for each."""

    members: list[Tensor]  # a depth each: (width, nodes); child (j, node) has flat index j * nodes + node
    by_response: list[Tensor]  # a depth each: (n, ...) the flat indices of the children that choose each response
    leaves: Tensor  # (leaves,) the set that is left, as a bit mask


def _grow(roots: Tensor, widths: range, n: int) -> Tree:
    tree = Tree([], [], roots)
    for width in widths:
        chosen = ((tree.leaves[:, None] >> torch.arange(n, device=roots.device)) & 1).nonzero()[:, 1].view(-1, width).T
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
    bottom: Tree  # from each of those sets, A roots: the order of the rest (the last choice is forced)


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


def exact_jsd(student: Tensor, teacher: Tensor, beta: float, teacher_beta: float) -> Result:
    """JSD(P_t, P_s) in nats, with log P(tau) = a(order of the first half, set A) + b(order of the rest): an outer sum for each A.

    d JSD / d x = sum_tau c d log P_s(tau) / d x with c = P_s / 2 * log(P_s / M); c is summed over one half to weigh the other.
    """
    n = student.shape[1]
    top, by_set, bottom = halves(n, student.device)
    sets = by_set.shape[1]

    def split(x: Tensor) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        (a, a_steps), (b, b_steps) = _descend(x, top, 1), _descend(x, bottom, sets)
        return _rows(a, by_set)[:, None], b.view(1, -1, sets, x.shape[1]), a_steps, b_steps  # (O1, 1, A, B), (1, O2, A, B)

    def core(s: Tensor, t: Tensor) -> Result:
        a_s, b_s, a_steps, b_steps = split(s)
        a_t, b_t, _, _ = split(t)
        d = (a_s - a_t) + (b_s - b_t)  # log P_s / P_t
        c = (_probabilities(a_s) * _probabilities(b_s)).mul_(logsigmoid(d).add_(LN2))
        log_v = logsigmoid(d.neg_()).add_(LN2)  # log P_t / M; by a subtraction of d it would lose its digits where d is large
        loss = torch.addcmul(c, _probabilities(a_t) * _probabilities(b_t), log_v).sum((0, 1, 2)) / 2
        grad, by_top = torch.zeros_like(s), c.sum(1).flatten(0, 1)
        _ascend(torch.empty_like(by_top).index_copy_(0, by_set.flatten(), by_top), top, a_steps, grad)
        _ascend(c.sum(0).flatten(0, 1), bottom, b_steps, grad)
        return loss.clamp_(0, LN2), grad / 2

    return in_blocks(core, student, teacher, beta, teacher_beta, cost=math.factorial(n))
