"""The torch.library contract of the listwise losses.

One op returns the losses of groups (G, n) and their gradient; its backward only scales that. It
computes the kinds of :mod:`pad_fast.preference.loss_kinds`, in PyTorch or by a Triton kernel.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from pad_fast.dispatch import resolve_impl
from pad_fast.kernels.preference.limits import most_responses
from pad_fast.preference.loss_kinds import Kind, all_kinds
from pad_fast.preference.plackett_luce import RankingOptions, Result

_logger = logging.getLogger("pad_fast")
_warned: set[str] = set()  # names of kinds whose sampling was logged


def _warn_sampled(kind: Kind, n: int, num_samples: int) -> None:
    if kind.name not in _warned:
        _warned.add(kind.name)
        text = "%s of more than %d responses (here %d) is estimated from %d sampled rankings"
        _logger.warning(text, kind.name, kind.auto_exact, n, num_samples)


def check_finite_rewards(name: str, rewards: Tensor, live: Tensor | None) -> None:
    """Raise ValueError unless the rewards of all live responses are finite."""
    wrong = ~rewards.isfinite() if live is None else ~rewards.isfinite() & live
    if wrong.any():
        group, response = wrong.nonzero()[0].tolist()
        where = f"[{group}, {response}]"
        given = f"{rewards[group, response].item()} at {where} and {int(wrong.sum())} in all"
        raise ValueError(f"{name} must be finite for every live response, got {given}")


def _implementation(impl: str, student: Tensor, kind: str, method: str) -> str:
    most, n = most_responses(kind, method), student.shape[1]
    why_not = f"there is no kernel of {method} {kind}"
    if most:
        limit = f"takes at most {most} responses a group, and there are {n}"
        why_not = f"the kernel of {method} {kind} {limit}"
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
    gamma: float,
    pairs: str,
    check_finite: bool,
    impl: str,
) -> tuple[Tensor, Tensor]:
    """The losses (G,) and their gradient (G, n) in the student's rewards.

    The loss is 0 for a group with fewer live responses than the kind needs, which is mostly two;
    the gradient is 0 where not live.
    """
    objective, n = all_kinds()[kind], student.shape[1]
    options = RankingOptions(beta, teacher_beta, num_samples, seed, gamma, pairs)
    if objective.sampled is None:
        method = "exact"
    # The method for groups without a masked response. On a CPU, where the live responses are
    # counted, each group may still go its own way.
    widest = "exact" if objective.is_exact(method, n) else "sampled"
    implementation = _implementation(impl, student, kind, widest)
    if check_finite:
        check_finite_rewards("student_rewards", student, live)
        check_finite_rewards("teacher_rewards", teacher, live)
    if method == "auto" and widest == "sampled" and (live is None or implementation == "triton"):
        _warn_sampled(objective, n, num_samples)
    if implementation == "torch":
        return _by_torch(student, teacher, live, objective, method, options)
    from pad_fast.kernels.preference import launch

    if live is not None and method != widest:
        return _by_both_kernels(launch.forward, student, teacher, live, objective, options)
    return launch.forward(student, teacher, live, kind, widest, options)


@preference_loss.register_fake
def _(
    student,
    teacher,
    live,
    kind,
    method,
    beta,
    teacher_beta,
    num_samples,
    seed,
    gamma,
    pairs,
    check_finite,
    impl,
):
    grad = torch.empty_like(student, memory_format=torch.contiguous_format)
    return student.new_empty(student.shape[0]), grad


def _by_torch(
    student: Tensor,
    teacher: Tensor,
    live: Tensor | None,
    kind: Kind,
    method: str,
    options: RankingOptions,
) -> Result:
    """The groups by their number of live responses, which decides whether "auto" is exact."""
    generator = torch.Generator(student.device).manual_seed(options.seed)

    def without_mask(student: Tensor, teacher: Tensor) -> Result:
        if kind.sampled is None or kind.is_exact(method, student.shape[1]):
            return kind.exact(student, teacher, options)
        return kind.sampled(student, teacher, options, generator)

    if live is None and student.shape[1] >= kind.least:
        return without_mask(student, teacher)
    loss = student.new_zeros(len(student))
    grad = torch.zeros_like(student, memory_format=torch.contiguous_format)
    if live is None:
        return loss, grad
    count, order = live.sum(1), _live_first(live)
    sizes = [size for size in count.unique().tolist() if size >= kind.least]
    for size in sizes:
        kind.check_exact(method, size)
    for size in sizes:
        if method == "auto" and not kind.is_exact(method, size):
            _warn_sampled(kind, size, options.num_samples)
        rows = (count == size).nonzero()
        at = (rows, order[rows[:, 0], :size])
        loss[rows[:, 0]], grad[at] = without_mask(student[at], teacher[at])
    return loss, grad


def _live_first(live: Tensor) -> Tensor:  # (G, n) bool -> (G, n) indices
    """An order of each group that begins with its live responses, as they were."""
    return (~live).long().argsort(dim=1, stable=True)


def _by_both_kernels(
    forward: Callable[..., Result],
    student: Tensor,
    teacher: Tensor,
    live: Tensor,
    kind: Kind,
    options: RankingOptions,
) -> Result:
    """Small groups by the exact kernel, and the others by the sampling one, without counting.

    Small is what both the exact kernel and method="auto" take. Either kernel runs on all groups,
    with those of the other masked: counting on the host would wait for the device.
    """
    limits = (kind.auto_exact, most_responses(kind.name, "exact"))
    most = min(limit for limit in limits if limit is not None)
    few = live.sum(1, keepdim=True) <= most
    loss, grad = forward(student, teacher, live & ~few, kind.name, "sampled", options)
    at = _live_first(live)[:, :most]
    rewards = (student.gather(1, at), teacher.gather(1, at))
    exact, exact_grad = forward(*rewards, live.gather(1, at) & few, kind.name, "exact", options)
    return loss + exact, grad.scatter(1, at, torch.where(few, exact_grad, grad.gather(1, at)))


@torch.library.custom_op("pad_fast::preference_loss_backward", mutates_args=())
def preference_loss_backward(dloss: Tensor, dstudent: Tensor) -> Tensor:
    """(G,), (G, n) -> (G, n). It has no autograd formula: differentiating twice raises."""
    return dloss[:, None] * dstudent


@preference_loss_backward.register_fake
def _(dloss, dstudent):
    return torch.empty_like(dstudent)


def _setup_context(ctx, inputs, output) -> None:
    # The gradient stays in the graph. Marked as not differentiable, it would have a second
    # derivative of 0 where an error is right.
    ctx.save_for_backward(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, dloss, _):
    grad = None if dloss is None else preference_loss_backward(dloss, *ctx.saved_tensors)
    return grad, *(None,) * 12


preference_loss.register_autograd(_backward, setup_context=_setup_context)
