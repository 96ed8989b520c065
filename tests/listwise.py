"""Rewards, and short calls of the listwise losses, for their tests."""

from __future__ import annotations

import torch
from torch import Tensor

from pad_fast.losses import probabilistic_preference_loss, vanilla_preference_loss
from pad_fast.preference.loss_kinds import all_kinds
from pad_fast.preference.plackett_luce import RankingOptions, Result

DIVERGENCES = ["jsd", "kl", "reverse_kl"]
KINDS = [*DIVERGENCES, "vpd"]


def constant_rewards(
    *shape: int, seed: int = 0, spread: float = 0.3, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Normal student and teacher rewards without a gradient."""
    student, teacher = spread * torch.randn(2, *shape, generator=seeded(seed), dtype=dtype)
    return student, teacher


def rewards(
    *shape: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Student rewards that require a gradient, and teacher rewards."""
    student, teacher = constant_rewards(*shape, seed=seed, dtype=dtype)
    return student.requires_grad_(), teacher


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def preference_loss(kind: str, student: Tensor, teacher: Tensor, **options) -> Tensor:
    """The public loss of a kind."""
    if kind == "vpd":
        return vanilla_preference_loss(student, teacher, **options)
    return probabilistic_preference_loss(student, teacher, divergence=kind, **options)


def gradient(loss: Tensor, student: Tensor) -> Tensor:
    return torch.autograd.grad(loss.sum(), student, retain_graph=True)[0]


def exact(
    kind: str,
    student: Tensor,
    teacher: Tensor,
    beta: float = 10.0,
    teacher_beta: float | None = None,
) -> Result:
    """The exact value and gradient of a kind, as the op calls it."""
    options = RankingOptions(beta, beta if teacher_beta is None else teacher_beta)
    return all_kinds()[kind].exact(student, teacher, options)


def sampled(
    kind: str,
    student: Tensor,
    teacher: Tensor,
    beta: float = 10.0,
    teacher_beta: float | None = None,
    *,
    num: int,
    seed: int = 0,
) -> Result:
    """The estimated value and gradient of a kind, as the op calls it."""
    teacher_beta = beta if teacher_beta is None else teacher_beta
    options = RankingOptions(beta, teacher_beta, num_samples=num)
    estimate = all_kinds()[kind].sampled
    assert estimate is not None
    return estimate(student, teacher, options, seeded(seed))


def assert_near(got: Result, wanted: Result, tolerance: float = 1e-12) -> None:
    """Losses and gradients are equal within a relative or absolute tolerance."""
    for g, w in zip(got, wanted, strict=True):
        torch.testing.assert_close(g, w, rtol=tolerance, atol=tolerance)
