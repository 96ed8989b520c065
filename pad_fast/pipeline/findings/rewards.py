"""Checks of the rewards of both models, and of the multiple-choice questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import compress
from typing import Any

from pad_fast.evaluation.choice import ChoiceEffect
from pad_fast.evaluation.evaluated_model import RewardPair, mean
from pad_fast.files.stored_rows import Row
from pad_fast.pipeline.config import RunConfig
from pad_fast.pipeline.evaluate.losses import prompt_losses
from pad_fast.pipeline.findings.finding import Finding, Verdict, graded, mean_and_error
from pad_fast.training.config import PADConfig
from pad_fast.training.objective import saturation, with_teacher_beta

# If beta * (best reward - worst reward) is below this, the best response is preferred to the worst
# with a probability of at most 52.5%.
FLAT = 0.1


def masked(rows: Sequence[Row]) -> Finding:
    """The share of responses without a teacher's reward: "look" above 0, "problem" from 25%."""
    rewards = [reward for row in rows for reward in row["teacher_rewards"]]
    share = rewards.count(None) / len(rewards)
    found = f"{share:.0%} of the responses have no reward from the teacher"
    advice = (
        "they are empty for the teacher or longer than its window: lower max_new_tokens or "
        "max_prompt_length"
    )
    if "given_scores" in rows[0]:
        found = f"{share:.0%} of the responses have no score"
        advice = "their rows hold none: add them, or have all scored (responses_scores: ignore)"
    return graded("unscored", share, 1e-9, 0.25, found, advice)


