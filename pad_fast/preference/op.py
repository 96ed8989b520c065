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
from pad_fast.preference import exact_jsd, exact_kl, list_mle, plackett_luce, sampled

KINDS = ("vpd", "jsd", "kl", "reverse_kl")
AUTO_EXACT = {"jsd": 8, "kl": 16, "reverse_kl": 16}  # the largest n that method="auto" enumerates
MAX_EXACT = {
    "jsd": 10,
    "kl": 16,
    "reverse_kl": 16,
}  # and that method="exact" does: JSD of 10 is 3.6 million rankings a group

_EXACT = {
    "jsd": exact_jsd.exact_jsd,
    "kl": exact_kl.exact_kl,
    "reverse_kl": exact_kl.exact_reverse_kl,
}
_SAMPLED = {
    "jsd": sampled.sampled_jsd,
    "kl": sampled.sampled_kl,
    "reverse_kl": sampled.sampled_reverse_kl,
}
_logger = logging.getLogger("pad_fast")
_told: set[str] = set()  # the kinds of which it was said that they are sampled


def check_exact(method: str, kind: str, n: int) -> None:
    """ValueError if ``method`` is "exact" and groups of ``n`` responses have too many rankings for that."""
    if method == "exact" and kind != "vpd" and n > MAX_EXACT[kind]:
        raise ValueError(
            f"method='exact' takes at most {MAX_EXACT[kind]} responses a group for divergence={kind!r}, got {n}; "
            "set group_size, or take method='sampled'"
        )


def _method(method: str, kind: str, n: int) -> str:
    """What ``method`` is for groups of ``n`` live responses; ValueError where that cannot be."""
    check_exact(method, kind, n)
    return (
        ("exact" if kind == "vpd" or n <= AUTO_EXACT[kind] else "sampled")
        if method == "auto"
        else method
    )


def _tell_sampled(kind: str, n: int, num_samples: int) -> None:
    if kind not in _told:
        _told.add(kind)
        text = "%s of more than %d responses (here %d) is estimated from %d sampled rankings"
        _logger.warning(text, kind, AUTO_EXACT[kind], n, num_samples)


def _check_finite(name: str, rewards: Tensor, live: Tensor | None) -> None:
    wrong = ~rewards.isfinite() if live is None else ~rewards.isfinite() & live
    if wrong.any():
        group, response = wrong.nonzero()[0].tolist()
        where = f"[{group}, {response}]"
        given = f"{rewards[group, response].item()} at {where} and {int(wrong.sum())} in all"
        raise ValueError(f"{name} must be finite for every live response, got {given}")


def _dense(
    student: Tensor,
    teacher: Tensor,
    kind: str,
    method: str,
    scales: tuple[float, float],
    draws: tuple,
) -> plackett_luce.Result:
    if kind == "vpd":
        return list_mle.vanilla(student, teacher, scales[0])
    teacher = teacher.to(student.dtype)
    if method == "exact":
        return _EXACT[kind](student, teacher, *scales)
    return _SAMPLED[kind](student, teacher, *scales, *draws)


def _implementation(impl: str, student: Tensor, kind: str, method: str) -> str:
    most, n = most_responses(kind, method), student.shape[1]
    why_not = (
        f"the kernel of {method} {kind} takes at most {most} responses a group, and there are {n}"
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
    n = student.shape[1]
    # exact is asked for only where it can be; of a mask on a CPU that is seen below, by its counts
    widest = "exact" if method == "exact" else _method(method, kind, n)
    implementation = _implementation(impl, student, kind, widest)
    if check_finite:
        _check_finite("student_rewards", student, live)
        _check_finite("teacher_rewards", teacher, live)
    if method == "auto" and widest == "sampled" and (live is None or implementation == "triton"):
        _tell_sampled(kind, n, num_samples)
    options = (beta, teacher_beta, num_samples, seed)
    if implementation == "triton":
        from pad_fast.kernels.preference import launch

        if live is not None and method != widest:
            return _both(launch.forward, student, teacher, live, kind, options)
        return launch.forward(student, teacher, live, kind, widest, *options)
    generator = torch.Generator(student.device).manual_seed(seed)
    if live is None and n > 1:
        return _dense(
            student, teacher, kind, widest, (beta, teacher_beta), (num_samples, generator)
        )
    loss, grad = (
        student.new_zeros(len(student)),
        torch.zeros_like(student, memory_format=torch.contiguous_format),
    )
    if live is None:
        return loss, grad
    count, order = live.sum(1), _live_first(live)
    sizes = [size for size in count.unique().tolist() if size > 1]
    methods = [_method(method, kind, size) for size in sizes]
    for size, chosen in zip(sizes, methods, strict=True):
        if chosen == "sampled" != method:
            _tell_sampled(kind, size, num_samples)
        rows = (count == size).nonzero()
        at = (rows, order[rows[:, 0], :size])
        loss[rows[:, 0]], grad[at] = _dense(
            student[at], teacher[at], kind, chosen, (beta, teacher_beta), (num_samples, generator)
        )
    return loss, grad


def _live_first(live: Tensor) -> Tensor:  # (G, n) bool -> (G, n) indices
    return (~live).long().argsort(dim=1, stable=True)  # the live ones to the front, as they were


def _both(
    forward: Callable[..., plackett_luce.Result],
    student: Tensor,
    teacher: Tensor,
    live: Tensor,
    kind: str,
    options: tuple,
):
    """Groups with no more live responses than the exact kernel and "auto" take by that kernel, and the others by the sampling one.

    Both run on all groups, those of the other masked: to choose would be to count on the host, which waits for the device.
    """
    most = min(AUTO_EXACT[kind], most_responses(kind, "exact") or 0)
    few = live.sum(1, keepdim=True) <= most
    loss, grad = forward(student, teacher, live & ~few, kind, "sampled", *options)
    at = _live_first(live)[:, :most]
    exact, exact_grad = forward(
        student.gather(1, at),
        teacher.gather(1, at),
        live.gather(1, at) & few,
        kind,
        "exact",
        *options,
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
