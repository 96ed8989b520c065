"""The listwise losses of Preference-Aligned Distillation (PAD, arXiv 2502.14272) as pure functions of rewards.

P prompts, N responses each. Rewards r turn into a distribution over the N! rankings tau of a prompt's responses (Plackett-Luce),

    P(tau) = prod_k exp(beta * r[tau_k]) / sum_{l >= k} exp(beta * r[tau_l]),

for the teacher and for the student, and a loss compares the two. The teacher's rewards are constants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from pad_fast import device, validation
from pad_fast.dispatch import check_impl
from pad_fast.preference import kinds
from pad_fast.preference import op as preference_op
from pad_fast.preference.plackett_luce import RankingOptions

METHODS = ("auto", "exact", "sampled")
GROUP_REDUCTIONS = ("mean", "sum")
REDUCTIONS = ("mean", "sum", "none")
MIN_SAMPLES = 4  # two draws from each side: the estimators compare a draw with the others


@dataclass(frozen=True)
class LossOptions:
    """The options that any loss may have, checked; which ones a loss has is in the table of losses.

    Raises ValueError for a value out of its range, naming it.
    """

    beta: float = 10.0
    teacher_beta: float | None = None  # None: beta
    divergence: str | None = None  # None: the loss's first
    method: str = "auto"
    num_samples: int = 256
    seed: int = 0
    group_size: int | None = None
    group_reduction: str = "mean"
    reduction: str = "mean"
    check_finite: bool | None = None  # None: where no device has to be waited for

    def __post_init__(self) -> None:
        _check_choice("method", self.method, METHODS)
        _check_choice("group_reduction", self.group_reduction, GROUP_REDUCTIONS)
        _check_choice("reduction", self.reduction, REDUCTIONS)
        for name, value in (("beta", self.beta), ("teacher_beta", self.scale_of_teacher)):
            if not 0 < value < float("inf"):
                raise ValueError(f"{name} must be a positive finite number, got {value}")
        if self.num_samples < MIN_SAMPLES:
            raise ValueError(f"num_samples must be at least {MIN_SAMPLES}, got {self.num_samples}")
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(
                f"seed must be an integer of 64 bits, from -2**63 to 2**63 - 1, got {self.seed}"
            )
        if self.group_size is not None and self.group_size < 2:
            raise ValueError(f"group_size must be None or at least 2, got {self.group_size}")

    @property
    def scale_of_teacher(self) -> float:
        return self.beta if self.teacher_beta is None else self.teacher_beta


def check_loss(loss: str, options: dict[str, Any]) -> None:
    """Raise ValueError for a loss that there is not, or an option that it does not have."""
    if loss not in kinds.LOSSES:
        raise ValueError(f"loss must be one of {', '.join(kinds.LOSSES)}, got {loss!r}")
    known = kinds.LOSSES[loss].options
    for name in options:
        if name not in known:
            raise ValueError(f"loss={loss!r} has no option {name!r}; it has {', '.join(known)}")


def preference_loss(
    loss: str,
    student_rewards: Tensor,  # (P, N)
    teacher_rewards: Tensor,  # (P, N)
    *,
    mask: Tensor | None = None,  # (P, N) bool
    impl: str = "auto",
    **options: Any,
) -> Tensor:  # () or, with reduction="none", (P,)
    """The loss of this name, with those of its ``options`` that are given.

    Modules, the linear loss and the trainer come this way, and so do the two functions below.
    """
    check_loss(loss, options)
    given = LossOptions(**options)
    kind = kinds.LOSSES[loss].kind(given.divergence)
    check_impl(impl)
    check_rewards(student_rewards, teacher_rewards, mask)
    student, teacher, live = _groups(student_rewards, teacher_rewards, mask, given.group_size)
    waits = device.waits_for_values(student.device)
    if mask is None or waits:  # else the live responses are counted
        kind.check_exact(given.method, student.shape[1])
    numbers = RankingOptions(
        float(given.beta), float(given.scale_of_teacher), given.num_samples, int(given.seed)
    )
    losses, _ = preference_op.preference_loss(
        student,
        teacher,
        live,
        kind.name,
        given.method,
        numbers.beta,
        numbers.teacher_beta,
        numbers.num_samples,
        numbers.seed,
        not waits if given.check_finite is None else given.check_finite,
        impl,
    )
    return _reduce(losses, live, len(student_rewards), given.group_reduction, given.reduction)


def probabilistic_preference_loss(
    student_rewards: Tensor,  # (P, N)
    teacher_rewards: Tensor,  # (P, N)
    *,
    beta: float = 10.0,
    teacher_beta: float | None = None,
    divergence: str = "jsd",
    method: str = "auto",
    num_samples: int = 256,
    seed: int = 0,
    group_size: int | None = None,
    group_reduction: str = "mean",
    mask: Tensor | None = None,  # (P, N) bool
    reduction: str = "mean",
    check_finite: bool | None = None,
    impl: str = "auto",
) -> Tensor:  # () or, with reduction="none", (P,)
    """PPD: how far the student's distribution over rankings is from the teacher's, in nats.

    ``divergence``: "jsd" is KL(P_t || M) / 2 + KL(P_s || M) / 2 with M = (P_t + P_s) / 2, from 0 to ln 2; "kl" is KL(P_t || P_s);
    "reverse_kl" is KL(P_s || P_t). ``beta`` scales both sides' rewards, or the student's only if ``teacher_beta`` is given.

    ``method``: "exact" costs O(n 2^n) for the KLs (n <= 16) and O(n!) sums without a table of rankings for "jsd" (n <= 10); "sampled"
    averages over ``num_samples`` rankings, unbiased in value and gradient, repeatable by ``seed``; give each step its own. "auto" is
    exact up to n = 8 for "jsd" and 16 for the KLs, and logs once where it samples. n is the number of live responses of a group, each
    group by itself: a wider one beside it changes nothing. Only where the live ones cannot be counted without waiting for a device,
    "exact" refuses by N, or ``group_size`` where that is smaller, and "auto" samples KLs of 13 to 16 live among more than 16.
    The Triton kernels take n <= 12 for the exact KLs, 10 for exact "jsd" and 32 sampled, and draw other rankings by the same seed.

    ``group_size=k`` is preference decomposing: consecutive live responses form groups of k, the last may be shorter, each with
    its own distribution; a prompt's loss is the mean or, with ``group_reduction="sum"``, the sum of those of its groups.

    ``mask`` is True for live responses; the others are left out as if they were not there, may be NaN, and get gradient 0. A group with
    fewer than two live responses counts for nothing. ``reduction``: "none" gives a loss a prompt, 0 where there is none to have;
    "sum" adds them; "mean" divides by the number of prompts that have one, and is a differentiable 0 if none has.

    float64 student rewards are computed in float64, all else in float32; the loss has that dtype and the gradient the student's. The
    gradient is not differentiable again. ``impl`` is "auto", "torch" or "triton", see :mod:`pad_fast.dispatch`.

    Raises ValueError for unfit shapes, dtypes or options, and for live rewards that are not finite: on a CPU unless
    ``check_finite=False``, on other devices only with ``check_finite=True``, since it waits for the device.
    """
    return preference_loss(
        "ppd",
        student_rewards,
        teacher_rewards,
        beta=beta,
        teacher_beta=teacher_beta,
        divergence=divergence,
        method=method,
        num_samples=num_samples,
        seed=seed,
        group_size=group_size,
        group_reduction=group_reduction,
        mask=mask,
        reduction=reduction,
        check_finite=check_finite,
        impl=impl,
    )


def vanilla_preference_loss(
    student_rewards: Tensor,  # (P, N)
    teacher_rewards: Tensor,  # (P, N)
    *,
    beta: float = 10.0,
    group_size: int | None = None,
    group_reduction: str = "mean",
    mask: Tensor | None = None,  # (P, N) bool
    reduction: str = "mean",
    check_finite: bool | None = None,
    impl: str = "auto",
) -> Tensor:  # () or, with reduction="none", (P,)
    """VPD: -log P_s(tau), in nats, with tau the responses in the order of the teacher's rewards, ties by index.

    The ListMLE loss of beta * r, for any N; for N = 2 it is SimPO with gamma = 0. All options are those of
    :func:`probabilistic_preference_loss`. The teacher's rewards are compared in their own dtype.

    Raises ValueError as :func:`probabilistic_preference_loss` does.
    """
    return preference_loss(
        "vpd",
        student_rewards,
        teacher_rewards,
        beta=beta,
        group_size=group_size,
        group_reduction=group_reduction,
        mask=mask,
        reduction=reduction,
        check_finite=check_finite,
        impl=impl,
    )


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_rewards(student: Tensor, teacher: Tensor, mask: Tensor | None) -> None:
    """(P, N) rewards of both sides, N at least 2, and a (P, N) mask, all on one device."""
    validation.check_floating("student_rewards", student)
    validation.check_floating("teacher_rewards", teacher)
    if student.ndim != 2 or student.shape[1] < 2:
        raise ValueError(
            f"student_rewards must be (P, N) with at least N = 2 responses a prompt, got {validation.shape(student)}"
        )
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool, True for live responses, got {mask.dtype}")
    for name, tensor in (("teacher_rewards", teacher), ("mask", mask)):
        if tensor is None:
            continue
        if tensor.shape != student.shape:
            raise ValueError(
                f"{name} must have the shape of student_rewards, {validation.shape(student)}, got {validation.shape(tensor)}"
            )
        if tensor.device != student.device:
            raise ValueError(
                f"{name} must be on the device of student_rewards, {student.device}, got {tensor.device}"
            )


def _groups(
    student: Tensor, teacher: Tensor, mask: Tensor | None, size: int | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Student, teacher and mask as (P * groups, n): consecutive live responses, what is missing in a prompt's last groups masked."""
    student = student.to(torch.promote_types(student.dtype, torch.float32))
    teacher = teacher.detach()
    num = student.shape[1]
    if size is None or size >= num:
        return student, teacher, mask
    missing = -num % size
    if mask is not None:
        order = (~mask).long().argsort(dim=1, stable=True)
        student, teacher, mask = (
            student.gather(1, order),
            teacher.gather(1, order),
            mask.gather(1, order),
        )
    elif missing:
        mask = torch.ones_like(student, dtype=torch.bool)
    student, teacher = (
        pad(rewards, (0, missing)).reshape(-1, size) for rewards in (student, teacher)
    )
    return student, teacher, None if mask is None else pad(mask, (0, missing)).reshape(-1, size)


def _reduce(
    losses: Tensor, live: Tensor | None, num_prompts: int, group_reduction: str, reduction: str
) -> Tensor:
    """(P * groups,) -> the loss, counting the groups and the prompts that have two live responses."""
    by_prompt = (num_prompts, losses.shape[0] // max(1, num_prompts))
    loss = losses.view(by_prompt).sum(1)
    counts = torch.ones_like(losses, dtype=torch.bool) if live is None else live.sum(1) > 1
    groups = counts.view(by_prompt).sum(1)
    if group_reduction == "mean":
        loss = loss / groups.clamp(min=1)
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.sum() / (groups > 0).sum().clamp(min=1)
