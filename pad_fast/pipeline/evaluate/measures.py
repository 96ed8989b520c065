"""From sampled and scored rows to the numbers of an evaluation; None where a number does not apply."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from pad_fast.evaluation import exact_match, ranking_agreement
from pad_fast.pipeline.files import Row
from pad_fast.pipeline.sample.metrics import sampling_metrics
from pad_fast.training.config import PADConfig
from pad_fast.training.objective import preference_loss

Rewards = Sequence[Sequence[float | None]]


def accuracies(greedy: Sequence[Row], fresh: Sequence[Row]) -> Row:
    """Share of right answers, greedy and sampled, among the prompts that have an answer; and the same for each skill."""
    skills = sorted(
        {row["skill"] for row in greedy if row["skill"] is not None and row["answer"] is not None}
    )
    by_skill = {}
    for skill in skills:
        parts = [[row for row in rows if row["skill"] == skill] for rows in (greedy, fresh)]
        by_skill[skill] = {
            "greedy_accuracy": _right(parts[0]),
            "sampled_accuracy": _right(parts[1]),
            "count": len(parts[0]),
        }
    return {
        "greedy_accuracy": _right(greedy),
        "sampled_accuracy": _right(fresh),
        "skills": by_skill,
    }


def lengths(greedy: Sequence[Row], fresh: Sequence[Row]) -> Row:
    """Mean tokens of a greedy response; the repeated and the clipped share of the sampled ones."""
    sampled = sampling_metrics(fresh)
    return {
        "mean_length": mean(len(row["completion_ids"][0]) for row in greedy),
        "duplicate_ratio": sampled["completions/duplicate_ratio"],
        "clipped_ratio": sampled["completions/clipped_ratio"],
    }


def agreement(student: Rewards, teacher: Rewards) -> Row:
    """Kendall's tau-b and top-1 of the student's rewards with the teacher's; None marks a masked response."""
    student_PN, teacher_PN, mask = _tensors(student, teacher)
    found = ranking_agreement(student_PN, teacher_PN, mask)
    return {name: _number(found[name].item()) for name in ("kendall_tau", "top1")}


def taus(student: Rewards, teacher: Rewards) -> list[float]:
    """Kendall's tau-b of each prompt that the teacher ranks."""
    student_PN, teacher_PN, mask = _tensors(student, teacher)
    found = ranking_agreement(student_PN, teacher_PN, mask, reduction="none")[
        "kendall_tau"
    ].tolist()
    return [tau for tau in found if not math.isnan(tau)]


def losses(student: Rewards, teacher: Rewards, args: PADConfig) -> list[float | None]:
    """The configured preference loss of each prompt; None for one with fewer than two live responses."""
    student_PN, teacher_PN, mask = _tensors(student, teacher)
    found = preference_loss(args)(student_PN, teacher_PN, mask=mask, seed=args.seed).tolist()
    return [
        loss if live >= 2 else None for loss, live in zip(found, mask.sum(1).tolist(), strict=True)
    ]


def mean(values: Iterable[float]) -> float | None:
    """The mean, None of nothing."""
    numbers = list(values)
    return math.fsum(numbers) / len(numbers) if numbers else None


def _right(rows: Sequence[Row]) -> float | None:
    return mean(
        float(exact_match(text, row["answer"]))
        for row in rows
        if row["answer"] is not None
        for text in row["completions"]
    )


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _tensors(student: Rewards, teacher: Rewards) -> tuple[Tensor, Tensor, Tensor]:
    """float64 rewards (P, N) of both sides and the mask of the responses that the teacher could score."""

    def tensor(rewards: Rewards) -> Tensor:
        return torch.tensor(
            [[math.nan if value is None else value for value in group] for group in rewards],
            dtype=torch.float64,
        )

    teacher_PN = tensor(teacher)
    return tensor(student), teacher_PN, ~teacher_PN.isnan()
