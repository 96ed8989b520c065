"""The right values of a case, in float64: all results, and gradients at some rows and columns.

A sample of the gradients keeps a case at seconds. Nothing here calls the library, except for
listwise losses with too many rankings to enumerate, or without a definition here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations

import torch
from torch import Tensor

from benchmarks.cases import IGNORE_INDEX, LISTWISE, LOSS_OF, Case, Inputs
from benchmarks.listwise import BETA, SAMPLED, jobs, library_loss
from pad_fast import reference

BLOCK = 1 << 24  # float64 logits at a time
SAMPLE = 128  # rows, and columns, at which gradients are compared
MOST_ENUMERATED = 8  # responses; above, the truth is the library's float64 result
ENUMERATED_PROMPTS = 4

Sampled = tuple[Tensor, Tensor]  # indices along a tensor's first dimension, and the values there


@dataclass(frozen=True)
class Truth:
    """Right values of a case."""

    results: Tensor  # (M,), (R,) or (P,); of listwise losses maybe only the first prompts
    live: Tensor  # bool, of the same shape: the results that are compared
    gradients: dict[str, Sampled]  # by the leaf's name
    scalar_gradients: dict[str, Sampled]  # if the loss is minus the mean of the results
    against: str  # what the right values were computed by

    def result_error(self, results: Tensor) -> float:
        """Largest absolute error, in nats."""
        difference = results.detach().double()[: len(self.results)] - self.results
        return difference[self.live].abs().max().item()

    def scalar_error(self, loss: Tensor) -> float:
        return abs(loss.item() + self.results[self.live].mean().item())

    def gradient_error(self, name: str, gradient: Tensor, scalar: bool = False) -> float:
        """‖gradient - right‖ / ‖right‖ over the sample."""
        index, right = (self.scalar_gradients if scalar else self.gradients)[name]
        return ((gradient[index].double() - right).norm() / right.norm()).item()


def truth_of(case: Case, inputs: Inputs) -> Truth:
    return (listwise_truth if case.family == LISTWISE else token_truth)(case, inputs)


# Jobs from logits or hidden states.


@torch.no_grad()
def token_truth(case: Case, inputs: Inputs) -> Truth:
    """The truth of token log-probabilities, response rewards, and losses from hidden states."""
    labels, rows = inputs.labels, case["M"]
    live = labels != IGNORE_INDEX
    logps, lse = torch.zeros(2, rows, dtype=torch.float64, device=labels.device)
    for block in _blocks(rows, BLOCK // case["V"]):
        z, _ = _logits(case, inputs, block)
        lse[block] = z.logsumexp(1)
        logps[block] = z.gather(1, inputs.valid_labels[block, None])[:, 0] - lse[block]
    logps *= live
    results, compared, upstream = logps, live, inputs.upstream.double()
    if case.job == "response_rewards":
        lengths = live.view(case["R"], -1).sum(1)
        results, compared = logps.view(case["R"], -1).sum(1) / lengths.clamp(min=1), lengths > 0
        upstream = (upstream / lengths.clamp(min=1)).repeat_interleave(case["T"])
    if case.is_mean_loss:
        results, upstream = _mean_loss(case, inputs, logps, live)
        compared = torch.ones_like(results, dtype=torch.bool)
    if not case.backward:
        return Truth(results, compared, {}, {}, against="float64")
    uniform = torch.full_like(upstream, -1 / max(int(live.sum()), 1))
    gradients, scalar_gradients = (
        _token_gradients(case, inputs, lse, g * live) for g in (upstream, uniform)
    )
    return Truth(results, compared, gradients, scalar_gradients, against="float64")


@torch.enable_grad()
def _mean_loss(case: Case, inputs: Inputs, logps: Tensor, live: Tensor) -> tuple[Tensor, Tensor]:
    """The mean loss of the prompts (1,), and its gradient in the log-probabilities (M,)."""
    leaf = logps.requires_grad_()
    rewards = leaf.view(case["R"], -1).sum(1) / live.view(case["R"], -1).sum(1).clamp(min=1)
    rewards, teacher = rewards.view(case["P"], -1), inputs.teacher.double()
    loss = enumerate_rankings(LOSS_OF[case.job], rewards, teacher).mean()
    return loss.detach().view(1), torch.autograd.grad(loss, leaf)[0]


def _blocks(size: int, block: int) -> Iterator[slice]:
    return (slice(start, start + max(block, 1)) for start in range(0, size, max(block, 1)))


def _logits(case: Case, inputs: Inputs, rows, columns=slice(None)) -> tuple[Tensor, Tensor]:
    """Logits z after the softcap at some rows and columns, and their slope in the logits before."""
    if case.uses_head:
        z = inputs.hidden[rows].double() @ inputs.weight[columns].double().T
    else:
        z = inputs.logits[rows][:, columns].double()
    if not case.softcap:
        return z, torch.ones((), dtype=z.dtype, device=z.device)
    z = (z / case.softcap).tanh()
    return z * case.softcap, 1 - z**2


def _token_gradients(case: Case, inputs: Inputs, lse: Tensor, g: Tensor) -> dict[str, Sampled]:
    """Gradients of the leaves, given the gradient ``g`` (M,) of the log-probabilities."""
    labels = inputs.valid_labels
    rows = torch.linspace(0, case["M"] - 1, min(SAMPLE, case["M"]), device=g.device).long()
    half = torch.linspace(0, case["V"] - 1, min(SAMPLE // 2, case["V"]), device=g.device).long()
    columns = torch.cat([half, labels[rows[::2]]]).unique()

    def dlogits(rows, columns) -> Tensor:
        z, slope = _logits(case, inputs, rows, columns)
        hit = labels[rows][:, None] == torch.arange(case["V"], device=g.device)[columns]
        return g[rows][:, None] * (hit.double() - (z - lse[rows][:, None]).exp()) * slope

    if not case.uses_head:
        return {"logits": (rows, dlogits(rows, slice(None)))}
    parts = (
        dlogits(rows, block) @ inputs.weight[block].double()
        for block in _blocks(case["V"], BLOCK // case["D"])
    )
    gradients = {"hidden": (rows, sum(parts, torch.zeros((), dtype=g.dtype, device=g.device)))}
    if not case.frozen:
        gradients["weight"] = (columns, dlogits(slice(None), columns).T @ inputs.hidden.double())
    return gradients


# Listwise losses.


def listwise_truth(case: Case, inputs: Inputs) -> Truth:
    """The truth of a listwise loss.

    It is that of the first prompts by enumeration of all rankings. Where those are too many, or the
    loss has no definition here, it is the library's result in float64 for all prompts.
    """
    enumerated = can_enumerate(case)
    prompts = min(case["P"], ENUMERATED_PROMPTS) if enumerated else case["P"]
    student = inputs.student[:prompts].detach().double().requires_grad_()
    loss_of = enumerate_rankings if enumerated else library_loss
    exact = case.job.removesuffix(SAMPLED)
    loss = loss_of(exact, student, inputs.teacher[:prompts].double())
    (gradient,) = torch.autograd.grad(loss, student, inputs.upstream[:prompts].double())
    index = torch.arange(prompts, device=student.device)
    live = torch.ones_like(index, dtype=torch.bool)
    against = "float64" if enumerated else "own float64"
    return Truth(loss.detach(), live, {"student": (index, gradient)}, {}, against)


def _kl(s: Tensor, t: Tensor) -> Tensor:
    return (t.exp() * (t - s)).sum(1)


def _jsd(s: Tensor, t: Tensor) -> Tensor:
    m = torch.logaddexp(s, t) - math.log(2)
    return ((t.exp() * (t - m)).sum(1) + (s.exp() * (s - m)).sum(1)) / 2


# Divergences of the log-probabilities of all rankings, student's and teacher's, each (P, N!).
DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "kl": _kl,
    "reverse_kl": lambda s, t: _kl(t, s),
    "jsd": _jsd,
}


def is_defined(job: str) -> bool:
    """Whether the loss has a definition here."""
    return job in reference.LOSSES or job.removesuffix(SAMPLED) in DIVERGENCES


def can_enumerate(case: Case) -> bool:
    """Whether the loss has a definition here, and one that is feasible at this size."""
    return case.job in reference.LOSSES or (is_defined(case.job) and case["N"] <= MOST_ENUMERATED)


def enumerate_rankings(job: str, student: Tensor, teacher: Tensor) -> Tensor:
    """The loss of each prompt as the paper defines it: (P, N), (P, N) -> (P,).

    A table holds all N! rankings (arXiv 2502.14272, section 3). VPD needs only the teacher's, and
    the losses of :mod:`pad_fast.reference` need none.
    """
    if job == "vpd":
        return -log_ranking(student.gather(1, teacher.argsort(dim=1, descending=True, stable=True)))
    if job in reference.LOSSES:
        scale, loss_of = (BETA if jobs()[job].loss.has_beta else 1.0), reference.LOSSES[job]
        prompts = zip(scale * student, BETA * teacher, strict=True)
        return torch.stack([loss_of(x, t) for x, t in prompts])
    table = _rankings(student.shape[1], student.device)
    s, t = (log_ranking(rewards[:, table]) for rewards in (student, teacher))
    return DIVERGENCES[job.removesuffix(SAMPLED)](s, t)


@lru_cache(maxsize=1)
def _rankings(n: int, device: torch.device) -> Tensor:  # (N!, N)
    """All rankings, made once, so that making them is not part of any measured time."""
    return torch.tensor(list(permutations(range(n))), device=device)


def log_ranking(ranked: Tensor) -> Tensor:
    """Plackett-Luce log-probability of rewards (..., N) in the order given."""
    x = BETA * ranked
    return (x - x.flip(-1).logcumsumexp(-1).flip(-1)).sum(-1)
