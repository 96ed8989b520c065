"""The exact divergences against enumeration of all rankings, and an integral for larger groups."""

from __future__ import annotations

import oracles
import pytest
import torch
from listwise import DIVERGENCES, assert_near, constant_rewards, exact, seeded


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 7])  # halves of one or more, even and odd
@pytest.mark.parametrize("betas", [(10.0, 10.0), (3.0, 7.0)])
def test_exact_equals_enumeration(kind: str, n: int, betas: tuple[float, float]) -> None:
    student, teacher = constant_rewards(3, n, seed=n)
    assert_near(
        exact(kind, student, teacher, *betas),
        oracles.value_and_gradient(student, teacher, kind, *betas),
    )


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_exact_equals_enumeration_of_eight(kind: str) -> None:
    student, teacher = constant_rewards(1, 8)
    assert_near(
        exact(kind, student, teacher),
        oracles.value_and_gradient(student, teacher, kind),
    )


def test_exact_jsd_of_nine_equals_enumeration() -> None:
    student, teacher = constant_rewards(1, 9)
    loss, _ = exact("jsd", student, teacher)
    torch.testing.assert_close(
        loss, oracles.preference_loss(student, teacher, "jsd"), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize(
    ("kind", "n"),
    [("jsd", 9), ("jsd", 10), *((kind, n) for kind in ("kl", "reverse_kl") for n in range(9, 17))],
)
def test_far_apart_blocks_split(kind: str, n: int) -> None:
    """Responses that are surely last on both sides form a distribution of their own.

    Then P = P_first * P_rest, whatever the indices of the responses, and a KL is the sum of two.
    """
    first = 7 if kind == "jsd" else n // 2  # sizes that are enumerated above
    student, teacher = constant_rewards(2, n)
    # A JSD is no such sum, but that of the first if the rest has the same distribution on both
    # sides.
    if kind == "jsd":
        student[:, first:] = teacher[:, first:] * 2 / 3
    mixed = torch.randperm(n, generator=seeded(1))
    lowered = torch.where(torch.arange(n) < first, 0.0, -1e3)
    loss, grad = exact(kind, (student + lowered)[:, mixed], (teacher + lowered)[:, mixed], 3.0, 2.0)
    loss_first, grad_first = exact(kind, student[:, :first], teacher[:, :first], 3.0, 2.0)
    loss_rest, grad_rest = exact(kind, student[:, first:], teacher[:, first:], 3.0, 2.0)
    expected = torch.cat([grad_first, grad_rest], 1)[:, mixed]
    assert_near((loss, grad), (loss_first + loss_rest, expected), 1e-9)  # -1e3 takes three digits


@pytest.mark.parametrize(
    ("kind", "n"),
    [("kl", 3), ("reverse_kl", 3), ("kl", 9), ("reverse_kl", 9), ("reverse_kl", 12), ("kl", 16)],
)
def test_exact_equals_an_integral_over_exponential_clocks(kind: str, n: int) -> None:
    student, teacher = constant_rewards(1, n, seed=n, spread=0.2)
    leaf = student[0].clone().requires_grad_()
    loss = oracles.by_clocks(leaf, teacher[0], kind, 6.0, 4.0)
    (grad,) = torch.autograd.grad(loss, leaf)
    assert_near(exact(kind, student, teacher, 6.0, 4.0), (loss.detach()[None], grad[None]), 1e-9)


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("spread", [1e-3, 0.03, 0.3, 3.0])
def test_float32_is_as_good_as_enumeration_in_float32(kind: str, spread: float) -> None:
    student, teacher = constant_rewards(16, 5, spread=spread, dtype=torch.float32)
    truth = oracles.value_and_gradient(student.double(), teacher.double(), kind)
    ours = exact(kind, student, teacher)
    eager = oracles.value_and_gradient(student, teacher, kind)
    for value, plain, true in zip(ours, eager, truth, strict=True):
        assert value.dtype == torch.float32
        rounding = 1e-6 * true.abs().max().clamp(min=1)
        assert (value - true).abs().max() <= (plain - true).abs().max() + rounding


@pytest.mark.parametrize("n", [2, 3, 6, 40])
def test_vanilla_equals_listmle(n: int) -> None:
    student, teacher = constant_rewards(4, n)
    teacher[1] = teacher[1].round(decimals=0)  # ties
    assert_near(
        exact("vpd", student, teacher, 10.0),
        oracles.value_and_gradient(student, teacher, "vpd"),
    )


def test_vanilla_breaks_ties_by_index() -> None:
    student = torch.tensor([[0.3, 0.1, 0.2]])
    tied = exact("vpd", student, torch.zeros(1, 3), 1.0)
    assert_near(tied, exact("vpd", student, torch.tensor([[3.0, 2.0, 1.0]]), 1.0), 0)
