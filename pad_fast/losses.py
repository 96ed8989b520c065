"""The listwise losses of Preference-Aligned Distillation (PAD) as pure functions of rewards.

Rewards r of a prompt's N responses define a distribution over the N! rankings tau (Plackett-Luce),

    P(tau) = prod_k exp(beta * r[tau_k]) / sum_{l >= k} exp(beta * r[tau_l]),

for the teacher and for the student, and a loss compares the two.

Notes:
    An exact KL costs O(n 2^n), for at most 16 live responses in a group. An exact JSD costs O(n!)
    sums without a table of rankings, for at most 10. Sampled values and gradients are unbiased.

    Each group goes by its own number of live responses where they can be counted without waiting
    for a device: without a mask, and on CPUs. Elsewhere method="exact" goes by N (or group_size),
    and method="auto" samples KLs of 13 to 16 live responses among more than 16.

    The Triton kernels take at most 12 responses for an exact KL, 10 for an exact JSD and 32 for a
    sampled divergence. The same seed gives other rankings than in PyTorch.

    Source: arXiv 2502.14272.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from pad_fast import argument_checks, device
from pad_fast.dispatch import check_impl
from pad_fast.preference import loss_kinds
from pad_fast.preference import op as preference_op
from pad_fast.preference.plackett_luce import RankingOptions

METHODS = ("auto", "exact", "sampled")
GROUP_REDUCTIONS = ("mean", "sum")
REDUCTIONS = ("mean", "sum", "none")
MIN_SAMPLES = 4  # two draws from each side: the estimators compare a draw with the others


@dataclass(frozen=True)
class LossOptions:
    """The options of all losses, with their defaults; each loss names those that it has.

    Raises:
        ValueError: a value is out of its range.
    """

    beta: float = 10.0
    teacher_beta: float | None = None  # None: beta
    divergence: str | None = None  # None: the first of the loss
    method: str = "auto"
    num_samples: int = 256
    seed: int = 0
    group_size: int | None = None
    group_reduction: str = "mean"
    reduction: str = "mean"
    check_finite: bool | None = None  # None: where that does not wait for a device

    def __post_init__(self) -> None:
        argument_checks.check_choice("method", self.method, METHODS)
        argument_checks.check_choice("group_reduction", self.group_reduction, GROUP_REDUCTIONS)
        argument_checks.check_choice("reduction", self.reduction, REDUCTIONS)
        for name, value in (("beta", self.beta), ("teacher_beta", self.teacher_scale)):
            if not 0 < value < float("inf"):
                raise ValueError(f"{name} must be a positive finite number, got {value}")
        if self.num_samples < MIN_SAMPLES:
            raise ValueError(f"num_samples must be at least {MIN_SAMPLES}, got {self.num_samples}")
        if not -(2**63) <= self.seed < 2**63:
            limits = "from -2**63 to 2**63 - 1"
            raise ValueError(f"seed must be an integer of 64 bits, {limits}, got {self.seed}")
        if self.group_size is not None and self.group_size < 2:
            raise ValueError(f"group_size must be None or at least 2, got {self.group_size}")

    @property
    def teacher_scale(self) -> float:
        """The factor of the teacher's rewards."""
        return self.beta if self.teacher_beta is None else self.teacher_beta

    def of_rankings(self) -> RankingOptions:
        """The numbers that the op takes."""
        return RankingOptions(
            float(self.beta), float(self.teacher_scale), self.num_samples, int(self.seed)
        )


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
    """PPD: the divergence between the distributions over rankings, in nats.

    Args:
        student_rewards, teacher_rewards: (P, N), N >= 2. The teacher's are constants.
        beta, teacher_beta: factors of the rewards; teacher_beta=None is beta.
        divergence: "jsd", at most ln 2; "kl", KL(P_t || P_s); "reverse_kl", KL(P_s || P_t).
        method: "exact"; "sampled"; "auto", exact for at most 8 (KLs: 16) live responses.
        num_samples, seed: sampled rankings, at least 4; give each step its own seed.
        group_size: rank consecutive live responses in groups of this size.
        group_reduction: "mean" or "sum" of a prompt's groups.
        mask: True for live responses; the others may be NaN and get gradient 0.
        reduction: "mean" over prompts with two live responses, "sum" or "none".
        check_finite: check that live rewards are finite. None: on CPUs, since it waits for a GPU.
        impl: "auto", "torch" or "triton", see :mod:`pad_fast.dispatch`.

    Returns:
        The loss in float32, or float64 for float64 student rewards; a differentiable 0 if nothing
        is ranked. Its gradient is not differentiable.

    Raises:
        ValueError: wrong shapes, dtypes or options; live rewards that are not finite.

    Example:
        >>> student = torch.tensor([[-1.4, -1.1, -1.3]], requires_grad=True)
        >>> teacher = torch.tensor([[-1.0, -1.2, -0.9]])
        >>> loss = probabilistic_preference_loss(student, teacher, divergence="kl")
        >>> round(loss.item(), 3)
        3.763
        >>> loss.backward()
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
    """VPD: -log P_s(tau) in nats, where tau ranks the responses by the teacher's rewards.

    This is ListMLE of beta * r, for any N. For N = 2 it is SimPO with gamma = 0.

    Args:
        student_rewards, teacher_rewards: (P, N), N >= 2. Teacher rewards are compared in their own
            dtype; equal ones rank by index.
        beta: factor of the student's rewards.
        group_size, group_reduction, mask, reduction, check_finite, impl: as in
            :func:`probabilistic_preference_loss`.

    Returns:
        The loss, as :func:`probabilistic_preference_loss` returns it.

    Raises:
        ValueError: as :func:`probabilistic_preference_loss`.

    Example:
        >>> student = torch.tensor([[-1.4, -1.1, -1.3]], requires_grad=True)
        >>> teacher = torch.tensor([[-1.0, -1.2, -0.9]])
        >>> loss = vanilla_preference_loss(student, teacher)
        >>> round(loss.item(), 3)
        5.218
        >>> loss.backward()
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