def flat_groups(rows: Sequence[Row], training: PADConfig, asks: bool = True) -> Finding:
    """The share of groups whose rewards hardly differ: "look" from 25%, "problem" from 75%.

    In such a group, teacher_beta * (best reward - worst reward) is below 0.1.
    """
    beta = _teacher_beta(rows, training)
    groups = [group for row in rows if len(group := _scored(row["teacher_rewards"])) >= 2]
    if not groups:
        advice = (
            "find out why they are unscored, or lower max_new_tokens; if they repeat one another, "
            "raise temperature"
        )
        return Finding(
            "reward spread",
            "problem",
            "no prompt has two different responses with a reward",
            advice,
            {"flat": None},
        )
    spreads = sorted(max(group) - min(group) for group in groups)
    flat, median = (
        sum(beta * spread < FLAT for spread in spreads) / len(spreads),
        spreads[len(spreads) // 2],
    )
    unit = "nats per token" if training.normalize == "mean" else "nats"
    advice = f"raise teacher_beta (now {beta:g})"
    if rows[0].get("sampled_by") != "given":
        advice += ", temperature or num_generations"
    if asks:
        advice += (
            "; if the responses' log-probabilities are the flat ones, set mcq_preset: paper and "
            "change mcq_weight"
        )
    found = f"in {flat:.0%} of the groups rewards hardly differ; median spread {median:.3g} {unit}"
    return graded(
        "reward spread",
        flat,
        0.25,
        0.75,
        found,
        advice,
        {"median_spread": median, "teacher_beta": beta},
    )


def saturated(rows: Sequence[Row], training: PADConfig, asks: bool = True) -> Finding:
    """The share of prompts with a JSD above 0.95 ln 2: "look" from 50%, "problem" from 95%.

    There the JSD has almost no gradient. Other losses have no upper bound, and neither has a sum
    over the groups of preference decomposing.
    """
    losses = prompt_losses(RewardPair(*_rewards(rows)), training)
    found = [loss for loss in losses if loss is not None]
    average = mean(found)
    shown = "–" if average is None else f"{average:.3f}"
    text, numbers = f"{shown} on average", {"mean_loss": average}
    limit = saturation(training)
    if not found or limit is None:
        return Finding("first loss", "ok", text, numbers=numbers)
    share = sum(loss > limit for loss in found) / len(found)
    text += f"; {share:.0%} of the prompts near the upper bound of the JSD, ln 2"
    advice = f"lower teacher_beta (now {_teacher_beta(rows, training):g}), or set divergence: kl"
    if asks:
        advice += ", or raise mcq_floor if mcq_formula is paper"
    return graded("first loss", share, 0.5, 0.95, text, advice, numbers)


def agreement(rows: Sequence[Row], asks: bool = True) -> Finding:
    """The agreement of the student's ranking with the teacher's before any training.

    The verdict is "problem" from a tau of 0.9, since nothing is left to learn, and "look" if tau is
    below -0.3 by more than two standard errors: the models seem to judge by opposite criteria.
    """
    student, teacher = _rewards(rows)
    pair = RewardPair(student, teacher)
    taus = pair.taus()
    found = {name: pair.agreement(name) for name in ("kendall_tau", "top1")}
    if not taus:
        advice = "see the reward spread"
        return Finding(
            "agreement", "problem", "the teacher ranks none of the groups", advice, found
        )
    tau, error = mean_and_error(taus)
    ranked = [not math.isnan(top1) for top1 in pair.by_prompt("top1")]
    chance = mean(1 / len(_scored(group)) for group in compress(teacher, ranked))
    text = f"tau {tau:+.2f} ± {error:.2f}, top-1 {found['top1']:.0%} (by chance {chance:.0%})"
    numbers = {**found, "standard_error": error}
    if tau >= 0.9:
        advice = "the student already ranks as the teacher does: use a stronger teacher or other "
        advice += "prompts; raise mcq_weight if it is low" if asks else "prompts"
        return Finding("agreement", "problem", text, advice, numbers)
    if tau + 2 * error < -0.3:
        advice = (
            "they rank in opposite ways: look at the templates, at normalize, and at a few "
            "responses in both orders"
        )
        return Finding("agreement", "look", text, advice, numbers)
    return Finding("agreement", "ok", text, numbers=numbers)


def position(metrics: Row, config: RunConfig, asks: bool) -> Finding:
    """How much the teacher prefers one of k places: its mean probability minus 1/k.

    It is the first place of a pair, and of a list the one where this is farthest from 0. The
    verdict is "look" from 0.1 and "problem" from 0.25. If responses do not stand in every place,
    nothing cancels the preference, and the verdict is "problem" from 0.1, or "look" where no
    question is of samples alone: the order of other responses may mean something.
    """
    if not asks:
        return Finding("position bias", "ok", "no multiple choice is asked")
    if "mcq/position_bias" not in metrics and "mcq/letter_mass" in metrics:
        found = "not known: no question is of samples alone, and none is asked in every order"
        return Finding("position bias", "look", found, "set mcq_every_place: true")
    if "mcq/position_bias" not in metrics:
        advice = (
            "every question is longer than the teacher's window: lower max_new_tokens, or set "
            "mcq_style: pairwise or none"
        )
        return Finding("position bias", "problem", "no question could be asked", advice)
    bias = metrics["mcq/position_bias"]
    advice = f"lower mcq_weight (now {config.mcq_weight}), or reword mcq_template"
    if not config.mcq_every_place:
        advice = f"set mcq_every_place: true, so that it cancels; {advice}"
    direction = "more" if bias >= 0 else "less"
    place = "the first place" if config.letters == 2 else "one of the places"
    found = f"{place} has a probability {abs(bias):.2f} {direction} than its share"
    numbers = {"mean": bias, "every_place": bool(config.mcq_every_place)}
    return graded(
        "position bias",
        abs(bias),
        0.1,
        0.25 if config.mcq_every_place else 0.1,
        found,
        advice,
        numbers,
    )


def letters(metrics: Row, config: RunConfig) -> Finding:
    """The probability of a letter as the answer: "look" below 0.5, "problem" below 0.05.

    If it is small, the choice is read from the tail of the teacher's distribution.
    """
    mass = metrics.get("mcq/letter_mass")
    if mass is None:
        return Finding("letters", "ok", "no multiple choice is asked")
    advice = (
        "the teacher does not answer with a letter: reword mcq_template, set chat_template_kwargs "
        "(no thinking), or mcq_style: none"
    )
    found, numbers = (
        f"the offered letters hold {mass:.0%} of the answer's probability",
        {"letter_mass": mass},
    )
    verdict: Verdict = "ok" if mass >= 0.5 else "look" if mass >= 0.05 else "problem"
    return Finding("letters", verdict, found, advice, numbers)


def choices(metrics: Row, config: RunConfig) -> Finding:
    """What multiple choice adds to the log-probabilities, and what it costs.

    The verdict is "look" if it does not discriminate, with a spread of the log selection
    probabilities below 0.25 nats, or if it changes the order of fewer than 5% of the pairs.
    """
    effect = ChoiceEffect.logged(metrics)
    if effect is None:
        return Finding("multiple choice", "ok", "none is asked")
    verdict: Verdict = "ok" if effect.pays else "look"
    advice = "set mcq_style: none, which saves the questions, or reword mcq_template"
    if effect.discriminates:
        advice += f"; or raise mcq_weight (now {config.mcq_weight:g})"
    return Finding(
        "multiple choice",
        verdict,
        effect.sentence().removeprefix("multiple choice "),
        advice,
        vars(effect),
    )


def _rewards(rows: Sequence[Row]) -> tuple[list[Any], list[Any]]:
    return [row["student_rewards"] for row in rows], [row["teacher_rewards"] for row in rows]


def _scored(group: Sequence[float | None]) -> list[float]:
    return [reward for reward in group if reward is not None]


def _teacher_beta(rows: Sequence[Row], training: PADConfig) -> float:
    """The given factor of the teacher's rewards, or the one that is chosen for these rows."""
    given = with_teacher_beta(training, [row["teacher_rewards"] for row in rows]).teacher_beta
    return training.beta if given is None else given
