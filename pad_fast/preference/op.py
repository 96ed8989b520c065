"""The torch.library contract of the listwise losses.

One op takes rewards (G, n) and what says which of them count, and returns the losses of the groups
or their sum or mean, and the gradient of each group's loss; its backward only scales that. It
computes the kinds of :mod:`pad_fast.preference.loss_kinds`, in PyTorch or by a Triton kernel.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, get_type_hints

import torch
from torch import Tensor

from pad_fast.custom_operation import custom_operation
from pad_fast.device import WAITS
from pad_fast.dispatch import resolve_impl
from pad_fast.kernels.preference.limits import most_responses
from pad_fast.preference.loss_kinds import Kind, all_kinds
from pad_fast.preference.plackett_luce import RankingOptions, Result
from pad_fast.preference.reward_inputs import counted_prompts, with_tokens

_logger = logging.getLogger("pad_fast")
_warned: set[str] = set()  # names of kinds whose sampling was logged


def _warn_sampled(kind: Kind, n: int, num_samples: int) -> None:
    if kind.name not in _warned:
        _warned.add(kind.name)
        text = "%s of more than %d responses (here %d) is estimated from %d sampled rankings"
        _logger.warning(text, kind.name, kind.auto_exact, n, num_samples)


def check_finite_rewards(name: str, rewards: Tensor, live: Tensor | None) -> None:
    """Raise ValueError unless the rewards of all live responses are finite."""
    # With a finite sum all are. Where it is not, they may be, or those that are not be masked.
    if math.isfinite(rewards.detach().sum()):
        return
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


class Groups(NamedTuple):
    """Rewards of groups, and which of them count: those that are live and have tokens."""

    student: Tensor  # (G, n)
    teacher: Tensor  # (G, n)
    live: Tensor | None  # (G, n) bool; None: all of them
    lengths: Tensor | None  # (G, n) numbers of tokens; None: no response is empty

    @property
    def may_be_smaller(self) -> bool:
        """Whether a group may have responses that do not count."""
        return not (self.live is None and self.lengths is None)

    def with_one_mask(self) -> Groups:
        """The same with all that count in ``live``."""
        if self.lengths is None:
            return self
        return self._replace(live=with_tokens(self.live, self.lengths), lengths=None)


# As the schema has them. SymInt: a compiled graph stays as it is when a number changes.
_TYPES = {float: "float", int: "SymInt", str: "str"}
_OPTIONS = ", ".join(
    f"{_TYPES[kind]} {name}" for name, kind in get_type_hints(RankingOptions).items()
)
_SCHEMA = (
    "(Tensor student, Tensor teacher, Tensor? live, Tensor? lengths, str kind, str method, "
    f"bool check_finite, str impl, str reduction, {_OPTIONS}) -> (Tensor, Tensor, Tensor)"
)


@custom_operation("pad_fast::preference_loss", schema=_SCHEMA, tags=WAITS)
def preference_loss(
    student: Tensor,  # (G, n) float32 or float64
    teacher: Tensor,  # (G, n)
    live: Tensor | None,  # (G, n) bool; None: all of them
    lengths: Tensor | None,  # (G, n) numbers of tokens; None: no response is empty
    kind: str,
    method: str,
    check_finite: bool,
    impl: str,
    reduction: str,
    *numbers: Any,  # the fields of RankingOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """The losses (G,) or their sum or mean (), the gradient (G, n) of the losses, and a divisor.

    A response counts if it is live and not empty. The loss is 0 for a group in which fewer count
    than the kind needs, which is mostly two; the gradient is 0 where a response does not count.

    Returns:
        The losses by ``reduction``, "none", "sum" or "mean"; the gradient of each group's loss in
        the student's rewards; what divides a mean, the number () of groups with a loss, else (0,).
    """
    objective, n = all_kinds()[kind], student.shape[1]
    options = RankingOptions(*numbers)
    if objective.sampled is None:
        method = "exact"
    # The method for groups in which all count. On a CPU, where those that do are counted, each
    # group may still go its own way, and in Triton each group of a loss that takes both kernels.
    widest = "exact" if objective.is_exact(method, n) else "sampled"
    implementation = _implementation(impl, student, kind, widest)
    groups = Groups(student, teacher, live, lengths)
    some = method == "auto" and widest == "sampled" and groups.may_be_smaller
    if check_finite or implementation == "torch" or some:
        groups = groups.with_one_mask()
    if check_finite:
        check_finite_rewards("student_rewards", student, groups.live)
        check_finite_rewards("teacher_rewards", teacher, groups.live)
    if method == "auto" and widest == "sampled" and (implementation == "triton" or not some):
        _warn_sampled(objective, n, options.num_samples)
    if implementation == "torch":
        losses, grad = _by_torch(student, teacher, groups.live, objective, method, options)
        return _with_reduced(losses, grad, groups, objective.least, reduction)
    from pad_fast.kernels.preference import launch

    if some:
        losses, grad = _by_both_kernels(launch.forward, groups, objective, options)
    else:
        losses, grad = launch.forward(*groups[:3], kind, widest, options, lengths=groups.lengths)
    if reduction == "none":
        return losses, grad, losses.new_empty(0)
    reduced, divisor = launch.reduce(losses, *groups[2:], n, reduction == "mean")
    return reduced, grad, divisor


@preference_loss.register_fake
def _(student, teacher, live, lengths, kind, method, check_finite, impl, reduction, *_):
    grad = torch.empty_like(student, memory_format=torch.contiguous_format)
    loss = student.new_empty(student.shape[0] if reduction == "none" else ())
    return loss, grad, student.new_empty(() if reduction == "mean" else 0)


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


def _with_reduced(
    losses: Tensor, grad: Tensor, groups: Groups, least: int, reduction: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The losses (G,), or their sum or mean (), the gradient, and what divides the mean."""
    if reduction == "none":
        return losses, grad, losses.new_empty(0)
    total = losses.sum()
    if reduction == "sum":
        return total, grad, losses.new_empty(0)
    if groups.live is None:
        counted = len(losses) if groups.student.shape[1] >= least else 0
        divisor = losses.new_full((), max(1, counted))
    else:
        divisor = counted_prompts(groups.live, least).clamp(min=1).to(losses.dtype)
    return total / divisor, grad, divisor


