"""The sampled losses: unbiased, equal to PyTorch on the same rankings, repeated by the seed."""

import pytest
import torch
import triton
import triton.language as tl
from pad_fast.kernels.preference import tuning
from pad_fast.kernels.preference.sampled_rankings import _exponential

from pad_fast.preference import sampled_rankings
from tests.kernels.preference.cases import (
    DEVICE,
    DIVERGENCES,
    enumerated,
    loss_of,
    near,
    rewards,
    same,
)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_sampled_is_unbiased(kind):
    """The mean over copies of a group is within 4.5 standard errors of the exact value."""
    copies, n, samples = 50, 4, 16
    student, teacher = rewards(1, n, seed=3, spread=0.1)
    loss, grad = loss_of(
        kind,
        student.expand(copies, n),
        teacher.expand(copies, n),
        method="sampled",
        samples=samples,
        seed=7,
    )
    exact_loss, exact_grad = enumerated(kind, student, teacher)
    for draws, expected in ((loss[:, None], exact_loss), (grad, exact_grad[0])):
        error = draws.std(0) / copies**0.5
        assert ((draws.mean(0) - expected).abs() <= 4.5 * error + 1e-12).all()
        assert (error < 0.25 * expected.abs().max()).all()  # small enough to detect a bias


@triton.jit(do_not_specialize=["group"])  # or 1 would be a constant
def _noise(
    out_ptr, seed: tl.int64, group, side: tl.constexpr, N: tl.constexpr, DRAWS: tl.constexpr
):
    draw, response = tl.arange(0, DRAWS), tl.arange(0, N)
    noise = _exponential(seed, group, draw, response, side, tl.float64)
    tl.store(out_ptr + draw[:, None] * N + response[None, :], noise)


def drawn(x, side, seed, num):
    """The kernel's rankings (n, G, num), best first, of x (n, G)."""
    n, groups = x.shape
    noise = torch.empty(
        groups,
        triton.next_power_of_2(num),
        triton.next_power_of_2(n),
        dtype=torch.float64,
        device=DEVICE,
    )
    for group in range(groups):
        _noise[(1,)](noise[group], seed, group, side=side, N=noise.shape[2], DRAWS=noise.shape[1])
    return (x[:, :, None] - noise[:, :num, :n].permute(2, 0, 1).log()).argsort(
        dim=0, descending=True
    )


@pytest.mark.parametrize("kind", DIVERGENCES)
# More than one tile of draws, and the last one not full.
@pytest.mark.parametrize(("n", "samples"), [(2, 4), (5, 9), (9, 11)])
def test_sampled_equals_the_pytorch_path_on_the_same_rankings(kind, n, samples, monkeypatch):
    sides = iter((0, 1))
    monkeypatch.setattr(
        sampled_rankings, "_draw", lambda x, num, generator: drawn(x, next(sides), 5, num)
    )
    student, teacher = rewards(2, n, spread=0.1)
    expected = loss_of(kind, student, teacher, method="sampled", samples=samples, impl="torch")
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "PAIRS", 256)
        got = loss_of(kind, student, teacher, method="sampled", samples=samples, seed=5)
    near(got, expected, 1e-6)  # the kernel's constants are rounded to float32


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_draws_repeat_by_seed_and_differ_between_groups(kind):
    student, teacher = rewards(1, 4, spread=0.05)
    student, teacher = student.expand(2, 4), teacher.expand(2, 4)
    one, again, other, far = (
        loss_of(kind, student, teacher, method="sampled", seed=seed)
        for seed in (1, 1, 2, 1 + 2**40)
    )
    same(one, again)
    assert (one[0] != other[0]).all()
    assert (one[0] != far[0]).all()
    assert one[0][0] != one[0][1]
