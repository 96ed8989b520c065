"""What a contestant is; ours, plain PyTorch's and its compiled form.

``build(case, inputs)`` of a contestant returns the call that is timed. Where the contestant is not
installed ``build`` raises ImportError, where it does not do the case :class:`Unsupported`. Nothing
is ever replaced by something else.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import (
    IGNORE_INDEX,
    LINEAR,
    LINEAR_LOSS,
    LISTWISE,
    LOGITS,
    LOGITS_LOSS,
    LOSS_OF,
    Case,
    Inputs,
)
from benchmarks.float64_truth import MOST_ENUMERATED, enumerate_rankings, is_defined
from benchmarks.listwise import jobs as listwise_jobs
from benchmarks.listwise import library_loss
from pad_fast import device as devices
from pad_fast.logprob import compiled

Call = Callable[[], Tensor]


class Unsupported(Exception):
    """The contestant is installed but does not do this case."""


def no_bytes(case: Case) -> int:
    return 0


@dataclass(frozen=True)
class Participant:
    """What tables say of a contestant of any kind of suite."""

    name: str
    jobs: tuple[str, ...]  # names or families of jobs
    note: str = field(default="", kw_only=True)  # its precision, or what else differs
    package: str = field(default="torch", kw_only=True)  # whose version is recorded


@dataclass(frozen=True)
class Contestant(Participant):
    """A contestant for :class:`~benchmarks.cases.Case`.

    Its call gives a number for each token, or what the fields below say.
    """

    build: Callable[[Case, Inputs], Call]
    sign: int = field(default=1, kw_only=True)  # -1: gives losses, not log-probabilities
    scalar: bool = field(default=False, kw_only=True)  # gives one loss: another job than ours
    per_token: bool = field(default=True, kw_only=True)  # False: a number a response or a prompt
    # The call destroys its inputs, which are restored before each repetition, outside of the time.
    overwrites_inputs: bool = field(default=False, kw_only=True)
    # Variables that are set while its steps run, forward and backward.
    environment: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    # Bytes that it needs at least, where that may be more than there is.
    least_memory: Callable[[Case], int] = field(default=no_bytes, kw_only=True)

    def takes_part(self, case: Case) -> bool:
        """Whether it is measured at a case.

        Points of a curve are measured for ours alone. Where token log-probabilities have a budget
        only plain PyTorch is measured next to ours: no other contestant has such an option.
        """
        if case.job not in self.jobs and case.family not in self.jobs:
            return False
        if case.curve:
            return self.name == OURS or (self.name == OURS_BUDGET_0 and case.curve == "M")
        has_budget = case.memory_budget is not None and case.family == LINEAR
        return not has_budget or self.name in (OURS, NAIVE)


def per_response(case: Case, inputs: Inputs, call: Call) -> Call:
    """Rewards of padded responses from a call's token log-probabilities, as its users write it."""
    return lambda: _mean_of_live(case, inputs, call())


def _mean_of_live(case: Case, inputs: Inputs, logps: Tensor) -> Tensor:  # (M,) -> (R,)
    live = (inputs.labels != IGNORE_INDEX).view(case["R"], -1)
    return logps.view(case["R"], -1).masked_fill(~live, 0).sum(1) / live.sum(1).clamp(min=1)


# Ours.


def _library(case: Case, inputs: Inputs) -> Call:
    import pad_fast

    if case.family == LISTWISE:
        return partial(library_loss, case.job, inputs.student, inputs.teacher)
    if case.family == LINEAR:
        return partial(_linear, case, inputs, case.memory_budget)
    if case.family == LINEAR_LOSS:
        return partial(_linear_loss, case, inputs)
    if case.family == LOGITS_LOSS:
        return _module_loss(case, inputs)
    if case.job == "response_rewards":
        logits = inputs.logits.view(case["R"], case["T"], -1)
        labels = inputs.labels.view(case["R"], -1)
        return lambda: pad_fast.response_rewards(logits, labels, softcap=case.softcap)
    return partial(pad_fast.token_logprobs, inputs.logits, inputs.labels, softcap=case.softcap)


def _budget(budget: int | None) -> Any:
    return "auto" if budget is None else budget


def _linear(case: Case, inputs: Inputs, budget: int | None) -> Tensor:
    import pad_fast

    return pad_fast.linear_token_logprobs(
        inputs.hidden,
        inputs.weight,
        inputs.labels,
        softcap=case.softcap,
        memory_budget=_budget(budget),
        live_rows=inputs.live_rows,  # which a collator knows
    )


