"""What a contestant is, and ours, plain PyTorch's and its compiled form.

``build(case, inputs)`` returns the call that is timed. It gives one number a token (``per_token``), in the sign that ``sign`` says, or
a scalar loss (``scalar``: another job than ours, and marked so). Where a contestant cannot be had ``build`` raises ImportError, where it
does not do the case Unsupported. Nothing is ever replaced by something else.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import (
    BETA,
    GROUP_JOBS,
    GROUP_LOSS,
    HEAD_JOBS,
    IGNORE_INDEX,
    LINEAR_JOBS,
    LISTWISE_JOBS,
    LOGITS_JOBS,
    Case,
    Inputs,
)
from benchmarks.truth import ENUMERATED, enumerate_rankings, library_loss

Call = Callable[[], Tensor]


class Unsupported(Exception):
    """The contestant is there but does not do this case."""


def no_bytes(case: Case) -> int:
    return 0


@dataclass(frozen=True)
class Contestant:
    """``overwrites``: the call destroys its inputs, which are then restored before each repetition, outside of what is timed."""

    name: str
    jobs: tuple[str, ...]
    build: Callable[[Case, Inputs], Call]
    note: str = ""  # how exact it is, or what else differs
    package: str = "torch"  # whose version is recorded
    sign: int = 1  # -1: gives losses
    scalar: bool = False
    per_token: bool = True  # False: gives what the job asks for, a number a response or a prompt
    overwrites: bool = False
    memory: Callable[[Case], int] = (
        no_bytes  # bytes that it needs at least, where that may be too much
    )


def per_response(case: Case, inputs: Inputs, call: Call) -> Call:
    """Rewards of padded responses from a call's token log-probabilities: what callers of such a function write."""

    def rewards() -> Tensor:
        live = (inputs.labels != IGNORE_INDEX).view(case["R"], -1)
        return call().view(case["R"], -1).masked_fill(~live, 0).sum(1) / live.sum(1).clamp(min=1)

    return rewards


# Ours.


def _library(case: Case, inputs: Inputs) -> Call:
    import pad_fast

    if case.job in LISTWISE_JOBS:
        return partial(library_loss, case.job, inputs.student, inputs.teacher)
    if case.job in LINEAR_JOBS:
        return partial(_linear, case, inputs, case.budget)
    if case.job in GROUP_JOBS:
        return partial(_group_loss, case, inputs)
    if case.job == "response_rewards":
        logits, labels = (
            inputs.logits.view(case["R"], case["T"], -1),
            inputs.labels.view(case["R"], -1),
        )
        return lambda: pad_fast.response_rewards(logits, labels, softcap=case.softcap)
    return partial(pad_fast.token_logprobs, inputs.logits, inputs.labels, softcap=case.softcap)


def _budget(budget: int | None) -> Any:
    return "auto" if budget is None else budget


def _linear(case: Case, inputs: Inputs, budget: int | None) -> Tensor:
    """The places of the live rows are what a collator knows."""
    import pad_fast

    return pad_fast.linear_token_logprobs(
        inputs.hidden,
        inputs.weight,
        inputs.labels,
        softcap=case.softcap,
        memory_budget=_budget(budget),
        live_rows=inputs.live_rows,
    )


def _no_budget(case: Case, inputs: Inputs) -> Call:
    if not case.backward and inputs.labels.device.type == "cpu":
        raise Unsupported("a CPU's forward is the same with any budget")
    return partial(_linear, case, inputs, 0)


