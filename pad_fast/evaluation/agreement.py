"""How far the student ranks responses as the teacher does."""

from typing import Literal

import torch
from torch import Tensor

# nats per token: one text scored in two batches differs by about 1e-6 in float32, and copies of a text must not be ranked by that
TIE = 1e-5


def ranking_agreement(
    student_PN: Tensor,
    teacher_PN: Tensor,
    mask: Tensor | None = None,
    *,
    reduction: Literal["mean", "none"] = "mean",
) -> dict[str, Tensor]:
    """Agreement of two sets of rewards on the order of the N responses to each of P prompts.

    With C pairs ordered alike, D ordered in opposite ways, and n_t, n_s pairs that the teacher, the student does not tie::

        kendall_tau    (C - D) / sqrt(n_t * n_s)      Kendall's tau-b, in [-1, 1]; 0 where the student ties all
        pair_accuracy  C / n_t                        a pair that the student ties is not ordered as the teacher does
        top1           share of the student's best responses (more than one where it ties) that are the teacher's best

    Rewards within ``1e-5`` of each other are tied: copies of one response differ by as little when batched differently.
    A prompt counts only if the teacher ranks it: with fewer than two live responses, or where the teacher gives all of them
    the same reward, there is no order to agree with, and top-1 would be 1 for nothing.

    Args:
        student_PN, teacher_PN: rewards (P, N) in any float dtype, higher is better.
        mask: bool (P, N), True for a live response; None for all. Values that are masked out may be NaN.
        reduction: "mean" over the prompts that count, NaN if there are none; "none" gives (P,), NaN where a prompt does not
            count, so that batches can be pooled with ``nanmean``.

    Returns:
        float32 tensors on the rewards' device, 0-dimensional or (P,). Nothing here waits for a GPU.

    Raises:
        ValueError: shapes that differ, an unknown reduction, or (checked on the CPU only) a live reward that is NaN.
    """
    live_PN = _check(student_PN, teacher_PN, mask, reduction)
    student_order, teacher_order = (
        _pair_order(student_PN, live_PN),
        _pair_order(teacher_PN, live_PN),
    )  # (P, N, N)
    # every pair is met twice, (i, j) and (j, i): the factor 2 falls out of each ratio
    student_pairs = student_order.abs().sum(dim=(1, 2))  # (P,)
    teacher_pairs = teacher_order.abs().sum(dim=(1, 2))
    product = student_order * teacher_order
    tau = product.sum(dim=(1, 2)) / (student_pairs * teacher_pairs).sqrt().clamp(min=1.0)
    best_PN = _is_best(student_PN, live_PN)
    found = {
        "kendall_tau": tau,
        "top1": (best_PN & _is_best(teacher_PN, live_PN)).sum(1) / best_PN.sum(1).clamp(min=1),
        "pair_accuracy": (product > 0).sum(dim=(1, 2)) / teacher_pairs.clamp(min=1.0),
    }
    found = {
        name: value.masked_fill(teacher_pairs == 0, torch.nan) for name, value in found.items()
    }
    return (
        found if reduction == "none" else {name: value.nanmean() for name, value in found.items()}
    )


def _pair_order(reward_PN: Tensor, live_PN: Tensor) -> Tensor:
    """+1 where response i beats j, -1 where j beats i, 0 for a tie or a dead response: float32 (P, N, N)."""
    first, second = reward_PN.unsqueeze(2), reward_PN.unsqueeze(1)
    order = (first > second + TIE).float() - (
        second > first + TIE
    ).float()  # no difference is taken: -inf - -inf is NaN
    return order * (live_PN.unsqueeze(2) & live_PN.unsqueeze(1))


def _is_best(reward_PN: Tensor, live_PN: Tensor) -> Tensor:
    """bool (P, N): the live responses whose reward is the highest of their prompt, or tied with it."""
    live_reward = reward_PN.masked_fill(~live_PN, -torch.inf)
    return live_PN & (live_reward + TIE >= live_reward.amax(dim=1, keepdim=True))


def _check(student_PN: Tensor, teacher_PN: Tensor, mask: Tensor | None, reduction: str) -> Tensor:
    """The live responses, bool (P, N)."""
    shape = tuple(student_PN.shape)
    if len(shape) != 2 or shape[1] == 0 or tuple(teacher_PN.shape) != shape:
        raise ValueError(
            f"student_PN and teacher_PN must have one shape (P, N) with N >= 1, given {shape} and {tuple(teacher_PN.shape)}"
        )
    if mask is not None and (mask.dtype != torch.bool or tuple(mask.shape) != shape):
        raise ValueError(
            f"mask must be bool of the rewards' shape {shape}, given {mask.dtype} {tuple(mask.shape)}"
        )
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction must be 'mean' or 'none', given {reduction!r}")
    live_PN = (
        torch.ones(shape, dtype=torch.bool, device=student_PN.device) if mask is None else mask
    )
    for name, reward_PN in (("student_PN", student_PN), ("teacher_PN", teacher_PN)):
        if reward_PN.device.type == "cpu" and (count := int((reward_PN.isnan() & live_PN).sum())):
            raise ValueError(
                f"{name} must not be NaN where mask is True, given NaN for {count} responses"
            )
    return live_PN
