"""What is right, in float64: results in whole, gradients at a sample of rows and columns, so that a case takes seconds.

Nothing here calls the library, except for listwise losses of so many responses that their rankings cannot be enumerated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations

import torch
from torch import Tensor

from benchmarks.cases import (
    BETA,
    GROUP_JOBS,
    GROUP_LOSS,
    HEAD_JOBS,
    IGNORE_INDEX,
    LISTWISE_JOBS,
    SAMPLED,
    Case,
    Inputs,
)

BLOCK = 1 << 24  # float64 logits at a time
SAMPLE = 128  # rows, and columns, at which gradients are compared
ENUMERATED = (
    8  # up to so many responses; then the library's own float64 is the measure, as "against" says
)
PROMPTS = 4  # that are enumerated


@dataclass(frozen=True)
class Truth:
    """Right values of a case. Each gradient is (index, values) of a leaf along its first dimension."""

    results: Tensor  # (M,), (R,) or (P,); of the listwise losses maybe only the first prompts
    live: Tensor  # of the same shape, bool
    gradients: dict[str, tuple[Tensor, Tensor]]
    scalar_gradients: dict[
        str, tuple[Tensor, Tensor]
    ]  # for a loss that is minus the mean of the results
    against: str

    def result_error(self, results: Tensor) -> float:
        """Largest absolute error, in nats."""
        return (
            (results.detach().double()[: len(self.results)] - self.results)[self.live]
            .abs()
            .max()
            .item()
        )

    def scalar_error(self, loss: Tensor) -> float:
        return abs(loss.item() + self.results[self.live].mean().item())

    def gradient_error(self, name: str, gradient: Tensor, scalar: bool = False) -> float:
        """‖gradient - right‖ / ‖right‖ over the sample."""
        index, right = (self.scalar_gradients if scalar else self.gradients)[name]
        return ((gradient[index].double() - right).norm() / right.norm()).item()


@torch.no_grad()
def token_truth(case: Case, inputs: Inputs) -> Truth:
    """Of token log-probabilities and response rewards."""
    labels, rows = inputs.labels, case["M"]
    live = labels != IGNORE_INDEX
    logps, lse = torch.zeros(2, rows, dtype=torch.float64, device=labels.device)
    for block in _blocks(rows, BLOCK // case["V"]):
        z, _ = _logits(case, inputs, block)
        lse[block] = z.logsumexp(1)
        logps[block] = z.gather(1, inputs.rows[block, None])[:, 0] - lse[block]
    logps *= live
    upstream, results, counted = inputs.upstream.double(), logps, live
    if case.job == "response_rewards":
        lengths = live.view(case["R"], -1).sum(1)
        results, counted = logps.view(case["R"], -1).sum(1) / lengths.clamp(min=1), lengths > 0
        upstream = (upstream / lengths.clamp(min=1)).repeat_interleave(case["T"])
    if case.job in GROUP_JOBS:
        results, upstream = _group_loss(case, inputs, logps, live)
        counted = torch.ones_like(results, dtype=torch.bool)
    uniform = torch.full_like(upstream, -1 / max(int(live.sum()), 1))
    gradients, scalar = (
        _token_gradients(case, inputs, lse, g * live) if case.backward else {}
        for g in (upstream, uniform)
    )
    return Truth(results, counted, gradients, scalar, against="float64")


@torch.enable_grad()
def _group_loss(case: Case, inputs: Inputs, logps: Tensor, live: Tensor) -> tuple[Tensor, Tensor]:
    """The mean loss of the prompts (1,), and its gradient in the log-probabilities (M,)."""
    leaf = logps.requires_grad_()
    rewards = leaf.view(case["R"], -1).sum(1) / live.view(case["R"], -1).sum(1).clamp(min=1)
    loss = enumerate_rankings(
        GROUP_LOSS[case.job], rewards.view(case["P"], -1), inputs.teacher.double()
    ).mean()
    return loss.detach().view(1), torch.autograd.grad(loss, leaf)[0]


def _blocks(size: int, block: int) -> Iterator[slice]:
    return (slice(start, start + max(block, 1)) for start in range(0, size, max(block, 1)))


def _logits(case: Case, inputs: Inputs, rows, columns=slice(None)) -> tuple[Tensor, Tensor]:
    """z at some rows and columns, and dz/d(product)."""
    if case.job in HEAD_JOBS:
        z = inputs.hidden[rows].double() @ inputs.weight[columns].double().T
    else:
        z = inputs.logits[rows][:, columns].double()
    if not case.softcap:
        return z, torch.ones((), dtype=z.dtype, device=z.device)
    z = (z / case.softcap).tanh()
    return z * case.softcap, 1 - z**2


def _token_gradients(
    case: Case, inputs: Inputs, lse: Tensor, g: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    labels = inputs.rows
    rows = torch.linspace(0, case["M"] - 1, min(SAMPLE, case["M"]), device=g.device).long()
    half = torch.linspace(0, case["V"] - 1, min(SAMPLE // 2, case["V"]), device=g.device).long()
    columns = torch.cat([half, labels[rows[::2]]]).unique()

    def dlogits(rows, columns) -> Tensor:
        z, slope = _logits(case, inputs, rows, columns)
        hit = labels[rows][:, None] == torch.arange(case["V"], device=g.device)[columns]
        return g[rows][:, None] * (hit.double() - (z - lse[rows][:, None]).exp()) * slope

    if case.job not in HEAD_JOBS:
        return {"logits": (rows, dlogits(rows, slice(None)))}
    parts = (
        dlogits(rows, block) @ inputs.weight[block].double()
        for block in _blocks(case["V"], BLOCK // case["D"])
    )
    gradients = {"hidden": (rows, sum(parts, torch.zeros((), dtype=g.dtype, device=g.device)))}
    if not case.frozen:
        gradients["weight"] = (columns, dlogits(slice(None), columns).T @ inputs.hidden.double())
    return gradients


def listwise_truth(case: Case, inputs: Inputs) -> Truth:
    """Of a listwise loss: the first prompts by enumeration of all rankings, or the library in float64 where those are too many."""
    enumerated = case["N"] <= ENUMERATED or case.job == "vpd"
    prompts = min(case["P"], PROMPTS) if enumerated else case["P"]
    student = inputs.student[:prompts].detach().double().requires_grad_()
    loss = (enumerate_rankings if enumerated else library_loss)(
        case.job.removesuffix(SAMPLED), student, inputs.teacher[:prompts].double()
    )
    (gradient,) = torch.autograd.grad(loss, student, inputs.upstream[:prompts].double())
    index = torch.arange(prompts, device=student.device)
    live = torch.ones_like(index, dtype=torch.bool)
    return Truth(
        loss.detach(),
        live,
        {"student": (index, gradient)},
        {},
        "float64" if enumerated else "own float64",
    )


def truth_of(case: Case, inputs: Inputs) -> Truth:
    return (listwise_truth if case.job in LISTWISE_JOBS else token_truth)(case, inputs)


def enumerate_rankings(job: str, student: Tensor, teacher: Tensor) -> Tensor:
    """(P, N), (P, N) -> (P,): the losses as the paper writes them, all N! rankings in a table (arXiv 2502.14272, section 3)."""
    n, job = student.shape[1], job.removesuffix(SAMPLED)
    if job == "vpd":
        return -log_ranking(student.gather(1, teacher.argsort(dim=1, descending=True, stable=True)))
    table = _rankings(n, student.device)
    s, t = (log_ranking(rewards[:, table]) for rewards in (student, teacher))
    if job == "kl":
        return (t.exp() * (t - s)).sum(1)
    if job == "reverse_kl":
        return (s.exp() * (s - t)).sum(1)
    m = torch.logaddexp(s, t) - math.log(2)
    return ((t.exp() * (t - m)).sum(1) + (s.exp() * (s - m)).sum(1)) / 2


@lru_cache(maxsize=1)
def _rankings(n: int, device: torch.device) -> Tensor:  # (N!, N)
    """Made once: neither the time of building it nor its way to the device is held against enumeration."""
    return torch.tensor(list(permutations(range(n))), device=device)


def log_ranking(ranked: Tensor) -> Tensor:
    """Plackett-Luce log-probability of rewards (..., N) in the order given."""
    x = BETA * ranked
    return (x - x.flip(-1).logcumsumexp(-1).flip(-1)).sum(-1)


def library_loss(job: str, student: Tensor, teacher: Tensor) -> Tensor:
    """(P, N), (P, N) -> (P,)."""
    from pad_fast.losses import probabilistic_preference_loss, vanilla_preference_loss

    if job == "vpd":
        return vanilla_preference_loss(student, teacher, beta=BETA, reduction="none")
    method, divergence = "sampled" if job.endswith(SAMPLED) else "exact", job.removesuffix(SAMPLED)
    return probabilistic_preference_loss(
        student, teacher, beta=BETA, divergence=divergence, method=method, reduction="none"
    )
