"""What multiple choice does to the teacher's rewards, in numbers and in a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pad_fast.evaluation.evaluated_model import RewardPair, Rewards, mean

# Below this spread of log p_sel, in nats, the best response of a prompt is chosen at most 28% more
# often than the worst.
FLAT_CHOICES = 0.25
FEW_PAIRS = 0.05  # a smaller share of reordered pairs is not worth the questions


@dataclass(frozen=True)
class ChoiceEffect:
    """Means over the prompts that were asked about.

    Args:
        questions: number of questions about a prompt.
        reward_spread: of the rewards before calibration, best minus worst.
        choice_spread: of the log selection probabilities, in nats.
        calibrated_spread: of the calibrated rewards.
        kendall_tau: rank agreement of log selection probabilities and rewards; None if no prompt
            has an order.
        reordered: share of the pairs that calibration orders otherwise; None likewise.
    """

    questions: float
    reward_spread: float
    choice_spread: float
    calibrated_spread: float
    kendall_tau: float | None
    reordered: float | None

    @property
    def discriminates(self) -> bool:
        """Whether the teacher chooses some responses clearly more often than others."""
        return self.choice_spread >= FLAT_CHOICES

    @property
    def pays(self) -> bool:
        """Whether it discriminates and changes the order of enough pairs."""
        return self.discriminates and (self.reordered is None or self.reordered >= FEW_PAIRS)

    def sentence(self) -> str:
        """What it costs and changes, and the spreads behind that.

        Example:
            >>> effect = ChoiceEffect(12, 1.64, 0.09, 1.64, 0.41, 0.02)
            >>> print(effect.sentence().split(";")[0])
            multiple choice does not discriminate here: it costs 12 questions a prompt and changes \
the order of 2% of pairs
        """
        judged = "does not discriminate here: it " if not self.discriminates else ""
        judged = judged or ("" if self.pays else "changes little here: it ")
        tau = "–" if self.kendall_tau is None else f"{self.kendall_tau:+.2f}"
        pairs = "no pair" if self.reordered is None else f"{self.reordered:.0%} of pairs"
        return (
            f"multiple choice {judged}costs {self.questions:.3g} questions a prompt and changes "
            f"the order of {pairs}; spread of its log-probabilities {self.choice_spread:.2f}, of "
            f"the rewards {self.reward_spread:.2f} before and {self.calibrated_spread:.2f} after, "
            f"rank agreement of the two tau {tau}"
        )

    def metrics(self) -> dict[str, float]:
        """The numbers that are known, as a run logs them."""
        return {f"mcq/{name}": value for name, value in vars(self).items() if value is not None}

    @classmethod
    def logged(cls, means: Mapping[str, float]) -> ChoiceEffect | None:
        """The record of what :meth:`metrics` gave; None if it is not there."""
        values = {name: means.get(f"mcq/{name}") for name in cls.__dataclass_fields__}
        needed = ("questions", "reward_spread", "choice_spread", "calibrated_spread")
        if any(values[name] is None for name in needed):
            return None
        return cls(**values)  # type: ignore[arg-type]


def choice_effect(
    questions: Sequence[int], rewards: Rewards, choices: Rewards, calibrated: Rewards
) -> ChoiceEffect | None:
    """What multiple choice does to the rewards of some prompts; None without prompts.

    Args:
        questions: number of questions about each of P prompts.
        rewards: (P, N) before calibration, None for a response that is not scored.
        choices: (P, N) log selection probabilities.
        calibrated: (P, N) after calibration.
    """
    if not questions:
        return None
    kept = RewardPair(calibrated, rewards).agreement("pair_accuracy")
    return ChoiceEffect(
        questions=sum(questions) / len(questions),
        reward_spread=_mean_spread(rewards),
        choice_spread=_mean_spread(choices),
        calibrated_spread=_mean_spread(calibrated),
        kendall_tau=RewardPair(choices, rewards).agreement("kendall_tau"),
        reordered=None if kept is None else 1.0 - kept,
    )


def _mean_spread(groups: Rewards) -> float:
    known = [[value for value in group if value is not None] for group in groups]
    return mean(max(group) - min(group) for group in known if group) or 0.0
