"""The losses beside PPD and VPD, against their written-out definitions and known pair losses."""

from __future__ import annotations

import pytest
import torch
from listwise import rewards
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn.functional import logsigmoid

from pad_fast import reference
from pad_fast.losses import preference_loss
from pad_fast.preference.loss_kinds import LOSSES

BETA, TEACHER_BETA = 3.0, 2.0
MORE = {"simpo": {"gamma": 0.7}}
NEIGHBOURS = [name for name in LOSSES if name != "ppd"]
PAIRED = ("dpo", "simpo")


def options_of(name: str, **more) -> dict:
    """Options of a loss, without the likelihood that its source adds."""
    loss = LOSSES[name]
    found = {"beta": BETA} if loss.has_beta else {}
    found |= {"teacher_beta": TEACHER_BETA} if "teacher_beta" in loss.own_options else {}
    return {"likelihood_weight": 0.0, "reduction": "none", **found, **MORE.get(name, {}), **more}


def loss_of(name: str, student: Tensor, teacher: Tensor, **more) -> Tensor:
    anchor = torch.zeros_like(teacher) if LOSSES[name].needs_anchor else None
    columns = {"anchor_rewards": anchor, **{k: more.pop(k) for k in ("mask",) if k in more}}
    return preference_loss(name, student, teacher, **columns, **options_of(name, **more))


def by_definition(name: str, student: Tensor, teacher: Tensor, **more) -> Tensor:
    loss = LOSSES[name]
    x = (BETA if loss.has_beta else 1.0) * student
    t = (TEACHER_BETA if "teacher_beta" in loss.own_options else 1.0) * teacher
    given = MORE.get(name, {}) | more
    define = reference.LOSSES[loss.kinds[0].name]
    return torch.stack([define(*pair, **given) for pair in zip(x, t, strict=True)])


@pytest.mark.parametrize("name", NEIGHBOURS)
@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_value_and_gradient_are_those_of_the_definition(name: str, n: int) -> None:
    student, teacher = rewards(6, n, seed=n)
    for pairs in ({"pairs": "best_worst"}, {"pairs": "all"}) if name in PAIRED else ({},):
        got = loss_of(name, student, teacher, **pairs)
        wanted = by_definition(name, student, teacher, **pairs)
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
        assert len({round(loss, 6) for loss in got.tolist()}) > 1
        upstream = torch.linspace(-1, 2, 6, dtype=torch.float64)
        gradients = [torch.autograd.grad(loss, student, upstream)[0] for loss in (got, wanted)]
        torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_gradcheck(name: str) -> None:
    student, teacher = rewards(3, 4)
    mask = torch.tensor([[True] * 4, [True, False, True, True], [False, False, True, False]])
    for options in ({}, {"mask": mask}, {"group_size": 2}):
        # Each term of RRHF and LambdaLoss is smooth but where rewards are equal.
        assert gradcheck(lambda s: loss_of(name, s, teacher, **options), student)  # noqa: B023 (called at once)


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_masked_responses_do_not_count(name: str) -> None:
    student, teacher = rewards(4, 5)
    mask = torch.tensor([True, True, False, True, False]).expand(4, 5)
    broken = teacher.masked_fill(~mask, torch.nan)
    got = loss_of(name, student, broken, mask=mask)
    torch.testing.assert_close(got, loss_of(name, student[:, mask[0]], teacher[:, mask[0]]))
    (grad,) = torch.autograd.grad(got.sum(), student)
    assert grad.isfinite().all()
    assert not grad[~mask].any()


def test_two_responses_are_the_known_pair_losses() -> None:
    student, teacher = rewards(6, 2)
    order = teacher.argsort(1, descending=True)
    chosen, rejected = student.gather(1, order).T
    apart = teacher.gather(1, order).T
    d = TEACHER_BETA * (apart[0] - apart[1])
    margin = BETA * (chosen - rejected)
    p = d.sigmoid()
    weight = (2**p - 2 ** (1 - p)) * (1 - 1 / torch.tensor(3.0).log2())
    known = {
        "vpd": -logsigmoid(margin),
        "plackett_luce_dpo": -logsigmoid(margin),
        "dpo": -logsigmoid(margin),
        "simpo": -logsigmoid(margin - 0.7),
        "listnet": -p * logsigmoid(margin) - (1 - p) * logsigmoid(-margin),
        "rrhf": (rejected - chosen).clamp(min=0),
        "pro": -logsigmoid(d * margin),
        "lambda_loss": -weight * logsigmoid(margin),
        "rft": -chosen,
    }
    assert set(known) == set(NEIGHBOURS)
    for name, wanted in known.items():
        torch.testing.assert_close(loss_of(name, student, teacher), wanted)


