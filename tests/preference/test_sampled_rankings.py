"""The estimates from sampled rankings against the exact values."""

from __future__ import annotations

import pytest
import torch
from listwise import DIVERGENCES, assert_near, constant_rewards, exact, sampled


def assert_unbiased(draws: torch.Tensor, expected: torch.Tensor) -> None:
    """A z-test of each column of (copies, k).

    4.5 standard errors would give one false alarm in 10^5 columns; the seed is fixed.
    """
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - expected).abs() <= 4.5 * error + 1e-12).all()
    assert (error < 0.05 * expected.abs().max()).all()  # the test can tell a bias


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize(
    ("n", "num_samples", "spread"),
    [(2, 4, 0.1), (3, 5, 0.1), (5, 8, 0.1), (5, 8, 0.03), (8, 16, 0.05)],
)
def test_sampled_is_unbiased(kind: str, n: int, num_samples: int, spread: float) -> None:
    copies = 20_000  # independent estimates of one prompt in one call
    student, teacher = constant_rewards(1, n, seed=3, spread=spread)
    many = (student.expand(copies, n), teacher.expand(copies, n))
    loss, grad = sampled(kind, *many, 10.0, 8.0, num=num_samples, seed=7)
    exact_loss, exact_grad = exact(kind, student, teacher, 10.0, 8.0)
    assert_unbiased(loss[:, None], exact_loss)
    assert_unbiased(grad, exact_grad[0])


@pytest.mark.parametrize(("kind", "n"), [("kl", 14), ("reverse_kl", 14), ("jsd", 10)])
def test_many_draws_meet_the_exact_value(kind: str, n: int) -> None:
    student, teacher = constant_rewards(1, n, spread=0.05)
    loss, grad = sampled(kind, student.expand(8, n), teacher.expand(8, n), num=20_000)
    exact_loss, exact_grad = exact(kind, student, teacher)
    torch.testing.assert_close(loss.mean(0, keepdim=True), exact_loss, rtol=0.02, atol=0)
    assert (grad.mean(0) - exact_grad).norm() < 0.02 * exact_grad.norm()


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_draws_repeat_by_seed_and_differ_between_prompts(kind: str) -> None:
    student, teacher = constant_rewards(1, 6)
    student, teacher = student.expand(2, 6), teacher.expand(2, 6)
    one, again, other = (sampled(kind, student, teacher, num=16, seed=s) for s in (1, 1, 2))
    assert_near(one, again, 0)
    assert (one[0] != other[0]).all()
    assert one[0][0] != one[0][1]


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_sixty_four_responses(kind: str) -> None:
    student, teacher = constant_rewards(2, 64, dtype=torch.float32)
    loss, grad = sampled(kind, student, teacher, num=64)
    assert loss.isfinite().all()
    assert (loss > 0).all()
    assert grad.isfinite().all()
    torch.testing.assert_close(grad.sum(1), torch.zeros(2), atol=1e-3, rtol=0)
