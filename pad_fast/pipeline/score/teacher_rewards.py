"""The teacher's rewards of a prompt's responses, from what it was asked about them."""

from __future__ import annotations

from collections.abc import Sequence

from pad_fast.files.stored_rows import Row
from pad_fast.pipeline.calibration import calibrated_rewards
from pad_fast.pipeline.config import RunConfig

# The columns of scored rows that hold what the teacher answered.
ANSWERS = ("teacher_logps", "teacher_num_tokens", "teacher_choice_probs")


def uncalibrated_rewards(
    logps: Sequence[float], lengths: Sequence[int], normalize: str
) -> list[float]:
    """Rewards without multiple choice.

    Args:
        logps: of the responses, in nats.
        lengths: their tokens, the teacher's.
        normalize: "mean" for nats per token, "sum" for nats.
    """
    if normalize != "mean":
        return list(logps)
    return [logp / length for logp, length in zip(logps, lengths, strict=True)]


def teacher_rewards(
    config: RunConfig,
    normalize: str,
    logps: Sequence[float],
    lengths: Sequence[int],
    choices: Sequence[float] | None,
) -> list[float]:
    """Rewards, calibrated as the run is configured.

    Args:
        config: of the run.
        normalize, logps, lengths: as in :func:`uncalibrated_rewards`.
        choices: the probability that the teacher prefers each response; None if it was not asked.
    """
    rewards = uncalibrated_rewards(logps, lengths, normalize)
    if choices is None:
        return rewards
    floor, weight = config.mcq_floor or 0.0, config.mcq_weight or 0.0
    return calibrated_rewards(rewards, choices, floor, weight, str(config.mcq_formula))


def in_unit_of(row: Row, config: RunConfig, normalize: str) -> Row:
    """A scored row whose rewards are those of a run with another ``normalize``.

    The student's mean is a sum over so many tokens; the teacher's rewards are made again of its
    answers, since multiple choice has no tokens to be divided by. Scores from elsewhere, ratings or
    those of a reward model, have no unit and stay.

    Args:
        row: with "student_rewards" (or None there) and "teacher_rewards" in the run's other unit,
            and :data:`ANSWERS`.
        config: of the run.
        normalize: "mean" or "sum", which the run itself does not have.
    """
    found, own, logps = dict(row), row["student_rewards"], row["teacher_logps"]
    if own is not None:
        lengths = [max(1, len(ids)) for ids in row["completion_ids"]]
        found["student_rewards"] = [
            reward * length if normalize == "sum" else reward / length
            for reward, length in zip(own, lengths, strict=True)
        ]
    if logps is None:
        return found
    choices, tokens = row["teacher_choice_probs"], row["teacher_num_tokens"]
    readable = [i for i, logp in enumerate(logps) if logp is not None]
    rewards = teacher_rewards(
        config,
        normalize,
        [logps[i] for i in readable],
        [tokens[i] for i in readable],
        None if choices is None else [choices[i] for i in readable],
    )
    by_place = dict(zip(readable, rewards, strict=True))
    found["teacher_rewards"] = [by_place.get(i) for i in range(len(logps))]
    return found
