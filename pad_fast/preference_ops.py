"""The torch.library contract of the listwise losses: loss and gradient come out of one op, the backward op only scales.

The dispatcher sees groups (G, n), each with its own distribution over rankings; what a group is, is the caller's affair.
"""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor

from pad_fast import paths, rankings
from pad_fast.dispatch import resolve_impl
from pad_fast.kernels.preference.limits import most_responses

KINDS = ("vpd", "jsd", "kl", "reverse_kl")
AUTO_EXACT = {"jsd": 8, "kl": 16, "reverse_kl": 16}  # the largest n that method="auto" enumerates
MAX_EXACT = {"jsd": 10, "kl": 16, "reverse_kl": 16}  # and that method="exact" does: JSD of 10 is 3.6 million rankings a group

_EXACT = {"jsd": rankings.exact_jsd, "kl": rankings.exact_kl, "reverse_kl": rankings.exact_reverse_kl}
_SAMPLED = {"jsd": paths.sampled_jsd, "kl": paths.sampled_kl, "reverse_kl": paths.sampled_reverse_kl}
_logger = logging.getLogger("pad_fast")


@cache
def _tell_sampled(kind: str, n: int, num_samples: int) -> None:  # cached: told once
    limit = AUTO_EXACT[kind]
    _logger.warning("%s of %d responses is estimated from %d sampled rankings (exact up to %d)", kind, n, num_samples, limit)


def _check_finite(name: str, rewards: Tensor, live: Tensor | None) -> None:
    wrong = ~rewards.isfinite() if live is None else ~rewards.isfinite() & live
    if wrong.any():
        group, response = wrong.nonzero()[0].tolist()
        where = f"[{group}, {response}]"
        given = f"{rewards[group, response].item()} at {where} and {int(wrong.sum())} in all"
        raise ValueError(f"{name} must be finite for every live response, got {given}")


def _dense(student: Tensor, teacher: Tensor, kind: str, method: str, scales: tuple[float, float], draws: tuple) -> rankings.Result:
    if kind == "vpd":
        return paths.vanilla(student, teacher, scales[0])
    teacher = teacher.to(student.dtype)
    if method == "exact":
        return _EXACT[kind](student, teacher, *scales)
    return _SAMPLED[kind](student, teacher, *scales, *draws)


def _implementation(impl: str, student: Tensor, kind: str, method: str) -> str:
    most, n = most_responses(kind, method), student.shape[1]
    why_not = f"the kernel of {method} {kind} takes at most {most} responses a group, and there are {n}"
    return resolve_impl(impl, student, has_kernel=most is None or n <= most, why_not=why_not)


@torch.library.custom_op("pad_fast::preference_loss", mutates_args=())
def preference_loss(
    student: Tensor,  # (G, n) float32 or float64
    teacher: Tensor,  # (G, n)
    live: Tensor | None,  # (G, n) bool; None: all of them
    kind: str,
    method: str,
    beta: float,
    teacher_beta: float,
    num_samples: int,
    seed: int,
    check_finite: bool,
    impl: str,
) -> tuple[Tensor, Tensor]:
    """The loss of each group (G,), 0 with fewer than two live responses, and its gradient in ``student`` (G, n), 0 where not live."""
    n = student.shape[1]
    if kind != "vpd" and method == "auto":
        method = "exact" if n <= AUTO_EXACT[kind] else "sampled"
        if method == "sampled":
            _tell_sampled(kind, n, num_samples)
    implementation = _implementation(impl, student, kind, method)
    if check_finite:
        _check_finite("student_rewards", student, live)
        _check_finite("teacher_rewards", teacher, live)
    if implementation == "triton":
        from pad_fast.kernels.preference import launch

        return launch.forward(student, teacher, live, kind, method, beta, teacher_beta, num_samples, seed)
    draws = (num_samples, torch.Generator(student.device).manual_seed(seed)) if method == "sampled" else ()
    loss, grad = student.new_zeros(len(student)), torch.zeros_like(student, memory_format=torch.contiguous_format)
    if live is None:
        return _dense(student, teacher, kind, method, (beta, teacher_beta), draws) if n > 1 else (loss, grad)
    count = live.sum(1)
    order = (~live).long().argsort(dim=1, stable=True)  # the live ones to the front, as they were
    for size in count.unique().tolist():
        if size > 1:
            rows = (count == size).nonzero()
            at = (rows, order[rows[:, 0], :size])
            loss[rows[:, 0]], grad[at] = _dense(student[at], teacher[at], kind, method, (beta, teacher_beta), draws)
    return loss, grad


@preference_loss.register_fake
def _(student, teacher, live, kind, method, beta, teacher_beta, num_samples, seed, check_finite, impl):
    return student.new_empty(student.shape[0]), torch.empty_like(student, memory_format=torch.contiguous_format)


@torch.library.custom_op("pad_fast::preference_loss_backward", mutates_args=())
def preference_loss_backward(dloss: Tensor, dstudent: Tensor) -> Tensor:
    """(G,), (G, n) -> (G, n). It has no autograd formula: differentiating twice raises."""
    return dloss[:, None] * dstudent


@preference_loss_backward.register_fake
def _(dloss, dstudent):
    return torch.empty_like(dstudent)


def _setup_context(ctx, inputs, output) -> None:
    # The gradient stays in the graph: were it marked as not differentiable, a second derivative would be 0 and no error.
    ctx.save_for_backward(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, dloss, _):
    grad = None if dloss is None else preference_loss_backward(dloss, *ctx.saved_tensors)
    return grad, *(None,) * 10


preference_loss.register_autograd(_backward, setup_context=_setup_context)
