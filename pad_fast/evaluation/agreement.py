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
    student_rewards: Tensor,  # (P, N)
    teacher_rewards: Tensor,  # (P, N)
    mask: Tensor | None = None,  # (P, N)
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
        student_rewards, teacher_rewards: rewards (P, N), higher is better, in any float dtype.
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
    live = _check(student_rewards, teacher_rewards, mask, reduction)  # (P, N)
    student_order = _pair_order(student_rewards, live)  # (P, N, N)
    teacher_order = _pair_order(teacher_rewards, live)  # (P, N, N)
    # Every pair is counted twice, as (i, j) and as (j, i). The factor cancels in each ratio.
    student_pairs = student_order.abs().sum(dim=(1, 2))  # (P,)
    teacher_pairs = teacher_order.abs().sum(dim=(1, 2))  # (P,)
    product = student_order * teacher_order
    tau = product.sum(dim=(1, 2)) / (student_pairs * teacher_pairs).sqrt().clamp(min=1.0)
    best = _is_best(student_rewards, live)  # (P, N)
    hits = (best & _is_best(teacher_rewards, live)).sum(1, dtype=tau.dtype)
    found = {
        "kendall_tau": tau,
        "top1": hits / best.sum(1).clamp(min=1),
        "pair_accuracy": (product > 0).sum(dim=(1, 2)) / teacher_pairs.clamp(min=1.0),
    }
    # Where the teacher ties all, there is no order to agree with, and top-1 would be 1 always.
    unranked = teacher_pairs == 0
    found = {name: value.masked_fill(unranked, torch.nan) for name, value in found.items()}
    if reduction == "none":
        return found
    return {name: value.nanmean() for name, value in found.items()}


def _pair_order(rewards: Tensor, live: Tensor) -> Tensor:
    """float32 (P, N, N): +1 where i beats j, -1 where j beats i, 0 if tied or masked out."""
    first, second = rewards.unsqueeze(2), rewards.unsqueeze(1)
    # Comparisons rather than a difference, since -inf - -inf is NaN.
    order = (first > second + TIE).float() - (second > first + TIE).float()
    return order * (live.unsqueeze(2) & live.unsqueeze(1))


def _is_best(rewards: Tensor, live: Tensor) -> Tensor:
    """bool (P, N): live responses whose reward is the highest of their prompt, or tied with it."""
    live_reward = rewards.masked_fill(~live, -torch.inf)
    return live & (live_reward + TIE >= live_reward.amax(dim=1, keepdim=True))


def _check(
    student_rewards: Tensor, teacher_rewards: Tensor, mask: Tensor | None, reduction: str
) -> Tensor:
    """The live responses, bool (P, N). Values are checked only where that waits for no GPU."""
    check_tensor("student_rewards", student_rewards)
    check_tensor("teacher_rewards", teacher_rewards)
    check_tensors(mask=mask)
    shape = tuple(student_rewards.shape)
    if len(shape) != 2 or shape[1] == 0 or tuple(teacher_rewards.shape) != shape:
        raise ValueError(
            "student_rewards and teacher_rewards must have one shape (P, N) with N >= 1, "
            f"given {shape} and {tuple(teacher_rewards.shape)}"
        )
    if mask is None:
        mask = torch.ones(shape, dtype=torch.bool, device=student_rewards.device)
    elif mask.dtype != torch.bool or tuple(mask.shape) != shape:
        raise ValueError(
            f"mask must be bool with the rewards' shape {shape}, "
            f"given {mask.dtype} {tuple(mask.shape)}"
        )
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction must be 'mean' or 'none', given {reduction!r}")
    for name, rewards in (
        ("student_rewards", student_rewards),
        ("teacher_rewards", teacher_rewards),
    ):
        if waits_for_values(rewards.device):
            continue
        if count := int((rewards.isnan() & mask).sum()):
            raise ValueError(
                f"{name} must not be NaN where mask is True, given NaN for {count} responses"
            )
    return mask
