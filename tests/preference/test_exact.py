"""The Plackett-Luce mathematics against enumeration of all rankings, and the estimators against the exact values."""

from __future__ import annotations

import math

import oracles
import pytest
import torch

from pad_fast.preference import kinds, plackett_luce
from pad_fast.preference.plackett_luce import RankingOptions

KINDS = ["jsd", "kl", "reverse_kl"]


def exact(
    kind: str,
    student: torch.Tensor,
    teacher: torch.Tensor,
    beta: float = 10.0,
    teacher_beta: float | None = None,
) -> plackett_luce.Result:
    options = RankingOptions(beta, beta if teacher_beta is None else teacher_beta)
    return kinds.all_kinds()[kind].exact(student, teacher, options)


def sampled(
    kind: str,
    student: torch.Tensor,
    teacher: torch.Tensor,
    beta: float = 10.0,
    teacher_beta: float | None = None,
    *,
    num: int,
    seed: int = 0,
) -> plackett_luce.Result:
    teacher_beta = beta if teacher_beta is None else teacher_beta
    options = RankingOptions(beta, teacher_beta, num_samples=num)
    estimate = kinds.all_kinds()[kind].sampled
    assert estimate is not None
    return estimate(student, teacher, options, seeded(seed))


def rewards(
    *shape: int, seed: int = 0, spread: float = 0.3, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = spread * torch.randn(2, *shape, generator=generator, dtype=dtype)
    return student, teacher


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_near(
    got: plackett_luce.Result, wanted: plackett_luce.Result, tolerance: float = 1e-12
) -> None:
    for g, w in zip(got, wanted, strict=True):
        torch.testing.assert_close(g, w, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "n", [2, 3, 4, 5, 6, 7]
)  # both parities of the halves; one response a half
@pytest.mark.parametrize("betas", [(), (3.0, 7.0)])
def test_exact_equals_enumeration(kind: str, n: int, betas: tuple[float, float]) -> None:
    student, teacher = rewards(3, n, seed=n)
    assert_near(
        exact(kind, student, teacher, *betas),
        oracles.value_and_gradient(student, teacher, kind, *betas),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_exact_equals_enumeration_of_eight(kind: str) -> None:
    student, teacher = rewards(1, 8)
    assert_near(
        exact(kind, student, teacher),
        oracles.value_and_gradient(student, teacher, kind),
    )


def test_exact_jsd_of_nine_equals_enumeration() -> None:
    student, teacher = rewards(1, 9)
    loss, _ = exact("jsd", student, teacher)
    torch.testing.assert_close(
        loss, oracles.preference_loss(student, teacher, "jsd"), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize(
    ("kind", "n"),
    [("jsd", 9), ("jsd", 10), *((kind, n) for kind in ("kl", "reverse_kl") for n in range(9, 17))],
)
def test_far_apart_blocks_split(kind: str, n: int) -> None:
    """Responses that are surely last on both sides form a distribution of their own: P = P_first * P_rest, whatever their indices."""
    first = 7 if kind == "jsd" else n // 2  # halves that are enumerated above
    student, teacher = rewards(2, n)
    if (
        kind == "jsd"
    ):  # does not add up; but where the rest has one distribution on both sides, it is that of the first
        student[:, first:] = teacher[:, first:] * 2 / 3
    mixed = torch.randperm(n, generator=seeded(1))
    lowered = torch.where(torch.arange(n) < first, 0.0, -1e3)
    loss, grad = exact(kind, (student + lowered)[:, mixed], (teacher + lowered)[:, mixed], 3.0, 2.0)
    loss_first, grad_first = exact(kind, student[:, :first], teacher[:, :first], 3.0, 2.0)
    loss_rest, grad_rest = exact(kind, student[:, first:], teacher[:, first:], 3.0, 2.0)
    expected = torch.cat([grad_first, grad_rest], 1)[:, mixed]
    assert_near((loss, grad), (loss_first + loss_rest, expected), 1e-9)  # -1e3 costs three digits


@pytest.mark.parametrize(
    ("kind", "n"),
    [("kl", 3), ("reverse_kl", 3), ("kl", 9), ("reverse_kl", 9), ("reverse_kl", 12), ("kl", 16)],
)
def test_exact_equals_an_integral_over_exponential_clocks(kind: str, n: int) -> None:
    student, teacher = rewards(1, n, seed=n, spread=0.2)
    leaf = student[0].clone().requires_grad_()
    loss = oracles.by_clocks(leaf, teacher[0], kind, 6.0, 4.0)
    (grad,) = torch.autograd.grad(loss, leaf)
    assert_near(exact(kind, student, teacher, 6.0, 4.0), (loss.detach()[None], grad[None]), 1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spread", [1e-3, 0.03, 0.3, 3.0])
def test_float32_is_as_good_as_enumeration_in_float32(kind: str, spread: float) -> None:
    student, teacher = rewards(16, 5, spread=spread, dtype=torch.float32)
    truth = oracles.value_and_gradient(student.double(), teacher.double(), kind)
    ours, eager = (
        exact(kind, student, teacher),
        oracles.value_and_gradient(student, teacher, kind),
    )
    for value, plain, true in zip(ours, eager, truth, strict=True):
        assert value.dtype == torch.float32
        error, allowed = (
            (value - true).abs().max(),
            (plain - true).abs().max() + 1e-6 * true.abs().max().clamp(min=1),
        )
        assert error <= allowed


@pytest.mark.parametrize("kind", [*KINDS, "vpd"])
@pytest.mark.parametrize("beta", [1e-3, 1.0, 1e3])
def test_extreme_rewards_equal_enumeration(kind: str, beta: float) -> None:
    student, teacher = rewards(8, 4, spread=1e4)
    teacher[:4, 1] = teacher[:4, 0]  # ties
    student[2:6, 2] = student[2:6, 3]
    loss, grad = (
        exact("vpd", student, teacher, beta)
        if kind == "vpd"
        else exact(kind, student, teacher, beta, beta)
    )
    expected, expected_grad = oracles.value_and_gradient(student, teacher, kind, beta)
    rounding = {
        "rtol": 1e-7,
        "atol": 1e-10 * max(1.0, 1e4 * beta),
    }  # enumeration's: of ties among logarithms as large as beta * r
    torch.testing.assert_close(loss, expected, **rounding)
    torch.testing.assert_close(grad / beta, expected_grad / beta, **rounding)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("spread", [1e-2, 1e2, 1e4])
def test_extreme_rewards_stay_finite_and_in_bounds(
    dtype: torch.dtype, beta: float, spread: float
) -> None:
    student, teacher = rewards(32, 5, spread=spread, dtype=dtype)
    teacher[:8, 1] = teacher[:8, 0]  # ties
    student[4:12, 2] = student[4:12, 4]
    for kind in KINDS:
        estimated = sampled(kind, student, teacher, beta, num=16)
        for loss, grad in (exact(kind, student, teacher, beta, beta), estimated):
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
    for jsd in (
        exact("jsd", student, -student),
        sampled("jsd", student, -student, num=8),
    ):
        torch.testing.assert_close(jsd[0], torch.tensor([math.log(2)]))
        assert not jsd[1].any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [2, 5, 8])
def test_equal_distributions_lose_nothing(kind: str, n: int) -> None:
    _, teacher = rewards(3, n)
    nothing = (torch.zeros(3, dtype=torch.float64), torch.zeros_like(teacher))
    assert_near(exact(kind, teacher + 5, teacher), nothing, 1e-13)
    assert_near(sampled(kind, teacher + 5, teacher, num=8), nothing, 1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_shift_permutation_and_scale(kind: str) -> None:
    student, teacher = rewards(4, 7)
    loss, grad = exact(kind, student, teacher, 4.0, 2.0)
    assert_near(exact(kind, student - 3, teacher + 11, 4.0, 2.0), (loss, grad))
    order = torch.randperm(7, generator=seeded())
    assert_near(exact(kind, student[:, order], teacher[:, order], 4.0, 2.0), (loss, grad[:, order]))
    assert_near(exact(kind, 4 * student, 2 * teacher, 1.0, 1.0), (loss, grad / 4))
    assert_near(
        (grad.sum(1), loss), (torch.zeros(4, dtype=torch.float64), loss)
    )  # a shift of the student's rewards changes nothing


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [4, 7])
def test_prompts_do_not_see_each_other(kind: str, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = rewards(9, n)
    whole = exact(kind, student, teacher)
    alone = [exact(kind, student[i : i + 1], teacher[i : i + 1]) for i in range(9)]
    assert_near(
        (torch.cat([loss for loss, _ in alone]), torch.cat([grad for _, grad in alone])), whole
    )
    monkeypatch.setattr(
        plackett_luce, "CPU_BLOCK", 4 * n * 2 ** (n - 1)
    )  # blocks of several prompts, the last one short
    assert_near(exact(kind, student, teacher), whole)


def test_vanilla_shift_permutation_and_company() -> None:
    student, teacher = rewards(4, 7)
    loss, grad = exact("vpd", student, teacher, 4.0)
    assert_near(exact("vpd", student - 3, teacher + 11, 4.0), (loss, grad))
    order = torch.randperm(7, generator=seeded())
    assert_near(exact("vpd", student[:, order], teacher[:, order], 4.0), (loss, grad[:, order]))
    assert_near(exact("vpd", student[2:3], teacher[2:3], 4.0), (loss[2:3], grad[2:3]), 0)


@pytest.mark.parametrize("n", [2, 3, 6, 40])
def test_vanilla_equals_listmle(n: int) -> None:
    student, teacher = rewards(4, n)
    teacher[1] = teacher[1].round(decimals=0)  # ties
    assert_near(
        exact("vpd", student, teacher, 10.0),
        oracles.value_and_gradient(student, teacher, "vpd"),
    )


def test_vanilla_breaks_ties_by_index() -> None:
    student = torch.tensor([[0.3, 0.1, 0.2]])
    tied = exact("vpd", student, torch.zeros(1, 3), 1.0)
    assert_near(tied, exact("vpd", student, torch.tensor([[3.0, 2.0, 1.0]]), 1.0), 0)


def assert_unbiased(draws: torch.Tensor, expected: torch.Tensor) -> None:
    """z-test of each column of (copies, k); 4.5 standard errors: one false alarm in 10^5 columns, and the seed is fixed."""
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - expected).abs() <= 4.5 * error + 1e-12).all()
    assert (error < 0.05 * expected.abs().max()).all()  # the test can tell a bias


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("n", "num_samples", "spread"),
    [(2, 4, 0.1), (3, 5, 0.1), (5, 8, 0.1), (5, 8, 0.03), (8, 16, 0.05)],
)
def test_sampled_is_unbiased(kind: str, n: int, num_samples: int, spread: float) -> None:
    copies = 20_000  # of one prompt: as many independent estimates in one call
    student, teacher = rewards(1, n, seed=3, spread=spread)
    loss, grad = sampled(
        kind,
        student.expand(copies, n),
        teacher.expand(copies, n),
        10.0,
        8.0,
        num=num_samples,
        seed=7,
    )
    exact_loss, exact_grad = exact(kind, student, teacher, 10.0, 8.0)
    assert_unbiased(loss[:, None], exact_loss)
    assert_unbiased(grad, exact_grad[0])


@pytest.mark.parametrize(("kind", "n"), [("kl", 14), ("reverse_kl", 14), ("jsd", 10)])
def test_many_draws_meet_the_exact_value(kind: str, n: int) -> None:
    student, teacher = rewards(1, n, spread=0.05)
    loss, grad = sampled(kind, student.expand(8, n), teacher.expand(8, n), num=20_000)
    exact_loss, exact_grad = exact(kind, student, teacher)
    torch.testing.assert_close(loss.mean(0, keepdim=True), exact_loss, rtol=0.02, atol=0)
    assert (grad.mean(0) - exact_grad).norm() < 0.02 * exact_grad.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_draws_repeat_by_seed_and_differ_between_prompts(kind: str) -> None:
    student, teacher = rewards(1, 6)
    student, teacher = student.expand(2, 6), teacher.expand(2, 6)
    one, again, other = (sampled(kind, student, teacher, num=16, seed=s) for s in (1, 1, 2))
    assert_near(one, again, 0)
    assert (one[0] != other[0]).all()
    assert one[0][0] != one[0][1]


@pytest.mark.parametrize("kind", KINDS)
def test_sixty_four_responses(kind: str) -> None:
    student, teacher = rewards(2, 64, dtype=torch.float32)
    loss, grad = sampled(kind, student, teacher, num=64)
    assert loss.isfinite().all()
    assert (loss > 0).all()
    assert grad.isfinite().all()
    torch.testing.assert_close(grad.sum(1), torch.zeros(2), atol=1e-3, rtol=0)