def padded(case: Case, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    hidden, labels = inputs.hidden.view(case["R"], case["T"], -1), inputs.labels.view(case["R"], -1)
    return hidden, inputs.weight, labels, inputs.teacher


def _loss(case: Case) -> tuple[str, dict[str, Any]]:
    """The library's name of the job's loss, and its options."""
    loss = GROUP_LOSS[case.job]
    return ("vpd", {"beta": BETA}) if loss == "vpd" else ("ppd", {"beta": BETA, "divergence": loss})


def _group_loss(case: Case, inputs: Inputs) -> Tensor:
    import pad_fast

    loss, options = _loss(case)
    options |= {"loss": loss, "softcap": case.softcap, "memory_budget": _budget(case.budget)}
    return pad_fast.linear_preference_loss(*padded(case, inputs), **options)[0].view(1)


def _two_steps(case: Case, inputs: Inputs) -> Call:
    import pad_fast
    from pad_fast.losses import preference_loss

    hidden, weight, labels, teacher = padded(case, inputs)
    loss, options = _loss(case)
    shared: dict[str, Any] = {"softcap": case.softcap, "memory_budget": _budget(case.budget)}

    def two_steps() -> Tensor:
        rewards = pad_fast.linear_response_rewards(hidden, weight, labels, **shared)
        return preference_loss(loss, rewards.view(teacher.shape), teacher, **options).view(1)

    return two_steps


# Plain PyTorch.


def _cap(z: Tensor, softcap: float | None) -> Tensor:
    return (z / softcap).tanh() * softcap if softcap else z


def naive_logits(logits: Tensor, rows: Tensor, softcap: float | None) -> Tensor:
    """What everybody writes; 16-bit logits are widened first."""
    return _cap(logits.float(), softcap).log_softmax(-1).gather(-1, rows[:, None])[:, 0]


def naive_linear(hidden: Tensor, weight: Tensor, rows: Tensor, softcap: float | None) -> Tensor:
    return naive_logits(hidden @ weight.T, rows, softcap)


def _naive_group_loss(case: Case, inputs: Inputs) -> Tensor:
    logps = naive_linear(inputs.hidden, inputs.weight, inputs.rows, case.softcap)
    live = (inputs.labels != IGNORE_INDEX).view(case["R"], -1)
    rewards = logps.view(case["R"], -1).masked_fill(~live, 0).sum(1) / live.sum(1).clamp(min=1)
    return (
        enumerate_rankings(GROUP_LOSS[case.job], rewards.view(case["P"], -1), inputs.teacher)
        .mean()
        .view(1)
    )


def _naive(case: Case, inputs: Inputs) -> Call:
    if case.job in LISTWISE_JOBS:
        if case.job != "vpd" and case["N"] > ENUMERATED:
            raise Unsupported(
                f"enumerates rankings up to {ENUMERATED}!, here {math.factorial(case['N']):,}"
            )
        return partial(enumerate_rankings, case.job, inputs.student, inputs.teacher)
    if case.job in GROUP_JOBS:
        return lambda: _naive_group_loss(case, inputs)
    if case.job in LINEAR_JOBS:
        return partial(naive_linear, inputs.hidden, inputs.weight, inputs.rows, case.softcap)
    return partial(naive_logits, inputs.logits, inputs.rows, case.softcap)


def _naive_memory(case: Case) -> int:
    if (
        case.job in LISTWISE_JOBS
    ):  # about eight tables of floats: rewards and sums of both sides, kept for the backward
        return 0 if case.job == "vpd" else 4 * 8 * case["P"] * math.factorial(case["N"]) * case["N"]
    size = torch.finfo(getattr(torch, case.dtype)).bits // 8
    # float32 tables: log-probabilities and two gradients, or else those and what they are made of; the tanh of a softcap is kept.
    tables = 3 if case.backward else 1 + (size < 4) + bool(case.softcap)
    return case.elements * (4 * (tables + bool(case.softcap)) + size * (case.job in HEAD_JOBS))


def _compiled(case: Case, inputs: Inputs) -> Call:
    if (
        case.live < 1 and inputs.labels.device.type == "cuda"
    ):  # each compilation takes from the minutes that a card is lent for
        raise Unsupported("the same work as with no row ignored")
    compiler = os.environ.get("CXX", "g++")
    if inputs.labels.device.type == "cpu" and not shutil.which(compiler):
        raise ImportError(
            f"torch.compile needs a C++ compiler on a CPU, and there is no {compiler}"
        )
    torch.compiler.reset()  # or the cases' shapes add up to the limit of recompilations
    naive = torch.compile(
        naive_linear if case.job in LINEAR_JOBS else naive_logits, fullgraph=True, dynamic=False
    )
    return partial(naive, *_naive(case, inputs).args)  # type: ignore[attr-defined]


def _torch_linear(case: Case, inputs: Inputs) -> Call:
    from torch.nn.functional import linear_cross_entropy

    if case.softcap:
        raise Unsupported("no softcap")
    return lambda: linear_cross_entropy(
        inputs.hidden, inputs.weight, inputs.labels, reduction="none", ignore_index=IGNORE_INDEX
    )


def takes_part(case: Case, contestant: Contestant) -> bool:
    """A point of a curve is measured of ours alone, and a budget of the output head beside plain PyTorch: others know none."""
    if case.curve:
        return contestant.name == OURS or (contestant.name == ZERO and case.curve == "M")
    return case.budget is None or case.job not in LINEAR_JOBS or contestant.name in (OURS, NAIVE)


OURS = "pad_fast"
NAIVE = "naive PyTorch"
ZERO = f"{OURS}, budget 0"
STEPS = f"{OURS}, two steps"
ROUNDED = "logits rounded to the input's dtype"

PLAIN = (
    Contestant(NAIVE, LOGITS_JOBS, _naive, memory=_naive_memory),
    Contestant(NAIVE, LINEAR_JOBS, _naive, note=ROUNDED, memory=_naive_memory),
    Contestant(
        NAIVE,
        LISTWISE_JOBS,
        _naive,
        note="a table of N! rankings, but for vpd",
        per_token=False,
        memory=_naive_memory,
    ),
    Contestant(OURS, ("token_logprobs", *LINEAR_JOBS), _library, package="pad_fast"),
    Contestant(
        ZERO,
        LINEAR_JOBS,
        _no_budget,
        note="keeps nothing; forward alone on a GPU: no logits in memory",
        package="pad_fast",
    ),
    Contestant(
        NAIVE,
        GROUP_JOBS,
        _naive,
        note=f"{ROUNDED}; all rankings, but for pairs",
        per_token=False,
        memory=_naive_memory,
    ),
    Contestant(
        OURS,
        ("response_rewards", *GROUP_JOBS, *LISTWISE_JOBS),
        _library,
        package="pad_fast",
        per_token=False,
    ),
    Contestant(
        STEPS,
        GROUP_JOBS,
        _two_steps,
        note="rewards, then their loss, in the same budget",
        package="pad_fast",
        per_token=False,
    ),
    Contestant("torch.compile", LOGITS_JOBS, _compiled),
    Contestant("torch.compile", LINEAR_JOBS, _compiled, note=ROUNDED),
    Contestant("F.linear_cross_entropy", LINEAR_JOBS, _torch_linear, note=ROUNDED, sign=-1),
)
