"""The loss of held-out prompts."""

from __future__ import annotations

from pad_fast.evaluation.evaluated_model import RewardPair
from pad_fast.training.config import PADConfig
from pad_fast.training.objective import preference_loss


def prompt_losses(rewards: RewardPair, args: PADConfig) -> list[float | None]:
    """The configured preference loss of each prompt; None with fewer than two live responses."""
    student_PN, teacher_PN, mask = rewards.tensors
    loss_of = preference_loss(args, impl="torch")  # these rewards are on the host
    found = loss_of(student_PN, teacher_PN, mask=mask, seed=args.seed)
    live = mask.sum(1)  # (P,)
    return [
        loss if count >= 2 else None
        for loss, count in zip(found.tolist(), live.tolist(), strict=True)
    ]
