"""What is measured of the teacher's scores."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat

from pad_fast.evaluation.evaluated_model import mean
from pad_fast.files.stored_rows import Row


def reward_metrics(rows: Sequence[Row]) -> Row:
    """The mean reward, the mean spread within a prompt, and the number of masked responses."""
    groups = [[reward for reward in row["teacher_rewards"] if reward is not None] for row in rows]
    rewards = [reward for group in groups for reward in group]
    metrics: Row = {
        "teacher/masked": sum(len(row["teacher_rewards"]) for row in rows) - len(rewards)
    }
    if rewards:
        metrics["teacher/reward_mean"] = sum(rewards) / len(rewards)
        metrics["teacher/reward_spread"] = sum(
            max(group) - min(group) for group in groups if group
        ) / sum(map(bool, groups))
    return metrics


def choice_metrics(
    answers: Sequence[tuple[list[float], float]], of_draws: Sequence[bool] | None = None
) -> Row:
    """How much the teacher prefers a place, and how often it answers with a letter.

    Args:
        answers: of each question, the renormalized probabilities of its letters and their sum
            before that.
        of_draws: of each question, whether a place says nothing about the response in it, so that
            without a preference for a place each of k letters has a mean probability of 1/k; None
            for all.

    Returns:
        ``mcq/position_bias``, the mean probability of a place minus its share 1/k, for the place
        where that is farthest from 0: the first of pairs, and of lists often the last. It is of the
        questions ``of_draws``, and left out if there are none.
        ``mcq/letter_mass``, the mean sum.
    """
    if not answers:
        return {}
    mass = {"mcq/letter_mass": sum(mass for _, mass in answers) / len(answers)}
    fair = [
        probs for (probs, _), draws in zip(answers, of_draws or repeat(True), strict=False) if draws
    ]
    if not fair:
        return mass
    excess = [
        mean(probs[place] - 1 / len(probs) for probs in fair if place < len(probs)) or 0.0
        for place in range(max(map(len, fair)))
    ]
    bias = excess[0]
    for other in excess[1:]:  # the second of a pair mirrors the first, but for rounding
        bias = other if abs(other) > abs(bias) + 1e-9 else bias
    return {"mcq/position_bias": bias, **mass}
