"""The public losses with masks, and in groups of responses."""

from __future__ import annotations

import oracles
import pytest
import torch
from listwise import KINDS, gradient, preference_loss, rewards

NAN = float("nan")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("masked", [NAN, float("inf"), 1e30])
def test_masked_is_as_removed(kind: str, masked: float) -> None:
    student, teacher = rewards(6, 5)
    mask = torch.rand(6, 5, generator=torch.Generator().manual_seed(1)) < 0.6
    mask[0], mask[1], mask[2] = True, False, torch.arange(5) == 3
    student = student.detach().where(mask, masked).requires_grad_()
    loss = preference_loss(kind, student, teacher.where(mask, masked), mask=mask, reduction="none")
    grad = gradient(loss, student)
    assert not grad[~mask].any()
    for p in range(6):
        live = mask[p]
        if live.sum() < 2:
            assert loss[p] == 0
            assert not grad[p].any()
            continue
        alone, alone_grad = oracles.value_and_gradient(
            student[p : p + 1, live], teacher[p : p + 1, live], kind
        )
        torch.testing.assert_close(loss[p].detach(), alone[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(grad[p, live], alone_grad[0], rtol=1e-12, atol=1e-12)
    mean = preference_loss(kind, student, teacher.where(mask, masked), mask=mask)
    torch.testing.assert_close(mean, loss.sum() / (mask.sum(1) > 1).sum())  # prompts with a ranking


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("prompts", [0, 3])
def test_nothing_live_is_a_differentiable_zero(kind: str, reduction: str, prompts: int) -> None:
    student, teacher = rewards(prompts, 4)
    mask = torch.arange(4).expand(prompts, 4) == 2
    for options in ({}, {"group_size": 2}):
        loss = preference_loss(kind, student, teacher, mask=mask, reduction=reduction, **options)
        assert loss.shape == ((prompts,) if reduction == "none" else ())
        assert not loss.any()
        assert not gradient(loss, student).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group_reduction", ["mean", "sum"])
@pytest.mark.parametrize("with_mask", [False, True])
# Groups that divide N, and last groups of 1, 3 and 1.
@pytest.mark.parametrize(("num", "size"), [(6, 2), (6, 3), (7, 3), (7, 4), (5, 2)])
def test_groups_are_consecutive_live_responses(
    kind: str, group_reduction: str, with_mask: bool, num: int, size: int
) -> None:
    student, teacher = rewards(4, num)
    mask = torch.ones(4, num, dtype=torch.bool)
    if with_mask:
        mask = torch.rand(4, num, generator=torch.Generator().manual_seed(2)) < 0.7
        mask[0] = torch.arange(num) == 1
    options = {
        "group_size": size,
        "group_reduction": group_reduction,
        "mask": mask if with_mask else None,
    }
    loss = preference_loss(kind, student, teacher, reduction="none", **options)
    expected = []
    for p in range(4):
        chunks = [chunk for chunk in mask[p].nonzero().flatten().split(size) if len(chunk) > 1]
        each = [
            oracles.preference_loss(student[p : p + 1, chunk], teacher[p : p + 1, chunk], kind)[0]
            for chunk in chunks
        ]
        total = sum(each) if each else student.sum() * 0
        expected.append(total / len(each) if each and group_reduction == "mean" else total)
    expected = torch.stack(expected)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        gradient(loss, student), gradient(expected, student), rtol=1e-12, atol=1e-12
    )
    live = (mask.sum(1) > 1).sum()
    torch.testing.assert_close(
        preference_loss(kind, student, teacher, **options), expected.sum() / live
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [5, 9])
def test_one_group_of_all_is_no_groups(kind: str, size: int) -> None:
    student, teacher = rewards(3, 5)
    assert torch.equal(
        preference_loss(kind, student, teacher, group_size=size),
        preference_loss(kind, student, teacher),
    )
