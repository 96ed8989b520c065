"""The operation around the listwise kernels: launches, masks, opcheck, torch.compile, limits."""

import pytest
import torch
from pad_fast.kernels.preference import launch

from pad_fast import losses
from pad_fast.preference import op as preference_op
from pad_fast.preference.plackett_luce import RankingOptions
from tests.kernels.preference.cases import DEVICE, EVERY, KINDS, enumerated, loss_of, near, rewards


@pytest.mark.parametrize(("kind", "method"), EVERY)
def test_value_and_gradient_come_out_of_one_launch(kind, method, monkeypatch):
    launches = []

    class Counted:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            launches.append(grid)
            return self.kernel[grid]

    for name in ("preference_jsd", "preference_kl", "preference_vpd", "preference_sampled"):
        monkeypatch.setattr(launch, name, Counted(getattr(launch, name)))
    student, teacher = rewards(2, 3)
    loss, _ = loss_of(kind, student.requires_grad_(), teacher, method=method)
    loss.sum().backward()
    assert student.grad.any()
    assert [grid[0] for grid in launches] == [2]  # one launch, with a program for each group


def test_groups_and_masks_through_the_public_losses():
    student, teacher = rewards(2, 7)
    mask = torch.ones(2, 7, dtype=torch.bool, device=DEVICE)
    mask[0, 3] = mask[1, :3] = False
    for kind in KINDS:
        call = (
            losses.vanilla_preference_loss
            if kind == "vpd"
            else losses.probabilistic_preference_loss
        )
        options = {} if kind == "vpd" else {"divergence": kind}
        both = [
            call(student, teacher, group_size=3, mask=mask, reduction="none", impl=impl, **options)
            for impl in ("triton", "torch")
        ]
        near(both[:1], both[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_of_all_is_no_groups_and_strides_change_no_bit(kind):
    student, teacher = rewards(2, 6)
    call = losses.vanilla_preference_loss if kind == "vpd" else losses.probabilistic_preference_loss
    options = {"impl": "triton", **({} if kind == "vpd" else {"divergence": kind})}
    expected = call(student[:, ::2].contiguous(), teacher[:, ::2].contiguous(), **options)
    assert torch.equal(call(student[:, ::2], teacher[:, ::2], group_size=3, **options), expected)


def test_the_backward_scales():
    student, teacher = rewards(2, 3)
    student.requires_grad_()
    loss = losses.probabilistic_preference_loss(
        student, teacher, teacher_beta=7.0, reduction="none", impl="triton"
    )
    loss.backward(torch.tensor([2.0, -0.5], dtype=torch.float64, device=DEVICE))
    near(
        (student.grad,),
        (
            torch.tensor([[2.0], [-0.5]], device=DEVICE)
            * enumerated("jsd", student.detach(), teacher)[1],
        ),
    )


@pytest.mark.parametrize(
    ("kind", "method"), [("kl", "exact"), ("jsd", "exact"), ("jsd", "sampled"), ("vpd", "exact")]
)
def test_opcheck(kind, method):
    student, teacher = rewards(2, 3, dtype=torch.float32)
    live = torch.tensor([[True] * 3, [True, False, True]], device=DEVICE)
    args = (student.requires_grad_(), teacher, live, None, kind, method, True, "triton", "none")
    torch.library.opcheck(
        preference_op.preference_loss.library, (*args, *RankingOptions(10.0, 5.0, 8))
    )


def test_compiles_whole():
    student, teacher = rewards(2, 3)

    def loss(s):
        return losses.probabilistic_preference_loss(s * 2, teacher, impl="triton")

    leaf, compiled_leaf = student.clone().requires_grad_(), student.clone().requires_grad_()
    expected, got = (
        loss(leaf),
        torch.compile(loss, fullgraph=True, backend="aot_eager")(compiled_leaf),
    )
    expected.backward()
    got.backward()
    assert torch.equal(got, expected)
    assert torch.equal(compiled_leaf.grad, leaf.grad)


@pytest.mark.parametrize(("groups", "n"), [(0, 3), (2, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_do(kind, groups, n):
    student, teacher = rewards(groups, n)
    loss, grad = loss_of(kind, student, teacher)
    assert loss.shape == (groups,)
    assert grad.shape == (groups, n)
    assert not loss.any()
    assert not grad.any()


@pytest.mark.parametrize(
    ("kind", "method", "n", "most"),
    [
        ("jsd", "exact", 11, 10),
        ("kl", "exact", 13, 12),
        ("reverse_kl", "auto", 13, 12),
        ("jsd", "auto", 33, 32),
    ],
)
def test_more_than_the_kernels_take(kind, method, n, most, monkeypatch):
    """impl="triton" raises, also from the environment; impl="auto" takes PyTorch."""
    student, teacher = rewards(1, n)
    with pytest.raises(
        ValueError, match=f"takes at most {most} responses a group, and there are {n}; use impl"
    ):
        loss_of(kind, student, teacher, method=method)
    if n != 11:  # PyTorch would enumerate 40 million rankings
        loss_of(kind, student, teacher, method=method, impl="auto")
    monkeypatch.setenv("PAD_FAST_IMPL", "triton")
    with pytest.raises(ValueError, match=f"at most {most} responses"):
        loss_of(kind, student, teacher, method=method, impl="auto")
