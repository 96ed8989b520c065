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

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pad_fast import argument_checks, device
from pad_fast.dispatch import check_impl
from pad_fast.preference import loss_kinds
from pad_fast.preference import op as preference_op
from pad_fast.preference.likelihood import negative_likelihood
from pad_fast.preference.loss_kinds import Kind, Loss
from pad_fast.preference.op import Groups
from pad_fast.preference.options import LossOptions
from pad_fast.preference.reward_inputs import (
    check_columns,
    check_rewards,
    counted_prompts,
    in_full_precision,
    in_groups,
    with_second_place,
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
    anchor_rewards: Tensor | None = None,  # (P, N)
    from_teacher: Tensor | None = None,  # (P, N) bool
    lengths: Tensor | None = None,  # (P, N) int64
    impl: str = "auto",
    **options: Any,
) -> Tensor:  # () or, with reduction="none", (P,)
    """A loss by its name, alone or with the likelihood of responses, in nats.

    preference_weight * loss(r - anchor, t) - likelihood_weight * sum_i w_i r_i

    Args:
        loss: a name in ``pad_fast.preference.loss_kinds.LOSSES``.
        student_rewards, teacher_rewards: r and t, as in :func:`probabilistic_preference_loss`.
        mask, impl: as there.
        anchor_rewards: the rewards under the model that the training started from; DPO needs them.
        from_teacher: True for the teacher's own responses.
        lengths: numbers of tokens, as :func:`response_lengths` counts them; a response without one
            does not count.
        options: fields of :class:`pad_fast.preference.options.LossOptions` that this loss has.
            ``likelihood_on`` says what w is: 1 on the "best" response, on the "teacher"'s own, or
            "weighted", softmax(likelihood_beta * t).

    Returns:
        As :func:`probabilistic_preference_loss`. With a likelihood, prompts of one live response
        count too.

    Raises:
        ValueError: an unknown loss or option; DPO without an anchor; ``likelihood_on="teacher"``
            without ``from_teacher``; as :func:`probabilistic_preference_loss`.

    Example:
        >>> student, teacher = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-0.5, -0.7]])
        >>> preference_loss("simpo", student, teacher, beta=2.0, gamma=0.5)
        tensor(0.2014)
        >>> preference_loss("vpd", student, teacher, preference_weight=0.0, likelihood_weight=3.0)
        tensor(3.)

    Notes:
        r is a mean over a response's tokens, or a sum with ``normalize="sum"``, in both terms.
    """
    check_loss(loss, options)
    entry, given = loss_kinds.LOSSES[loss], LossOptions(**options)
    check_impl(impl)
    check_rewards(student_rewards, teacher_rewards, mask, entry.least_live(given))
    check_columns(entry, student_rewards, anchor_rewards, from_teacher, lengths)
    if student_rewards.shape[1] == 1 and mask is None:
        mask = torch.ones_like(student_rewards, dtype=torch.bool)
    entry.check_weights(given.preference_weight, given.likelihood_weight)
    rewards = Groups(
        with_second_place(in_full_precision(student_rewards)),
        with_second_place(teacher_rewards.detach()),
        with_second_place(mask),
        with_second_place(lengths),
    )
    anchor = with_second_place(anchor_rewards)
    _check_finite({"anchor_rewards": anchor}, rewards, given.check_finite)
    if entry.is_ranking_alone(given.preference_weight, given.likelihood_weight):
        return _ranking_loss(entry, rewards, anchor, given, impl)
    rewards = rewards.with_one_mask()
    return _with_likelihood(entry, rewards, anchor, with_second_place(from_teacher), given, impl)


def _check_finite(given: Mapping[str, Tensor | None], rewards: Groups, asked: bool | None) -> None:
    """Raise ValueError for numbers that are not finite, if that is asked or costs no wait."""
    for name, values in given.items():
        if values is None or not device.can_read_values(values):
            continue
        if asked or (asked is None and not device.waits_for_values(values.device)):
            preference_op.check_finite_rewards(name, values, rewards.with_one_mask().live)


