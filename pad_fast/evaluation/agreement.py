"""How far the student ranks responses as the teacher does."""

from typing import Literal

import torch
from torch import Tensor

from pad_fast.argument_checks import check_tensor, check_tensors
from pad_fast.device import waits_for_values

# Rewards this close are tied. One text that is scored in two batches differs by about 1e-6 in
# float32, and copies of a text must not be ranked by that. In the rewards' unit.
TIE = 1e-5


def ranking_agreement(
    student_PN: Tensor,
    teacher_PN: Tensor,
    mask: Tensor | None = None,
    *,
    reduction: Literal["mean", "none"] = "mean",
) -> dict[str, Tensor]:
    """How far two sets of rewards agree on the order of N responses to each of P prompts.

    With C pairs that both order alike, D pairs that they order oppositely, and n_s and n_t pairs
    that the student and the teacher do not tie::

        kendall_tau    (C - D) / sqrt(n_s * n_t)   Kendall's tau-b, 0 if the student ties all
        pair_accuracy  C / n_t                     a pair that the student ties is not right
        top1           share of the student's best responses that are the teacher's best

    Args:
        student_PN, teacher_PN: rewards (P, N), higher is better, in any float dtype.
        mask: bool (P, N), True for a live response, None for all. Others may be NaN.
        reduction: "mean" over the prompts that count, or "none".

    Returns:
        The three numbers as float32 tensors, 0-dimensional or (P,), NaN where no prompt counts.

    Raises:
        ValueError: shapes differ, the reduction is unknown, or (on a CPU) a live reward is NaN.

    Example:
        >>> import torch
        >>> from pad_fast.evaluation import ranking_agreement
        >>> teacher = torch.tensor([[3.0, 2.0, 1.0]])
        >>> found = ranking_agreement(torch.tensor([[0.5, 0.1, 0.3]]), teacher)
        >>> found["kendall_tau"], found["top1"]
        (tensor(0.3333), tensor(1.))

    Notes:
        A prompt counts if the teacher ranks it. Rewards within 1e-5 are tied.
    """
    live_PN = _check(student_PN, teacher_PN, mask, reduction)
    student_PNN = _pair_order(student_PN, live_PN)
    teacher_PNN = _pair_order(teacher_PN, live_PN)
    # Every pair is counted twice, as (i, j) and as (j, i). The factor cancels in each ratio.
    student_pairs = student_PNN.abs().sum(dim=(1, 2))  # (P,)
    teacher_pairs = teacher_PNN.abs().sum(dim=(1, 2))  # (P,)
    product = student_PNN * teacher_PNN
    tau = product.sum(dim=(1, 2)) / (student_pairs * teacher_pairs).sqrt().clamp(min=1.0)
    best_PN = _is_best(student_PN, live_PN)
    hits = (best_PN & _is_best(teacher_PN, live_PN)).sum(1, dtype=tau.dtype)
    found = {
        "kendall_tau": tau,
        "top1": hits / best_PN.sum(1).clamp(min=1),
        "pair_accuracy": (product > 0).sum(dim=(1, 2)) / teacher_pairs.clamp(min=1.0),
    }
    # Where the teacher ties all, there is no order to agree with, and top-1 would be 1 always.
    unranked = teacher_pairs == 0
    found = {name: value.masked_fill(unranked, torch.nan) for name, value in found.items()}
    if reduction == "none":
        return found
    return {name: value.nanmean() for name, value in found.items()}


def _pair_order(reward_PN: Tensor, live_PN: Tensor) -> Tensor:
    """float32 (P, N, N): +1 where i beats j, -1 where j beats i, 0 if tied or masked out."""
    first, second = reward_PN.unsqueeze(2), reward_PN.unsqueeze(1)
    # Comparisons rather than a difference, since -inf - -inf is NaN.
    order = (first > second + TIE).float() - (second > first + TIE).float()
    return order * (live_PN.unsqueeze(2) & live_PN.unsqueeze(1))


def _is_best(reward_PN: Tensor, live_PN: Tensor) -> Tensor:
    """bool (P, N): live responses whose reward is the highest of their prompt, or tied with it."""
    live_reward = reward_PN.masked_fill(~live_PN, -torch.inf)
    return live_PN & (live_reward + TIE >= live_reward.amax(dim=1, keepdim=True))


def _check(student_PN: Tensor, teacher_PN: Tensor, mask: Tensor | None, reduction: str) -> Tensor:
    """The live responses, bool (P, N). Values are checked only where that waits for no GPU."""
    check_tensor("student_PN", student_PN)
    check_tensor("teacher_PN", teacher_PN)
    check_tensors(mask=mask)
    shape = tuple(student_PN.shape)
    if len(shape) != 2 or shape[1] == 0 or tuple(teacher_PN.shape) != shape:
        raise ValueError(
            "student_PN and teacher_PN must have one shape (P, N) with N >= 1, "
            f"given {shape} and {tuple(teacher_PN.shape)}"
        )
    if mask is None:
        mask = torch.ones(shape, dtype=torch.bool, device=student_PN.device)
    elif mask.dtype != torch.bool or tuple(mask.shape) != shape:
        raise ValueError(
            f"mask must be bool with the rewards' shape {shape}, "
            f"given {mask.dtype} {tuple(mask.shape)}"
        )
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction must be 'mean' or 'none', given {reduction!r}")
    for name, reward_PN in (("student_PN", student_PN), ("teacher_PN", teacher_PN)):
        if waits_for_values(reward_PN.device):
            continue
        if count := int((reward_PN.isnan() & mask).sum()):
            raise ValueError(
                f"{name} must not be NaN where mask is True, given NaN for {count} responses"
            )
    return mask
