"""The configured loss of a batch, and the prompts that it is a mean of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pad_fast import losses
from pad_fast.preference.loss_kinds import LOSSES
from pad_fast.training.config import PADConfig

GIVEN_BY_THE_CALL = ("reduction", "check_finite", "seed")


def preference_loss(args: PADConfig, *, impl: str | None = None) -> Callable[..., Tensor]:
    """The configured loss as a function of rewards.

    Args:
        args: loss, its options, and its implementation.
        impl: the implementation instead of ``args.impl``, for rewards that are not on the device.

    Returns:
        A function (student (P, N), teacher (P, N), *, mask (P, N), seed) -> losses (P,).
    """
    known = LOSSES[args.loss].options
    options: dict[str, Any] = {
        name: getattr(args, name) for name in known if name not in GIVEN_BY_THE_CALL
    }
    options |= {"reduction": "none", "impl": args.impl if impl is None else impl}

    def loss(student: Tensor, teacher: Tensor, *, mask: Tensor, seed: int) -> Tensor:
        draws = {"seed": seed} if "seed" in known else {}
        return losses.preference_loss(args.loss, student, teacher, mask=mask, **(options | draws))

    return loss


def live_prompts(mask: Tensor) -> Tensor:
    """The number of prompts in ``mask`` (P, N) with at least two live responses, as a tensor ()."""
    return (mask.sum(1) >= 2).sum()


def saturation(args: PADConfig) -> float | None:
    """The loss of a prompt above which its gradient is negligible; None if there is no such value.

    A loss with an upper bound has one, unless a prompt's loss is the sum over several groups.
    """
    if args.group_size is not None and args.group_reduction == "sum":
        return None
    return LOSSES[args.loss].kind(args.divergence).saturation
