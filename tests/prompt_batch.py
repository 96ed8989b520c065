"""A small batch of prompts: what the tests of the losses from hidden states share."""

import torch

P, N, T, D, V = 2, 3, 6, 5, 11
LENGTHS = torch.tensor([4, 6, 2, 1, 5, 3])


def states() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states (R, T, D), weight (V, D), bias (V,), labels (R, T), teacher's rewards (P, N).

    All floating-point numbers are float64.
    """
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias, teacher = (
        torch.randn(*s, generator=generator, dtype=torch.float64)
        for s in ((P * N, T, D), (V, D), (V,), (P, N))
    )
    labels = torch.randint(V, (P * N, T), generator=generator).where(
        torch.arange(T) < LENGTHS[:, None], -100
    )
    return hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), labels, teacher
