"""What a run's settings and records say about its loss."""

import math
from dataclasses import dataclass

import numpy as np

from pad_fast.evaluation.evaluated_model import Row
from pad_fast.preference.loss_kinds import LOSSES, Kind
from pad_fast.report.run_records import Floats

SHOWN_FROM = 0.2  # share of saturated prompts from which the page mentions them


@dataclass(frozen=True)
class LossSettings:
    """The settings of a run's loss, read from its configuration.

    Args:
        name: the loss as the page names it.
        unit: the unit of rewards.
        beta: the student's scale of rewards.
        teacher_beta: the teacher's.
        bound: the highest loss of a prompt, in nats; None if there is none.
        saturation: the loss above which a prompt has hardly any gradient; None if there is none.
    """

    name: str
    unit: str
    beta: float
    teacher_beta: float
    bound: float | None
    saturation: float | None


def loss_settings(config: Row) -> LossSettings:
    """The settings of the loss from a run's options."""
    loss, kind = config.get("loss", "ppd"), _kind(config)
    name = loss.upper()
    if kind is not None and LOSSES[loss].divergences:
        name += f", {kind.name.upper().replace('_', ' ')}"
    beta, teacher_beta = config.get("beta", 10.0), config.get("teacher_beta")
    # The sum over the groups of a prompt has no bound of its own.
    bounded = None if config.get("group_reduction") == "sum" else kind
    is_trained = config.get("preference_weight", 1.0) > 0
    return LossSettings(
        name=name,
        unit="nats" if config.get("normalize") == "sum" else "nats per token",
        beta=beta,
        teacher_beta=float(beta if teacher_beta is None else teacher_beta),
        bound=bounded.upper_bound if bounded else None,
        saturation=bounded.saturation if bounded and is_trained else None,
    )


def _kind(config: Row) -> Kind | None:
    """What the loss computes; None for a loss that this version does not have."""
    loss = LOSSES.get(config.get("loss", "ppd"))
    return None if loss is None else loss.kind(config.get("divergence"))


def saturated_shares(
    settings: LossSettings, losses: tuple[Floats, Floats]
) -> dict[str, float] | None:
    """The percentages of saturated prompts before and after; None if they are too low to matter."""
    before, after = losses
    limit = settings.saturation
    if limit is None or not len(before) or np.mean(before > limit) < SHOWN_FROM:
        return None
    return {
        name: 100 * float(np.mean(losses > limit))
        for name, losses in (("before", before), ("after", after))
    }


def standard_error(accuracy: float, prompts: int) -> float:
    """The standard error of an accuracy over so many prompts, in percentage points."""
    return 100 * math.sqrt(accuracy * (1 - accuracy) / prompts)
