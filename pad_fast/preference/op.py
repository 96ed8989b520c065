"""The torch.library contract of the listwise losses: loss and gradient come out of one op, the backward op only scales.

The dispatcher sees groups (G, n), each with its own distribution over rankings; what a group is, is the caller's affair.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from pad_fast.dispatch import resolve_impl
from pad_fast.kernels.preference.limits import most_responses
from pad_fast.preference.kinds import Kind, all_kinds
from pad_fast.preference.plackett_luce import RankingOptions, Result

_logger = logging.getLogger("pad_fast")
_warned: set[str] = set()  # the kinds that were reported to be sampled


def _warn_sampled(kind: Kind, n: int, num_samples: int) -> None:
    if kind.name not in _warned:
        _warned.add(kind.name)
        text = "%s of more than %d responses (here %d) is estimated from %d sampled rankings"
        _logger.warning(text, kind.name, kind.auto_exact, n, num_samples)


def _check_finite(name: str, rewards: Tensor, live: Tensor | None) -> None:
    wrong = ~rewards.isfinite() if live is None else ~rewards.isfinite() & live
    if wrong.any():
        group, response = wrong.nonzero()[0].tolist()
        where = f"[{group}, {response}]"
        given = f"{rewards[group, response].item()} at {where} and {int(wrong.sum())} in all"
        raise ValueError(f"{name} must be finite for every live response, got {given}")


def _implementation(impl: str, student: Tensor, kind: str, method: str) -> str:
    most, n = most_responses(kind, method), student.shape[1]
    why_not = (
        f"the kernel of {method} {kind} takes at most {most} responses a group, and there are {n}"
        if most
        else f"{kind} has no kernel"
    )
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
    objective, options = (
        all_kinds()[kind],
        RankingOptions(beta, teacher_beta, num_samples, seed),
    )
    n = student.shape[1]
    method = "exact" if objective.sampled is None else method
    # "exact" that is too much for n raises where a CPU counts the live responses, below.
    widest = "exact" if objective.is_exact(method, n) else "sampled"
    implementation = _implementation(impl, student, kind, widest)
    if check_finite:
        _check_finite("student_rewards", student, live)
        _check_finite("teacher_rewards", teacher, live)
    if method == "auto" and widest == "sampled" and (live is None or implementation == "triton"):
        _warn_sampled(objective, n, num_samples)
    if implementation == "torch":
        return _by_torch(student, teacher, live, objective, method, options)
    from pad_fast.kernels.preference import launch

    if live is not None and method != widest:
        return _both(launch.forward, student, teacher, live, objective, options)
    return launch.forward(student, teacher, live, kind, widest, options)


def _by_torch(
    student: Tensor,
    teacher: Tensor,
    live: Tensor | None,
    kind: Kind,
    method: str,
    options: RankingOptions,
) -> Result:
    """Groups of the same number of live responses together, each number exactly or sampled."""
    generator = torch.Generator(student.device).manual_seed(options.seed)

    def dense(student: Tensor, teacher: Tensor) -> Result:
        if kind.sampled is None or kind.is_exact(method, student.shape[1]):
            return kind.exact(student, teacher, options)
        return kind.sampled(student, teacher, options, generator)

    if live is None and student.shape[1] > 1:
        return dense(student, teacher)
    loss = student.new_zeros(len(student))
    grad = torch.zeros_like(student, memory_format=torch.contiguous_format)
    if live is None:
        return loss, grad
    count, order = live.sum(1), _live_first(live)
    sizes = [size for size in count.unique().tolist() if size > 1]
    for size in sizes:
        kind.check_exact(method, size)
    for size in sizes:
        if method == "auto" and not kind.is_exact(method, size):
            _warn_sampled(kind, size, options.num_samples)
        rows = (count == size).nonzero()
        at = (rows, order[rows[:, 0], :size])
        loss[rows[:, 0]], grad[at] = dense(student[at], teacher[at])
    return loss, grad


def _live_first(live: Tensor) -> Tensor:  # (G, n) bool -> (G, n) indices
    return (~live).long().argsort(dim=1, stable=True)  # the live ones to the front, as they were


def _both(
    forward: Callable[..., Result],
    student: Tensor,
    teacher: Tensor,
    live: Tensor,
    kind: Kind,
    options: RankingOptions,
) -> Result:
    """Groups with no more live responses than the exact kernel and "auto" take by that kernel, and the others by the sampling one.

    Both run on all groups, those of the other masked: to choose would be to count on the host, which waits for the device.
    """
    limits = (kind.auto_exact, most_responses(kind.name, "exact"))
    most = min(limit for limit in limits if limit is not None)
    few = live.sum(1, keepdim=True) <= most
    loss, grad = forward(student, teacher, live & ~few, kind.name, "sampled", options)
    at = _live_first(live)[:, :most]
    exact, exact_grad = forward(
        student.gather(1, at),
        teacher.gather(1, at),
        live.gather(1, at) & few,
        kind.name,
        "exact",
        options,
    )
    return loss + exact, grad.scatter(1, at, torch.where(few, exact_grad, grad.gather(1, at)))


@preference_loss.register_fake
def _(
    student, teacher, live, kind, method, beta, teacher_beta, num_samples, seed, check_finite, impl
):
    return student.new_empty(student.shape[0]), torch.empty_like(
        student, memory_format=torch.contiguous_format
    )


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
