"""The teacher's rewards, calibrated by the probabilities of multiple choice.

:data:`FORMULAS` lists the ways to mix the two, and :data:`PRESETS` the settings that go together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

# The authors' released code asks each pair in one order only, always letters the response of the
# lower index A, and does not renormalise. Asking in every place cancels a fondness for letter A.
_EVERY_PLACE = {
    "mcq_weight": 0.5,
    "mcq_floor": 1e-4,
    "mcq_every_place": True,
    "mcq_renormalize": True,
}
PRESETS: dict[str, dict[str, Any]] = {
    "debiased": {"mcq_formula": "scale_free", **_EVERY_PLACE},
    "paper": {"mcq_formula": "paper", **_EVERY_PLACE},
    "released": {
        "mcq_formula": "paper",
        "mcq_weight": 1.0,
        "mcq_floor": 1e-8,
        "mcq_every_place": False,
        "mcq_renormalize": False,
    },
}


def preset_defaults(name: str) -> str:
    """The value that each preset gives an option, for its help.

    Example:
        >>> preset_defaults("mcq_weight")
        '0.5 (debiased), 0.5 (paper), 1 (released)'
    """
    return ", ".join(f"{_as_yaml(values[name])} ({key})" for key, values in PRESETS.items())


def _as_yaml(value: bool | float | str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else f"{value:g}"


def spread(values: Sequence[float]) -> float:
    """The largest value minus the smallest."""
    return max(values) - min(values)


def paper_mixture(rewards: Sequence[float], choices: Sequence[float], weight: float) -> list[float]:
    """``(1 - weight) * reward + weight * choice``, the paper's formula (arXiv 2502.14272).

    Where the choices hardly differ, it multiplies the rewards' differences by ``1 - weight``, and
    with them the teacher's beta.
    """
    return [(1.0 - weight) * r + weight * c for r, c in zip(rewards, choices, strict=True)]


def scale_free_mixture(
    rewards: Sequence[float], choices: Sequence[float], weight: float
) -> list[float]:
    """The paper's mixture of one prompt's rewards and choices, brought to the rewards' scale.

    With l = log p_sel, and ``spread`` the largest value of a prompt minus its smallest::

        l'     = mean(r) + (l - mean(l)) * spread(r) / spread(l)
        share  = weight * spread(l) / ((1 - weight) * spread(r) + weight * spread(l))
        r_hat  = (1 - share) * r + share * l'

    Args:
        rewards: r, one number for each response.
        choices: l, one number for each response.
        weight: between 0 and 1.

    Returns:
        r_hat, which orders the responses exactly as the paper's formula does at the same weight,
        unless all r are equal: then all r_hat are. It has the mean of r. Its spread is that of r
        where both name the same best and the same worst response, at every weight, and less where
        they disagree; it is never more. Choices that are all equal leave r as it is, unless the
        weight is 1.

    Example:
        >>> scale_free_mixture([-1.0, -3.0], [-2.0, -4.0], 0.5)  # they agree
        [-1.0, -3.0]
        >>> scale_free_mixture([-1.0, -3.0], [-0.5, -0.5], 0.9)  # the choices say nothing
        [-1.0, -3.0]
        >>> scale_free_mixture([-1.0, -3.0], [-3.0, -1.0], 0.5)  # they contradict each other
        [-2.0, -2.0]
    """
    of_rewards, of_choices = spread(rewards), spread(choices)
    whole = (1.0 - weight) * of_rewards + weight * of_choices
    if whole == 0.0 or of_choices == 0.0:
        return list(rewards) if weight < 1.0 else [math.fsum(rewards) / len(rewards)] * len(rewards)
    share, count = weight * of_choices / whole, len(rewards)
    mean_reward, mean_choice = math.fsum(rewards) / count, math.fsum(choices) / count
    stretch = of_rewards / of_choices
    moved = [mean_reward + (choice - mean_choice) * stretch for choice in choices]
    return [(1.0 - share) * r + share * c for r, c in zip(rewards, moved, strict=True)]


@dataclass(frozen=True)
class Formula:
    """One way to mix the rewards and the log selection probabilities of a prompt.

    Args:
        help: what it does, in a few words.
        mix: ``(rewards, choices, weight)`` to the calibrated rewards.
    """

    help: str
    mix: Callable[[Sequence[float], Sequence[float], float], list[float]]


FORMULAS = {
    "scale_free": Formula(
        "(1 - s) r + s l', with l' = l moved and stretched to the mean and the spread (best minus "
        "worst) of r within the prompt, and s = w spread(l) / ((1 - w) spread(r) + w spread(l)): "
        "the order is the paper's, unless all r are equal; the spread is that of r where both "
        "agree on the best and the worst, at every w, and less where they disagree",
        scale_free_mixture,
    ),
    "paper": Formula("(1 - w) r + w l", paper_mixture),
}


def log_choices(probabilities: Sequence[float], floor: float) -> list[float]:
    """``log max(p_sel, floor)`` of each response."""
    return [math.log(max(probability, floor)) for probability in probabilities]


def calibrated_rewards(
    rewards: Sequence[float], probabilities: Sequence[float], floor: float, weight: float, name: str
) -> list[float]:
    """The calibrated rewards of one prompt's responses.

    Args:
        rewards: r, in nats per token, or in nats.
        probabilities: p_sel of each response; l is ``log max(p_sel, floor)``.
        floor: the smallest probability that counts.
        weight: of l; 0 gives r.
        name: a key of :data:`FORMULAS`.

    Example:
        >>> calibrated_rewards([-1.0, -3.0], [1.0, 0.0], 1e-4, 0.0, "paper")
        [-1.0, -3.0]
    """
    choices = log_choices(probabilities, floor)
    return FORMULAS[name].mix(rewards, choices, weight)