def _compiled_library(case: Case, inputs: Inputs) -> Call:
    if devices.is_gpu(inputs.labels.device):
        raise Unsupported(f"{compiled.ENVIRONMENT_VARIABLE}=1 is for a CPU")
    if case.softcap:
        raise Unsupported("logits with a softcap are not compiled")
    _need_a_compiler()
    return _library(case, inputs)


def _no_budget(case: Case, inputs: Inputs) -> Call:
    if not case.backward and not devices.is_gpu(inputs.labels.device):
        raise Unsupported("a CPU's forward is the same with any budget")
    return partial(_linear, case, inputs, 0)


def padded(case: Case, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states (R, T, D), weight (V, D), labels (R, T) and teacher rewards (P, N)."""
    hidden, labels = inputs.hidden.view(case["R"], case["T"], -1), inputs.labels.view(case["R"], -1)
    return hidden, inputs.weight, labels, inputs.teacher


def _linear_loss(case: Case, inputs: Inputs) -> Tensor:
    import pad_fast

    job = listwise_jobs()[LOSS_OF[case.job]]
    loss, _ = pad_fast.linear_preference_loss(
        *padded(case, inputs),
        loss=job.loss.name,
        softcap=case.softcap,
        memory_budget=_budget(case.memory_budget),
        **job.options,
    )
    return loss.view(1)


def _module_loss(case: Case, inputs: Inputs) -> Call:
    import pad_fast

    job = listwise_jobs()[LOSS_OF[case.job]]
    loss = pad_fast.PADLoss(job.loss.name, **job.options)
    logits, labels = inputs.logits.view(case["R"], case["T"], -1), inputs.labels.view(case["R"], -1)
    return lambda: loss(logits, labels, inputs.teacher).view(1)


def _two_steps(case: Case, inputs: Inputs) -> Call:
    import pad_fast
    from pad_fast.losses import preference_loss

    hidden, weight, labels, teacher = padded(case, inputs)
    job = listwise_jobs()[LOSS_OF[case.job]]
    shared: dict[str, Any] = {
        "softcap": case.softcap,
        "memory_budget": _budget(case.memory_budget),
    }

    def two_steps() -> Tensor:
        rewards = pad_fast.linear_response_rewards(hidden, weight, labels, **shared)
        rewards = rewards.view(teacher.shape)
        return preference_loss(job.loss.name, rewards, teacher, **job.options).view(1)

    return two_steps


# Plain PyTorch.


def _cap(z: Tensor, softcap: float | None) -> Tensor:
    return (z / softcap).tanh() * softcap if softcap else z


def naive_logits(logits: Tensor, labels: Tensor, softcap: float | None) -> Tensor:
    """The usual log-softmax and gather; 16-bit logits are widened first."""
    return _cap(logits.float(), softcap).log_softmax(-1).gather(-1, labels[:, None])[:, 0]


def naive_linear(hidden: Tensor, weight: Tensor, labels: Tensor, softcap: float | None) -> Tensor:
    return naive_logits(hidden @ weight.T, labels, softcap)


def _naive_mean_loss(case: Case, inputs: Inputs) -> Tensor:
    logps = _naive_function(case)(*_naive_arguments(case, inputs))
    rewards = _mean_of_live(case, inputs, logps).view(case["P"], -1)
    return enumerate_rankings(LOSS_OF[case.job], rewards, inputs.teacher).mean().view(1)


def _naive(case: Case, inputs: Inputs) -> Call:
    if case.family == LISTWISE:
        return _naive_listwise(case, inputs)
    if case.is_mean_loss:
        return partial(_naive_mean_loss, case, inputs)
    return partial(_naive_function(case), *_naive_arguments(case, inputs))


def _naive_listwise(case: Case, inputs: Inputs) -> Call:
    if not is_defined(case.job):
        raise Unsupported("benchmarks/float64_truth.py has no definition of this loss")
    if case.job != "vpd" and case["N"] > MOST_ENUMERATED:
        count = f"{math.factorial(case['N']):,}"
        raise Unsupported(f"enumerates rankings up to {MOST_ENUMERATED}!, here {count}")
    return partial(enumerate_rankings, case.job, inputs.student, inputs.teacher)


def _naive_function(case: Case) -> Callable[..., Tensor]:
    return naive_linear if case.uses_head else naive_logits


def _naive_arguments(case: Case, inputs: Inputs) -> tuple[Any, ...]:
    first = (inputs.hidden, inputs.weight) if case.uses_head else (inputs.logits,)
    return (*first, inputs.valid_labels, case.softcap)


def _naive_memory(case: Case) -> int:
    if case.family == LISTWISE:
        if case.job == "vpd" or not is_defined(case.job):
            return 0
        # About eight float32 tables: rewards and sums of both sides, kept for the backward.
        return 4 * 8 * case["P"] * math.factorial(case["N"]) * case["N"]
    size = torch.finfo(getattr(torch, case.dtype)).bits // 8
    # Float32 tables of logits. With a backward these are the log-probabilities and two gradients,
    # else the log-probabilities and what they are made from. The tanh of a softcap is kept too.
    tables = 3 if case.backward else 1 + (size < 4) + bool(case.softcap)
    return case.num_logits * (4 * (tables + bool(case.softcap)) + size * case.uses_head)


def _need_a_compiler() -> None:
    compiler = os.environ.get("CXX", "g++")
    if not shutil.which(compiler):
        raise ImportError(
            f"torch.compile needs a C++ compiler on a CPU, and there is no {compiler}"
        )


def _compiled(case: Case, inputs: Inputs) -> Call:
    on_gpu = devices.is_gpu(inputs.labels.device)
    if case.live_share < 1 and on_gpu:  # saves the minutes of a rented card a compilation
        raise Unsupported("the same work as with no row ignored")
    if not on_gpu:
        _need_a_compiler()
    torch.compiler.reset()  # or the shapes of all cases add up to the limit of recompilations
    function = torch.compile(_naive_function(case), fullgraph=True, dynamic=False)
    return partial(function, *_naive_arguments(case, inputs))


def _torch_linear(case: Case, inputs: Inputs) -> Call:
    from torch.nn.functional import linear_cross_entropy

    if case.softcap:
        raise Unsupported("no softcap")
    return lambda: linear_cross_entropy(
        inputs.hidden, inputs.weight, inputs.labels, reduction="none", ignore_index=IGNORE_INDEX
    )


OURS = "pad_fast"
NAIVE = "naive PyTorch"
OURS_BUDGET_0 = f"{OURS}, budget 0"
OURS_COMPILED = f"{OURS}, {compiled.ENVIRONMENT_VARIABLE}=1"
OURS_TWO_STEPS = f"{OURS}, two steps"
ROUNDED = "logits rounded to the input's dtype"

PLAIN = (
    Contestant(NAIVE, (LOGITS,), _naive, least_memory=_naive_memory),
    Contestant(NAIVE, (LINEAR,), _naive, note=ROUNDED, least_memory=_naive_memory),
    Contestant(
        NAIVE,
        (LISTWISE,),
        _naive,
        note="a table of N! rankings, except for vpd",
        per_token=False,
        least_memory=_naive_memory,
    ),
    Contestant(OURS, ("token_logprobs", LINEAR), _library, package="pad_fast"),
    Contestant(
        OURS_BUDGET_0,
        (LINEAR,),
        _no_budget,
        note="keeps nothing; forward alone on a GPU: no logits in memory",
        package="pad_fast",
    ),
    Contestant(
        NAIVE,
        (LINEAR_LOSS,),
        _naive,
        note=f"{ROUNDED}; all rankings, except for pairs",
        per_token=False,
        least_memory=_naive_memory,
    ),
    Contestant(
        NAIVE,
        (LOGITS_LOSS,),
        _naive,
        note="all rankings",
        per_token=False,
        least_memory=_naive_memory,
    ),
    Contestant(
        OURS,
        ("response_rewards", LINEAR_LOSS, LOGITS_LOSS, LISTWISE),
        _library,
        package="pad_fast",
        per_token=False,
    ),
    Contestant(
        OURS_TWO_STEPS,
        (LINEAR_LOSS,),
        _two_steps,
        note="rewards, then their loss, in the same budget",
        package="pad_fast",
        per_token=False,
    ),
    Contestant("torch.compile", (LOGITS,), _compiled),
    # After torch.compile's, which empties the compiler's memory before each case.
    *(
        Contestant(
            OURS_COMPILED,
            (job,),
            _compiled_library,
            note="asked for: loops that torch.compile makes",
            package="pad_fast",
            per_token=job == "token_logprobs",
            environment={compiled.ENVIRONMENT_VARIABLE: "1"},
        )
        for job in ("token_logprobs", "response_rewards")
    ),
    Contestant("torch.compile", (LINEAR,), _compiled, note=ROUNDED),
    Contestant("F.linear_cross_entropy", (LINEAR,), _torch_linear, note=ROUNDED, sign=-1),
)
