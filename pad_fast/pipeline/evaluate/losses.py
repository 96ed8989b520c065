"""The loss of held-out prompts."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import repeat
from typing import Any

from pad_fast.evaluation.evaluated_model import RewardPair, Rewards
from pad_fast.training.config import PADConfig
from pad_fast.training.objective import configured_loss, with_teacher_beta


def prompt_losses(
    rewards: RewardPair, args: PADConfig, start: Rewards | None = None
) -> list[float | None]:
    """The configured preference loss of each prompt; None with fewer than two live responses.

    The likelihood of responses is left out: it has another scale, and may be of responses that are
    not among these.

    Args:
        rewards: the student's and the teacher's.
        args: the training's.
        start: the base student's rewards, for a loss with an anchor; the student's own if None.
    """
    args = with_teacher_beta(args, rewards.teacher)
    loss_of = configured_loss(args, impl="torch", likelihood=False)  # rewards are on the host
    anchors: Iterable[Any] = repeat(None)
    if args.anchor == "start":
        own = RewardPair(rewards.student if start is None else start, rewards.teacher)
        anchors = (student for student, _, _ in own.parts())
    losses: list[float | None] = []
    for (student, teacher, mask), anchor in zip(rewards.parts(), anchors, strict=False):
        columns = {} if anchor is None else {"anchor_rewards": anchor}
        found = loss_of(student, teacher, mask=mask, seed=args.seed, **columns)
        live = mask.sum(1)  # (P,)
        losses += [
            loss if count >= 2 else None
            for loss, count in zip(found.tolist(), live.tolist(), strict=True)
        ]
    return losses
