"""What is logged of a batch: one line of numbers a prompt, NaN where a prompt does not count, so that lines can be pooled."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pad_fast.evaluation import ranking_agreement

SATURATION = 0.95 * math.log(
    2
)  # of a JSD, which ends at ln 2; above, next to nothing of its gradient is left
SMALLEST, LARGEST = "completions/min_length", "completions/max_length"
NAMES = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "ranking/kendall_tau",
    "ranking/top1",
    "logps/mean",
    "completions/mean_length",
    SMALLEST,
    LARGEST,
    "completions/clipped_ratio",
    "loss/saturated",
    "loss",
)


def prompt_metrics(
    loss: Tensor,  # (P,)
    student: Tensor,  # (P, N)
    teacher: Tensor,  # (P, N)
    mask: Tensor,  # (P, N) bool
    lengths: Tensor,  # (P, N) tokens
    clipped: Tensor,  # (P, N) bool
    *,
    normalize: str,
    saturates: bool,
) -> Tensor:  # (P, len(NAMES)) float32
    """The metrics of each prompt, detached, in the order of ``NAMES``.

    ``rewards/chosen`` and ``rewards/rejected`` are the student's rewards of the teacher's best and worst response, without beta;
    ``rewards/accuracies`` the share of pairs ordered as the teacher orders them; ``logps/mean`` the mean over responses of the
    mean token log-probability, in nats per token, whatever ``normalize`` is. Rankings count where the teacher has one.
    """
    loss, student, teacher = loss.detach().float(), student.detach().float(), teacher.float()
    agreement = ranking_agreement(student, teacher, mask, reduction="none")
    ranked = ~agreement["kendall_tau"].isnan()
    best = teacher.masked_fill(~mask, -torch.inf).argmax(1, keepdim=True)
    worst = teacher.masked_fill(~mask, torch.inf).argmin(1, keepdim=True)
    chosen = student.gather(1, best)[:, 0].where(ranked, torch.nan)
    rejected = student.gather(1, worst)[:, 0].where(ranked, torch.nan)
    live, lengths = mask.sum(1), lengths.float()
    logps = student if normalize == "mean" else student / lengths.clamp(min=1)
    columns = (
        chosen,
        rejected,
        chosen - rejected,
        agreement["pair_accuracy"],
        agreement["kendall_tau"],
        agreement["top1"],
        logps.masked_fill(~mask, 0).sum(1) / live,
        lengths.masked_fill(~mask, 0).sum(1) / live,
        lengths.masked_fill(~mask, torch.inf).amin(1),
        lengths.masked_fill(~mask, 0).amax(1),
        (clipped & mask).sum(1) / live,
        (loss > SATURATION).float() if saturates else torch.full_like(loss, torch.nan),
        loss,
    )
    return torch.stack(columns, 1).masked_fill((live < 2)[:, None], torch.nan)


def summarize(table: Tensor) -> dict[str, float]:
    """Means over the prompts that count (the least and the greatest of the lengths); what no prompt has is left out."""
    found = {}
    for name, column in zip(NAMES, table.double().T, strict=True):
        values = column[~column.isnan()]
        if len(values):
            found[name] = (
                values.min()
                if name == SMALLEST
                else values.max()
                if name == LARGEST
                else values.mean()
            ).item()
    return found
