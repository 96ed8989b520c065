"""What holds for every group: bounds, extreme rewards, shifts, permutations, and no company."""

from __future__ import annotations

import math

import oracles
import pytest
import torch
from listwise import (
    DIVERGENCES,
    KINDS,
    assert_near,
    constant_rewards,
    exact,
    sampled,
    seeded,
)

from pad_fast.preference import plackett_luce


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beta", [1e-3, 1.0, 1e3])
def test_extreme_rewards_equal_enumeration(kind: str, beta: float) -> None:
    student, teacher = constant_rewards(8, 4, spread=1e4)
    teacher[:4, 1] = teacher[:4, 0]  # ties
    student[2:6, 2] = student[2:6, 3]
    loss, grad = exact(kind, student, teacher, beta)
    expected, expected_grad = oracles.value_and_gradient(student, teacher, kind, beta)
    # The enumeration rounds ties among logarithms that are as large as beta * r.
    rounding = {"rtol": 1e-7, "atol": 1e-10 * max(1.0, 1e4 * beta)}
    torch.testing.assert_close(loss, expected, **rounding)
    torch.testing.assert_close(grad / beta, expected_grad / beta, **rounding)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("spread", [1e-2, 1e2, 1e4])
def test_extreme_rewards_stay_finite_and_in_bounds(
    dtype: torch.dtype, beta: float, spread: float
) -> None:
    student, teacher = constant_rewards(32, 5, spread=spread, dtype=dtype)
    teacher[:8, 1] = teacher[:8, 0]  # ties
    student[4:12, 2] = student[4:12, 4]
    for kind in DIVERGENCES:
        estimated = sampled(kind, student, teacher, beta, num=16)
        for loss, grad in (exact(kind, student, teacher, beta), estimated):
            assert loss.isfinite().all()
            assert grad.isfinite().all()
            assert (loss >= 0).all()
            assert kind != "jsd" or (loss <= math.log(2) + 1e-7).all()
    loss, grad = exact("vpd", student, teacher, beta)
    assert loss.isfinite().all()
    assert grad.isfinite().all()
    assert (loss >= 0).all()


def test_opposite_certain_rankings_reach_ln_2() -> None:
    student = torch.tensor([[0.0, 1e3, 2e3, 3e3]])
    for loss, grad in (exact("jsd", student, -student), sampled("jsd", student, -student, num=8)):
        torch.testing.assert_close(loss, torch.tensor([math.log(2)]))
        assert not grad.any()


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("n", [2, 5, 8])
def test_equal_distributions_lose_nothing(kind: str, n: int) -> None:
    _, teacher = constant_rewards(3, n)
    nothing = (torch.zeros(3, dtype=torch.float64), torch.zeros_like(teacher))
    assert_near(exact(kind, teacher + 5, teacher), nothing, 1e-13)
    assert_near(sampled(kind, teacher + 5, teacher, num=8), nothing, 1e-13)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_shift_permutation_and_scale(kind: str) -> None:
    student, teacher = constant_rewards(4, 7)
    loss, grad = exact(kind, student, teacher, 4.0, 2.0)
    assert_near(exact(kind, student - 3, teacher + 11, 4.0, 2.0), (loss, grad))
    order = torch.randperm(7, generator=seeded())
    assert_near(exact(kind, student[:, order], teacher[:, order], 4.0, 2.0), (loss, grad[:, order]))
    assert_near(exact(kind, 4 * student, 2 * teacher, 1.0, 1.0), (loss, grad / 4))
    assert_near((grad.sum(1), loss), (torch.zeros(4, dtype=torch.float64), loss))


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("n", [4, 7])
def test_prompts_do_not_see_each_other(kind: str, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = constant_rewards(9, n)
    whole = exact(kind, student, teacher)
    alone = [exact(kind, student[i : i + 1], teacher[i : i + 1]) for i in range(9)]
    losses, grads = zip(*alone, strict=True)
    assert_near((torch.cat(losses), torch.cat(grads)), whole)
    # Blocks of several prompts, of which the last is short.
    monkeypatch.setattr(plackett_luce, "CPU_BLOCK", 4 * n * 2 ** (n - 1))
    assert_near(exact(kind, student, teacher), whole)


def test_vanilla_shift_permutation_and_company() -> None:
    student, teacher = constant_rewards(4, 7)
    loss, grad = exact("vpd", student, teacher, 4.0)
    assert_near(exact("vpd", student - 3, teacher + 11, 4.0), (loss, grad))
    order = torch.randperm(7, generator=seeded())
    assert_near(exact("vpd", student[:, order], teacher[:, order], 4.0), (loss, grad[:, order]))
    assert_near(exact("vpd", student[2:3], teacher[2:3], 4.0), (loss[2:3], grad[2:3]), 0)
