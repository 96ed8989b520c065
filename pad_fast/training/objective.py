"""The loss that a run is told to train on, and what it is a mean of."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from pad_fast.losses import probabilistic_preference_loss, vanilla_preference_loss
from pad_fast.training.config import PADConfig


def preference_loss(args: PADConfig) -> Callable[..., Tensor]:
    """The configured loss of each prompt, as a function (student (P, N), teacher (P, N), *, mask, seed) -> (P,)."""
    options: dict[str, Any] = {
        "beta": args.beta,
        "group_size": args.group_size,
        "group_reduction": args.group_reduction,
    }
    if args.loss == "vpd":

        def vpd(student: Tensor, teacher: Tensor, *, mask: Tensor, seed: int) -> Tensor:
            return vanilla_preference_loss(student, teacher, mask=mask, reduction="none", **options)

        return vpd
    options |= {
        name: getattr(args, name)
        for name in ("teacher_beta", "divergence", "method", "num_samples")
    }
    return partial(probabilistic_preference_loss, reduction="none", **options)


def live_prompts(mask: Tensor) -> Tensor:
    """Number of prompts of ``mask`` (P, N) with at least two live responses."""
    return (mask.sum(1) >= 2).sum()


def saturates(args: PADConfig) -> bool:
    """Whether the configured loss of a prompt is a JSD, or a mean of some, which ends at ln 2."""
    return (
        args.loss == "ppd"
        and args.divergence == "jsd"
        and (args.group_size is None or args.group_reduction == "mean")
    )
