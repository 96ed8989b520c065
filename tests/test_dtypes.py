"""Numbers that keep their digits whatever dtypes meet, and torch's default is not one of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from groups import RAGGED, make_groups, make_model

from pad_fast import PADLoss, preference_loss, score_responses
from pad_fast.evaluation import ranking_agreement
from pad_fast.preference.loss_kinds import LOSSES

MASK = torch.tensor([[True] * 7, [True] * 5 + [False] * 2, [True, True, False] + [False] * 4])


@contextmanager
def by_default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def drawn(seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*MASK.shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def loss_and_gradient(name: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    student = drawn(1, dtype).requires_grad_()
    options = {"mask": MASK, "anchor_rewards": drawn(3, dtype)}
    loss = preference_loss(name, student, drawn(2, dtype), **options, reduction="none")
    return loss.detach(), torch.autograd.grad(loss.sum(), student)[0]


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str, dtype: torch.dtype, default: torch.dtype) -> None:
    wanted = loss_and_gradient(name, dtype)
    with by_default(default):
        found = loss_and_gradient(name, dtype)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_pro_weights_the_likelihood_in_the_precision_of_the_rewards() -> None:
    """0.05 in float32 is off by 1e-8."""
    anchor = torch.zeros(3, 7, dtype=torch.float64)
    student, teacher = drawn(1, torch.float64), drawn(2, torch.float64)
    losses = [
        preference_loss("pro", student, teacher, anchor_rewards=anchor, reduction="none", **more)
        for more in ({}, {"likelihood_weight": 0.05 * 6**2})
    ]
    torch.testing.assert_close(*losses, rtol=1e-14, atol=0)


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
def test_agreement(default: torch.dtype) -> None:
    # A third is no bfloat16 number.
    student, teacher = torch.tensor([[2.0, 2.0, 2.0, 1.0]]), torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    wanted = ranking_agreement(student, teacher)
    assert wanted["top1"].item() == pytest.approx(1 / 3, rel=1e-7)
    with by_default(default):
        found = ranking_agreement(student, teacher)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
def test_scores_and_a_loss_from_logits(default: torch.dtype) -> None:
    model, groups = make_model(dtype=torch.float32), make_groups(*RAGGED)
    logits = torch.randn(6, 5, 33, generator=torch.Generator().manual_seed(0))
    labels, teacher = torch.arange(30).view(6, 5), torch.tensor([[1.0, 2.0, 3.0]] * 2)

    def numbers() -> tuple[list[list[float]], torch.Tensor]:
        prompts, responses = [g.prompt for g in groups], [g.responses for g in groups]
        return score_responses(model, prompts, responses), PADLoss("ppd")(logits, labels, teacher)

    wanted = numbers()
    with by_default(default):
        assert numbers() == wanted


@pytest.mark.parametrize("name", LOSSES)
def test_float64_rewards_of_the_teacher_keep_their_digits(name: str) -> None:
    """Against a student in float32: a million that all rewards have in common changes nothing."""
    student, teacher = drawn(1), drawn(2, torch.float64)
    options = {"mask": MASK, "anchor_rewards": drawn(3), "reduction": "none"}
    near, far = (
        preference_loss(name, student, teacher + offset, **options) for offset in (0.0, 2.0**20)
    )
    assert near.dtype == far.dtype == torch.float32
    torch.testing.assert_close(far, near, rtol=2e-6, atol=1e-6)
    nothing = preference_loss(name, student, teacher, **options | {"mask": torch.zeros_like(MASK)})
    assert nothing.eq(0).all()


def test_one_response_is_the_best_for_all_parts_of_a_loss() -> None:
    student, close = torch.tensor([[-1.0, -2.0]]), torch.full((1, 2), -1.0, dtype=torch.float64)
    close[0, 1] += 1e-12
    ranked = preference_loss("rft", student, close)
    likely = preference_loss(
        "ppd", student, close, preference_weight=0.0, likelihood_weight=1.0, likelihood_on="best"
    )
    assert ranked.item() == likely.item() == 2.0


def test_an_anchor_in_float64_leaves_the_loss_in_float32() -> None:
    student, anchor = drawn(1), drawn(3, torch.float64)
    loss = preference_loss("dpo", student, drawn(2), anchor_rewards=anchor)
    assert loss.dtype == torch.float32
    half = preference_loss("dpo", student.bfloat16(), drawn(2), anchor_rewards=anchor.float())
    assert half.dtype == torch.float32
