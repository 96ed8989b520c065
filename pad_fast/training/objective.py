"""The configured loss of a batch, and the scale of its teacher's rewards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from pad_fast import losses
from pad_fast.preference.loss_kinds import LOSSES
from pad_fast.training.config import PADConfig, changed

GIVEN_BY_THE_CALL = ("reduction", "check_finite", "seed")
# The standard deviation of teacher_beta * t, in nats, that a teacher_beta is chosen for. On the
# embedded world it gives 3, which was the best of 1, 3 and 10 there; see docs/design.md.
TEACHER_SPREAD = 5.0


def configured_loss(
    args: PADConfig, *, impl: str | None = None, likelihood: bool = True
) -> Callable[..., Tensor]:
    """The configured loss as a function of rewards.

    Args:
        args: loss, its options, and its implementation.
        impl: the implementation instead of ``args.impl``, for rewards that are not on the device.
        likelihood: whether the likelihood of responses is a part, where it is configured; without
            it, ``preference_weight`` is 1.

    Returns:
        A function (student (P, N), teacher (P, N), *, mask (P, N), seed, anchor_rewards=None,
        from_teacher=None) -> losses (P,).
    """
    known = LOSSES[args.loss].options
    options: dict[str, Any] = {
        name: getattr(args, name) for name in known if name not in GIVEN_BY_THE_CALL
    }
    if not likelihood:
        options |= {"likelihood_weight": 0.0, "likelihood_on": "best", "preference_weight": 1.0}
    options |= {"reduction": "none", "impl": args.impl if impl is None else impl}

    def loss(
        student: Tensor, teacher: Tensor, *, mask: Tensor, seed: int, **columns: Tensor | None
    ) -> Tensor:
        draws = {"seed": seed} if "seed" in known else {}
        given = options | draws | columns
        return losses.preference_loss(args.loss, student, teacher, mask=mask, **given)

    return loss


def loss_columns(args: PADConfig, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """The columns of a batch that the configured loss takes beside the rewards.

    Raises:
        ValueError: the batch lacks one of them.
    """
    wanted = ["anchor_rewards"] if args.anchor == "start" else []
    wanted += ["from_teacher"] if args.likelihood_on == "teacher" else []
    for name in wanted:
        if name not in batch:
            raise ValueError(f"a batch must have {name}, got {', '.join(map(str, batch))}")
    return {name: batch[name] for name in wanted}


def saturation(args: PADConfig) -> float | None:
    """The loss of a prompt above which its gradient is negligible; None if there is no such value.

    A loss of rankings with an upper bound has one, unless a prompt's loss is the sum over several
    groups, or its weight is 0. It is that of the loss before weights and without a likelihood.
    """
    if args.preference_weight == 0:
        return None
    if args.group_size is not None and args.group_reduction == "sum":
        return None
    return LOSSES[args.loss].kind(args.divergence).saturation


def with_teacher_beta(args: PADConfig, rewards: Iterable[Sequence[float | None]]) -> PADConfig:
    """The arguments, with the ``teacher_beta`` for these rewards of a teacher if none is given."""
    if not args.chooses_teacher_beta:
        return args
    return changed(args, teacher_beta=chosen_teacher_beta(rewards, args.beta))


def chosen_teacher_beta(rewards: Iterable[Sequence[float | None]], beta: float) -> float:
    """The ``teacher_beta`` for a teacher's rewards, where none is given.

    5 / (median over prompts of the rewards' standard deviation), but at most ``beta``.

    Rewards that are far apart would make the teacher's distribution all but certain, which neither
    a ranking loss nor a student can follow; at the paper's scale it is the paper's value.

    Args:
        rewards: those of each prompt's responses, None for one that is left out.
        beta: the factor of the student's rewards.

    Returns:
        The factor, to two digits, so that rounding in the rewards does not change it.

    Example:
        >>> chosen_teacher_beta([[0.0, 4.0], [1.0, 6.0], [2.0, None]], beta=10.0)
        2.2
    """
    groups = ([reward for reward in group if reward is not None] for group in rewards)
    spreads = [float(np.std(group)) for group in groups if len(group) > 1]
    spread = float(np.median(spreads)) if spreads else 0.0
    return float(f"{TEACHER_SPREAD / spread:.2g}") if spread * beta > TEACHER_SPREAD else beta