def _with_likelihood(
    loss: Loss,
    rewards: Groups,
    anchor: Tensor | None,
    from_teacher: Tensor | None,
    options: LossOptions,
    impl: str,
) -> Tensor:  # () or (P,)
    """The weighted loss of rankings and the weighted likelihood, one of which may be left out."""
    student, teacher, mask, _ = rewards
    live = torch.ones_like(teacher, dtype=torch.bool) if mask is None else mask
    if options.preference_weight:
        losses = _ranking_loss(loss, rewards, anchor, replace(options, reduction="none"), impl)
        total = losses if options.preference_weight == 1 else options.preference_weight * losses
    else:
        total = student.new_zeros(len(student))
        # The op, which would check these, is not called.
        checked = {"student_rewards": student, "teacher_rewards": teacher}
        _check_finite(checked, rewards, options.check_finite)
    if loss.adds_likelihood(options.likelihood_weight):
        weight = loss.weight_of_likelihood(options.likelihood_weight, live, total.dtype)
        on, beta = options.likelihood_on, options.likelihood_beta
        total = total + weight * negative_likelihood(student, teacher, live, from_teacher, on, beta)
    return _reduced(total, live, loss.least_live(options), options.reduction)


def _reduced(losses: Tensor, live: Tensor | None, least: int, reduction: str) -> Tensor:
    """The losses (P,) of prompts, their sum, or their mean over prompts that have one."""
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    if live is None:
        return losses.sum() / max(1, len(losses))
    return losses.sum() / counted_prompts(live, least).clamp(min=1)


def _ranking_loss(
    loss: Loss, rewards: Groups, anchor: Tensor | None, options: LossOptions, impl: str
) -> Tensor:  # () or (P,)
    """The loss without the likelihood."""
    if anchor is not None:
        wide = torch.promote_types(rewards.student.dtype, torch.float32)
        rewards = rewards._replace(student=(rewards.student - anchor.detach()).to(wide))
    kind, size = loss.kind(options.divergence), options.group_size
    if size is None or size >= rewards.student.shape[1]:  # one group each: the op reduces them
        return _of_groups(kind, rewards, options, impl, options.reduction)
    num_prompts, given = len(rewards.student), rewards.with_one_mask()
    rewards = Groups(*in_groups(given.student, given.teacher, given.live, size), None)
    losses = _of_groups(kind, rewards, options, impl, "none")
    by_prompt = (num_prompts, losses.shape[0] // max(1, num_prompts))
    total = losses.view(by_prompt).sum(1)
    if options.group_reduction == "mean":
        live = rewards.live
        counts = (
            torch.ones_like(losses, dtype=torch.bool) if live is None else live.sum(1) >= kind.least
        )
        total = total / counts.view(by_prompt).sum(1).clamp(min=1)
    return _reduced(total, given.live, kind.least, options.reduction)


def _without_offset(teacher: Tensor, live: Tensor | None) -> Tensor:
    """Rewards with 0 for the best of each prompt, which no loss tells from the rewards as given.

    The student's float32 would spend its digits on what all rewards of a prompt have in common.
    """
    known = teacher if live is None else teacher.masked_fill(~live, -torch.inf)
    best = known.amax(1, keepdim=True)
    return teacher - best.nan_to_num(0, 0, 0)  # one launch, where the rewards are not finite too


def _of_groups(
    kind: Kind, rewards: Groups, options: LossOptions, impl: str, reduction: str
) -> Tensor:  # (G,) or ()
    """The losses of groups, or their sum or mean."""
    waits = device.waits_for_values(rewards.student.device)
    # Where some may not count, on a CPU, the op counts those of each group that do, and checks it.
    if waits or not rewards.may_be_smaller:
        kind.check_exact(options.method, rewards.student.shape[1])
    student, teacher, live, lengths = rewards
    if student.dtype != torch.float64 == teacher.dtype:
        teacher = _without_offset(teacher, live)
    losses, _, _ = preference_op.preference_loss(
        student,
        teacher,
        live,
        lengths,
        kind.name,
        options.method,
        not waits if options.check_finite is None else options.check_finite,
        impl,
        reduction,
        *options.of_rankings(),
    )
    return losses
