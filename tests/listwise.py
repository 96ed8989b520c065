"""What the tests of the listwise losses share: rewards, and one call for the four losses."""

from __future__ import annotations

import torch

from pad_fast.losses import probabilistic_preference_loss, vanilla_preference_loss

KINDS = ["jsd", "kl", "reverse_kl", "vpd"]


def rewards(
    *shape: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor]:
    student, teacher = 0.3 * torch.randn(
        2, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype
    )
    return student.requires_grad_(), teacher


def preference_loss(
    kind: str, student: torch.Tensor, teacher: torch.Tensor, **options
) -> torch.Tensor:
    if kind == "vpd":
        return vanilla_preference_loss(student, teacher, **options)
    return probabilistic_preference_loss(student, teacher, divergence=kind, **options)


def gradient(loss: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss.sum(), student, retain_graph=True)[0]
