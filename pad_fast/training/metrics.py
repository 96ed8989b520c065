"""The metrics of a batch: a row of numbers for each prompt, so that batches can be pooled.

A number is NaN where it does not apply to a prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pad_fast.evaluation import ranking_agreement
from pad_fast.preference.best_and_worst import best_and_worst

SATURATED = "loss/saturated"
CHOSEN = "logps/chosen"
SHORTEST, LONGEST = "completions/min_length", "completions/max_length"
NAMES = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "ranking/kendall_tau",
    "ranking/top1",
    "logps/mean",
    CHOSEN,
    "completions/mean_length",
    SHORTEST,
    LONGEST,
    "completions/clipped_ratio",
    SATURATED,
    "loss",
)


@dataclass(frozen=True)
class LossFacts:
    """What the metrics of a prompt depend on beside its numbers.

    Args:
        normalize: "mean" or "sum", as the student's rewards are made.
        saturation: the loss of rankings above which a prompt is saturated; None if it cannot be.
        least_live: the fewest live responses of a prompt that has a loss.
    """

    normalize: str
    saturation: float | None
    least_live: int = 2


def prompt_metrics(
    loss: Tensor,  # (P,)
    ranking: Tensor,  # (P,)
    student: Tensor,  # (P, N)
    teacher: Tensor,  # (P, N)
    mask: Tensor,  # (P, N) bool
    lengths: Tensor,  # (P, N) tokens
    clipped: Tensor,  # (P, N) bool
    facts: LossFacts,
) -> Tensor:  # (P, len(NAMES)) float32
    """The metrics of each prompt, detached, in the order of :data:`NAMES`.

    Args:
        loss: loss of each prompt.
        ranking: its part that compares rankings, with the weight 1.
        student, teacher: rewards, without beta.
        mask: True for live responses.
        lengths: tokens of each response.
        clipped: True for responses that did not end by themselves.
        facts: about the loss.

    Returns:
        ``rewards/chosen`` and ``rewards/rejected`` are the student's rewards of the teacher's best
        and worst response, the pair that ``pairs="best_worst"`` trains; ``rewards/accuracies`` is
        the share of pairs that the student orders as the teacher does. ``logps/mean`` and
        ``logps/chosen``, of the teacher's best response, are in nats per token, for either
        ``normalize``. Metrics of rankings are NaN where the teacher ranks nothing.
    """
    loss, student, teacher = loss.detach().float(), student.detach().float(), teacher.float()
    agreement = ranking_agreement(student, teacher, mask, reduction="none")
    ranked = ~agreement["kendall_tau"].isnan()
    ends = best_and_worst(teacher, mask)
    chosen, rejected = student.gather(1, ends).where(ranked[:, None], torch.nan).T
    live, lengths = mask.sum(1, dtype=loss.dtype), lengths.float()
    logps = student if facts.normalize == "mean" else student / lengths.clamp(min=1)
    nothing = torch.full_like(loss, torch.nan)
    columns = (
        chosen,
        rejected,
        chosen - rejected,
        agreement["pair_accuracy"],
        agreement["kendall_tau"],
        agreement["top1"],
        logps.masked_fill(~mask, 0).sum(1) / live,
        logps.gather(1, ends)[:, 0],
        lengths.masked_fill(~mask, 0).sum(1) / live,
        lengths.masked_fill(~mask, torch.inf).amin(1),
        lengths.masked_fill(~mask, 0).amax(1),
        (clipped & mask).sum(1) / live,
        nothing if facts.saturation is None else _share(ranking > facts.saturation, live),
        loss,
    )
    return torch.stack(columns, 1).masked_fill((live < facts.least_live)[:, None], torch.nan)


def _share(saturated: Tensor, live: Tensor) -> Tensor:
    """1 for saturated prompts and 0 for others; NaN for one response, which has no ranking."""
    return saturated.to(live.dtype).where(live >= 2, torch.nan)


# Each metric's value, after the number of prompts that it is taken over.
Summary = dict[str, tuple[int, float]]


def summarize(table: Tensor) -> Summary:
    """Each metric of a table (P, len(NAMES)) over its prompts, without those that no prompt has.

    It is the mean, but the least of the shortest and the greatest of the longest lengths.
    """
    found = {}
    for name, column in zip(NAMES, table.double().T, strict=True):
        values = column[~column.isnan()]
        if len(values):
            over_prompts = {SHORTEST: torch.min, LONGEST: torch.max}.get(name, torch.mean)
            found[name] = len(values), over_prompts(values).item()
    return found


def pooled(first: Summary, second: Summary) -> Summary:
    """The summary of the prompts of both, which have none in common.

    Example:
        >>> pooled({"loss": (1, 4.0)}, {"loss": (3, 8.0)})
        {'loss': (4, 7.0)}
    """
    found = {**first, **second}
    for name in first.keys() & second.keys():
        (n, a), (m, b) = first[name], second[name]
        extreme = {SHORTEST: min, LONGEST: max}.get(name)
        found[name] = n + m, extreme(a, b) if extreme else (n * a + m * b) / (n + m)
    return found