def _live_first(live: Tensor) -> Tensor:  # (G, n) bool -> (G, n) indices
    """An order of each group that begins with its live responses, as they were."""
    return (~live).long().argsort(dim=1, stable=True)


def _by_both_kernels(
    forward: Callable[..., Result], groups: Groups, kind: Kind, options: RankingOptions
) -> Result:
    """Small groups by the exact kernel, and the others by the sampling one, without counting.

    Small is what both the exact kernel and method="auto" take. Either kernel runs on all groups,
    with those of the other masked: counting on the host would wait for the device.
    """
    limits = (kind.auto_exact, most_responses(kind.name, "exact"))
    most = min(limit for limit in limits if limit is not None)
    student, teacher, live, _ = groups
    assert live is not None
    few = live.sum(1, keepdim=True) <= most
    loss, grad = forward(student, teacher, live & ~few, kind.name, "sampled", options)
    at = _live_first(live)[:, :most]
    rewards = (student.gather(1, at), teacher.gather(1, at))
    exact, exact_grad = forward(*rewards, live.gather(1, at) & few, kind.name, "exact", options)
    return loss + exact, grad.scatter(1, at, torch.where(few, exact_grad, grad.gather(1, at)))


def _setup_context(ctx, inputs, output) -> None:
    # The gradient stays in the graph. Marked as not differentiable, it would have a second
    # derivative of 0 where an error is right.
    ctx.save_for_backward(*output[1:])
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)
    *_, ctx.reduction = inputs[: -len(RankingOptions._fields)]
    ctx.others = (None,) * (len(inputs) - 1)  # inputs that have no gradient


class _Once(torch.autograd.Function):
    """A gradient that has none itself: not 0, which would be wrong, but an error."""

    @staticmethod
    def forward(ctx, grad: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError("the gradient of a listwise loss is not differentiable")


def _backward(ctx, dloss: Tensor | None, *_) -> Sequence[Tensor | None]:
    """The gradient of each group's loss, scaled."""
    if dloss is None:
        return None, *ctx.others
    grad, divisor = ctx.saved_tensors
    if ctx.reduction == "none":
        dloss = dloss[:, None]
    elif ctx.reduction == "mean":
        dloss = dloss / divisor
    dstudent = dloss * grad
    return _Once.apply(dstudent) if torch.is_grad_enabled() else dstudent, *ctx.others


preference_loss.register_autograd(_backward, setup_context=_setup_context)