def check_loss(loss: str, options: dict[str, Any]) -> None:
    """Raise ValueError for a loss that does not exist, or for an option that it does not have."""
    argument_checks.check_choice("loss", loss, loss_kinds.LOSSES)
    known = loss_kinds.LOSSES[loss].options
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
    """The loss of this name. The modules, the linear loss and the trainer call it by name.

    Args:
        loss: a name in ``pad_fast.preference.loss_kinds.LOSSES``.
        student_rewards, teacher_rewards, mask, impl: as in :func:`probabilistic_preference_loss`.
        options: fields of :class:`LossOptions` that this loss has.

    Returns:
        The loss, as :func:`probabilistic_preference_loss` returns it.

    Raises:
        ValueError: as :func:`check_loss`, and as :func:`probabilistic_preference_loss`.
    """
    check_loss(loss, options)
    given = LossOptions(**options)
    kind = loss_kinds.LOSSES[loss].kind(given.divergence)
    check_impl(impl)
    check_rewards(student_rewards, teacher_rewards, mask)
    student, teacher, live = _groups(student_rewards, teacher_rewards, mask, given.group_size)
    waits = device.waits_for_values(student.device)
    # With a mask on a CPU, the op counts the live responses of each group, and checks those.
    if mask is None or waits:
        kind.check_exact(given.method, student.shape[1])
    numbers = given.of_rankings()
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
    return _reduce(losses, live, len(student_rewards), given)


def check_rewards(student: Tensor, teacher: Tensor, mask: Tensor | None) -> None:
    """Raise ValueError unless rewards are (P, N) with N >= 2, on one device, and so is the mask."""
    argument_checks.check_floating("student_rewards", student)
    argument_checks.check_floating("teacher_rewards", teacher)
    shape = argument_checks.shape(student)
    if student.ndim != 2 or student.shape[1] < 2:
        rule = "must be (P, N) with at least N = 2 responses a prompt"
        raise ValueError(f"student_rewards {rule}, got {shape}")
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool, True for live responses, got {mask.dtype}")
    for name, tensor in (("teacher_rewards", teacher), ("mask", mask)):
        if tensor is None:
            continue
        if tensor.shape != student.shape:
            rule = f"must have the shape of student_rewards, {shape}"
            raise ValueError(f"{name} {rule}, got {argument_checks.shape(tensor)}")
        if tensor.device != student.device:
            rule = f"must be on the device of student_rewards, {student.device}"
            raise ValueError(f"{name} {rule}, got {tensor.device}")


def _groups(
    student: Tensor, teacher: Tensor, mask: Tensor | None, size: int | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Student, teacher and mask as (P * groups, n): consecutive live responses form a group.

    The last groups of a prompt are filled up with masked responses.
    """
    student = student.to(torch.promote_types(student.dtype, torch.float32))
    teacher = teacher.detach()
    num = student.shape[1]
    if size is None or size >= num:
        return student, teacher, mask
    missing = -num % size
    if mask is not None:
        order = (~mask).long().argsort(dim=1, stable=True)  # the live ones first
        student, teacher, mask = (part.gather(1, order) for part in (student, teacher, mask))
    elif missing:
        mask = torch.ones_like(student, dtype=torch.bool)
    student, teacher = (
        pad(rewards, (0, missing)).reshape(-1, size) for rewards in (student, teacher)
    )
    return student, teacher, None if mask is None else pad(mask, (0, missing)).reshape(-1, size)


def _reduce(losses: Tensor, live: Tensor | None, num_prompts: int, options: LossOptions) -> Tensor:
    """(P * groups,) -> the loss. Groups and prompts without two live responses do not count."""
    by_prompt = (num_prompts, losses.shape[0] // max(1, num_prompts))
    loss = losses.view(by_prompt).sum(1)
    counts = torch.ones_like(losses, dtype=torch.bool) if live is None else live.sum(1) > 1
    groups = counts.view(by_prompt).sum(1)
    if options.group_reduction == "mean":
        loss = loss / groups.clamp(min=1)
    if options.reduction == "none":
        return loss
    if options.reduction == "sum":
        return loss.sum()
    return loss.sum() / (groups > 0).sum().clamp(min=1)
