"""What must not change a listwise loss, and what holds for every one."""

import math

import pytest
import torch

from tests.kernels.preference.cases import (
    DEVICE,
    EVERY,
    KINDS,
    enumerated,
    loss_of,
    near,
    rewards,
    same,
)


@pytest.mark.parametrize("kind", KINDS)
def test_shift_and_permutation(kind):
    student, teacher = rewards(1, 5)
    loss, grad = loss_of(kind, student, teacher)
    order = torch.tensor([3, 0, 4, 1, 2], device=DEVICE)
    near(
        loss_of(kind, (student - 3)[:, order], (teacher + 11)[:, order]),
        (loss, grad[:, order]),
        1e-11,
    )
    assert grad.sum().abs() < 1e-10
    assert 0 <= loss.item() <= (math.log(2) if kind == "jsd" else math.inf)


@pytest.mark.parametrize(("kind", "method"), EVERY)
def test_a_group_has_the_same_bits_in_any_company(kind, method):
    student, teacher = rewards(3, 3, dtype=torch.float32)
    live = torch.ones(3, 3, dtype=torch.bool, device=DEVICE)
    live[1, 1] = False
    loss, grad = loss_of(kind, student, teacher, live, method=method)
    same(loss_of(kind, student, teacher, live, method=method), (loss, grad))
    if method == "sampled":  # draws depend on the index of the group
        same(loss_of(kind, student[:2], teacher[:2], live[:2], method=method), (loss[:2], grad[:2]))
        return
    for g in range(3):
        one = slice(g, g + 1)
        same(
            loss_of(kind, student[one], teacher[one], live[one], method=method),
            (loss[one], grad[one]),
        )


@pytest.mark.parametrize(("kind", "method"), EVERY)
def test_a_mask_is_a_deletion(kind, method):
    """Groups of one launch may have any number of live responses, even none or one.

    Masked rewards may be NaN or infinite.
    """
    masks = torch.tensor(
        [[1, 1, 1, 1], [0, 1, 1, 0], [1, 0, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0]],
        dtype=torch.bool,
        device=DEVICE,
    )
    if method == "sampled":
        masks = masks[[2, 3, 4]]
    student, teacher = rewards(len(masks), 4)
    loss, grad = loss_of(
        kind, student.where(masks, math.nan), teacher.where(masks, math.inf), masks, method=method
    )
    assert not grad[~masks].any()
    for g, live in enumerate(masks):
        if live.sum() < 2:
            assert loss[g] == 0
            assert not grad[g].any()
        elif method == "exact":
            near(
                (loss[g : g + 1], grad[g : g + 1, live]),
                enumerated(kind, student[g : g + 1, live], teacher[g : g + 1, live]),
            )
    assert grad.isfinite().all()
    if method == "sampled":
        near(
            (loss, grad),
            loss_of(
                kind, student.where(masks, 0.0), teacher.where(masks, 0.0), masks, method=method
            ),
            0,
        )


@pytest.mark.parametrize(("kind", "method"), EVERY)
@pytest.mark.parametrize("beta", [1e-3, 1e3])
def test_extreme_rewards_and_ties(kind, method, beta):
    student, teacher = rewards(3, 4, spread=1e4, dtype=torch.float32)
    teacher[1, 1], student[1, 2] = teacher[1, 0], student[1, 3]
    student[2] = 0.0
    loss, grad = loss_of(kind, student, teacher, method=method, betas=(beta, beta))
    assert loss.isfinite().all()
    assert grad.isfinite().all()
    assert (loss >= 0).all()
    assert kind != "jsd" or (loss <= math.log(2) + 1e-7).all()
    if method == "exact":
        exact, dexact = loss_of(
            kind, student.double(), teacher.double(), betas=(beta, beta), impl="torch"
        )
        rounding = 1e-5 + 2e-7 * exact.max()  # differences of numbers as large as the loss
        assert ((loss - exact).abs() <= rounding).all()
        assert ((grad - dexact).abs() <= beta * rounding + 1e-5 * dexact.abs()).all()


def test_opposite_certain_rankings_reach_ln_2():
    student = torch.tensor([[0.0, 1e3, 2e3]], device=DEVICE)
    for method in ("exact", "sampled"):
        loss, grad = loss_of("jsd", student, -student, method=method)
        torch.testing.assert_close(loss, torch.full_like(loss, math.log(2)))
        assert not grad.any()
