"""Exact listwise losses and their gradients against enumeration of all rankings."""

import pytest
import torch
from pad_fast.kernels.preference import launch
from torch.autograd import gradcheck

from pad_fast.preference.plackett_luce import RankingOptions
from tests.kernels.preference.cases import (
    DEVICE,
    DIVERGENCES,
    KINDS,
    enumerated,
    loss_of,
    near,
    rewards,
    same,
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [2, 3, 4, 5])  # halves of 1+1, 1+2, 2+2 and 2+3
def test_equals_enumeration_in_float64(kind, n):
    student, teacher = rewards(2, n, seed=n)
    near(loss_of(kind, student, teacher), enumerated(kind, student, teacher))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spread", [0.01, 0.3, 3.0])
def test_float32_is_as_good_as_enumeration_in_float32(kind, spread):
    student, teacher = rewards(3, 4, spread=spread, dtype=torch.float32)
    truth, eager = (
        enumerated(kind, student, teacher),
        enumerated(kind, student, teacher, torch.float32),
    )
    for value, plain, exact in zip(loss_of(kind, student, teacher), eager, truth, strict=True):
        assert value.dtype == torch.float32
        slack = 1e-6 * exact.abs().max().clamp(min=1)
        assert (value - exact).abs().max() <= 2 * (plain - exact).abs().max() + slack


@pytest.mark.parametrize(
    ("kind", "n"),
    [
        ("kl", 8),
        ("reverse_kl", 8),
        ("jsd", 6),
        ("reverse_kl", 10),
        ("kl", 11),
        ("kl", 12),
        ("reverse_kl", 12),
    ],
)
def test_equals_the_pytorch_path_where_rankings_are_too_many(kind, n):
    """From 10 responses on, the kernel of KL computes its softmaxes again in each pass."""
    student, teacher = rewards(1, n)
    near(loss_of(kind, student, teacher), loss_of(kind, student, teacher, impl="torch"), 1e-11)


@pytest.mark.slow
def test_jsd_of_eight():
    student, teacher = rewards(1, 8, dtype=torch.float32)
    loss, grad = loss_of("jsd", student, teacher)
    exact = loss_of("jsd", student.double(), teacher.double(), impl="torch")
    near((loss.double(), grad.double()), exact, 3e-6)


# The kernel takes 8 responses j at a time, and from 129 on two programs a group.
@pytest.mark.parametrize("n", [1, 7, 8, 9, 17, 130])
def test_vanilla_of_any_number(n):
    student, teacher = rewards(2, n, spread=0.1)
    teacher[1] = (4 * teacher[1]).round()  # ties
    near(loss_of("vpd", student, teacher), loss_of("vpd", student, teacher, impl="torch"), 1e-11)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_vanilla_orders_by_the_teacher_in_its_own_dtype(dtype):
    student, teacher = rewards(2, 4, dtype=torch.float32)
    steps = torch.finfo(dtype).eps * torch.arange(4, dtype=torch.float64).flip(0)
    teacher = (1 + steps).to(dtype).repeat(2, 1).to(DEVICE)
    teacher[1] = teacher[1].flip(0)
    near(loss_of("vpd", student, teacher), loss_of("vpd", student, teacher, impl="torch"), 1e-5)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_teacher_of_another_dtype(kind):
    student, teacher = rewards(1, 3, dtype=torch.float32)
    for dtype in (torch.bfloat16, torch.float64):
        same(
            loss_of(kind, student, teacher.to(dtype)),
            loss_of(kind, student, teacher.to(dtype).float()),
        )


@pytest.mark.parametrize("method", ["exact", "sampled"])
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_teachers_of_all_dtypes_take_one_form_of_a_kernel(kind, method, monkeypatch):
    """Triton compiles anew for other dtypes, JSD of 8 for 10 to 20 s."""
    seen = []

    class Kernel:
        def __getitem__(self, grid):
            return lambda loss, grad, student, teacher, *_, **options: seen.append(teacher.dtype)

    for name in ("preference_kl", "preference_jsd", "preference_sampled"):
        monkeypatch.setattr(launch, name, Kernel())
    student, teacher = rewards(1, 4, dtype=torch.float32)
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        options = RankingOptions(10.0, 10.0, 8)
        launch.forward(student, teacher.to(dtype), None, kind, method, options)
    assert seen == [torch.float32] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck_drives_the_kernels(kind):
    """Finite differences agree, since the kernels accumulate in float64 for float64 rewards."""
    student, teacher = rewards(2, 3)
    live = torch.tensor([[True, True, True], [True, False, True]], device=DEVICE)
    assert gradcheck(
        lambda s: loss_of(kind, s, teacher, live, betas=(4.0, 3.0))[0],
        student.requires_grad_(),
        fast_mode=True,
    )


def test_gradcheck_of_sampled_kl():
    """Draws come from the teacher, so the gradient is the derivative of the estimate."""
    student, teacher = rewards(2, 3)
    options = {"method": "sampled", "samples": 6, "betas": (4.0, 3.0)}
    assert gradcheck(
        lambda s: loss_of("kl", s, teacher, **options)[0], student.requires_grad_(), fast_mode=True
    )