@pytest.mark.parametrize("name", ["dpo", "plackett_luce_dpo", "vpd", "ppd"])
def test_an_anchor_is_subtracted(name: str) -> None:
    student, teacher = rewards(3, 4)
    anchor, _ = rewards(3, 4, seed=9)
    got = preference_loss(name, student, teacher, anchor_rewards=anchor, beta=BETA)
    nothing = torch.zeros_like(teacher)
    wanted = preference_loss(name, student - anchor, teacher, anchor_rewards=nothing, beta=BETA)
    torch.testing.assert_close(got, wanted)
    got.backward()
    assert anchor.grad is None


@pytest.mark.parametrize("name", ["dpo", "plackett_luce_dpo"])
def test_dpo_without_an_anchor_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"loss='{name}' needs anchor_rewards"):
        preference_loss(name, *rewards(2, 3))


def test_equal_rewards_of_the_teacher_are_no_pair() -> None:
    student, _ = rewards(2, 3)
    tied = torch.tensor([[1.0, 1.0, 1.0], [2.0, 1.0, 1.0]], dtype=torch.float64)
    for name, more in (("simpo", {"pairs": "all"}), ("simpo", {}), ("rrhf", {}), ("dpo", {})):
        loss = loss_of(name, student, tied, **more)
        assert loss[0] == 0
        assert not torch.autograd.grad(loss[0], student)[0].any()
    everything = loss_of("simpo", student, tied, pairs="all")[1]
    margins = BETA * (student[1, 0] - student[1, 1:])
    torch.testing.assert_close(everything, -logsigmoid(margins - 0.7).mean())


@pytest.mark.parametrize("pairs", ["best_worst", "all"])
def test_the_pair_of_tied_rewards_is_the_definitions(pairs: str) -> None:
    student, _ = rewards(3, 4)
    teacher = torch.tensor([[3.0, 1, 1, 2], [2, 2, 1, 1], [1, 3, 3, 1]], dtype=torch.float64)
    got = loss_of("simpo", student, teacher, pairs=pairs)
    torch.testing.assert_close(got, by_definition("simpo", student, teacher, pairs=pairs))
    if pairs == "best_worst":
        (grad,) = torch.autograd.grad(got.sum(), student)
        assert [row.nonzero()[:, 0].tolist() for row in grad] == [[0, 2], [0, 3], [1, 3]]


def test_equal_rewards_of_the_student_do_not_move_it_by_rrhf() -> None:
    student = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[2.0, 1.0, 3.0]], dtype=torch.float64)
    for loss in (loss_of("rrhf", student, teacher), by_definition("rrhf", student, teacher)):
        assert loss.item() == 0
        assert not torch.autograd.grad(loss.sum(), student)[0].any()


@pytest.mark.parametrize("far", [0.0, -50.0, -300.0])
@pytest.mark.parametrize("n", [2, 4])
def test_pro_in_float32_is_that_of_float64_however_far_rewards_are_from_0(far, n) -> None:
    teacher = torch.tensor([[-0.5, -1.5, -1.75, -3.0]])[:, :n]
    student = torch.tensor([[0.0, -0.0625, -0.125, -0.25]])[:, :n] + far
    found = []
    for dtype in (torch.float32, torch.float64):
        rewards = student.to(dtype).requires_grad_()
        loss = preference_loss("pro", rewards, teacher.to(dtype), likelihood_weight=0.0)
        found.append((loss.double(), torch.autograd.grad(loss, rewards)[0].double()))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-9)
    assert found[1][1][0, 0] < 0


@pytest.mark.parametrize("name", ["dpo", "simpo", "lambda_loss"])
def test_a_pair_far_in_the_wrong_order_has_its_whole_loss(name: str) -> None:
    student = torch.tensor([[0.0, 22.0 / BETA]], dtype=torch.float64)
    teacher = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(
        loss_of(name, student, teacher), by_definition(name, student, teacher), rtol=1e-13, atol=0
    )


@pytest.mark.parametrize("name", NEIGHBOURS)
@pytest.mark.parametrize("spread", [1e-3, 1e3])
def test_extreme_rewards_stay_finite(name: str, spread: float) -> None:
    student, teacher = rewards(8, 5, dtype=torch.float32)
    loss = loss_of(name, student * spread, teacher * spread)
    assert loss.isfinite().all()
    assert torch.autograd.grad(loss.sum(), student)[0].isfinite().all()


@pytest.mark.parametrize("name", ["listnet", "dpo", "simpo", "rrhf", "pro", "lambda_loss", "rft"])
def test_a_kernel_by_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r'impl="triton" was asked for, but there is no kernel of'):
        preference_loss(name, *rewards(2, 3), anchor_rewards=torch.zeros(2, 3), impl="triton")
