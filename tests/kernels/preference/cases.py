"""What the tests of the listwise kernels share: inputs, losses and the enumeration of rankings.

Under the interpreter a program takes 10 to 500 ms, so groups are few and small. The tests of
``pad_fast.preference`` and the losses have the options, and the PyTorch path stands for
enumeration where n! rankings are too many.
"""

import oracles
import torch

from pad_fast.preference import op as preference_op
from pad_fast.preference.plackett_luce import RankingOptions

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DIVERGENCES = ["kl", "reverse_kl", "jsd"]
KINDS = [*DIVERGENCES, "vpd"]
BETAS = (10.0, 7.0)
SAMPLED = [(kind, "sampled") for kind in DIVERGENCES]
EVERY = [(kind, "exact") for kind in KINDS] + SAMPLED


def rewards(*shape, seed=0, spread=0.3, dtype=torch.float64):
    """Rewards of the student and the teacher."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = spread * torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return student.to(DEVICE, dtype), teacher.to(DEVICE, dtype)


def loss_of(
    kind,
    student,
    teacher,
    live=None,
    *,
    method="exact",
    betas=BETAS,
    samples=16,
    seed=0,
    impl="triton",
):
    """Losses (G,) and their gradient (G, n)."""
    return preference_op.preference_loss(
        *(student, teacher, live, None, kind, method, False, impl, "none"),
        *RankingOptions(*betas, samples, seed),
    )[:2]


def enumerated(kind, student, teacher, dtype=torch.float64):
    """The loss and its gradient by enumeration of all rankings."""
    return oracles.value_and_gradient(student.to(dtype), teacher.to(dtype), kind, *BETAS)


def near(got, wanted, tolerance=1e-12):
    """Assert equality of losses and gradients up to ``tolerance``."""
    for g, w in zip(got, wanted, strict=True):
        torch.testing.assert_close(g, w, rtol=tolerance, atol=tolerance)


def same(got, wanted):
    """Assert that losses and gradients have the same bits."""
    for g, w in zip(got, wanted, strict=True):
        assert torch.equal(g, w)
