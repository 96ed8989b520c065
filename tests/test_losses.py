"""The public losses of rewards: values, options, dtypes and errors."""

from __future__ import annotations

import math

import oracles
import pytest
import torch
from listwise import KINDS, gradient, preference_loss, rewards
from torch.autograd import gradcheck

from pad_fast import losses, reference
from pad_fast.losses import probabilistic_preference_loss, vanilla_preference_loss
from pad_fast.preference import exact_kl, loss_kinds

NAN = float("nan")


# Values and options.


@pytest.mark.parametrize("kind", KINDS)
def test_equals_enumeration_in_every_reduction(kind: str) -> None:
    student, teacher = rewards(5, 4)
    expected, expected_grad = oracles.value_and_gradient(student, teacher, kind)
    for reduction, value, scale in (
        ("none", expected, 1),
        ("sum", expected.sum(), 1),
        ("mean", expected.mean(), 5),
    ):
        loss = preference_loss(kind, student, teacher, reduction=reduction)
        torch.testing.assert_close(loss.detach(), value, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(
            gradient(loss, student), expected_grad / scale, rtol=1e-12, atol=1e-12
        )
    by_default = preference_loss(kind, student, teacher)
    torch.testing.assert_close(by_default, expected.mean(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", KINDS[:3])
def test_each_side_has_its_beta(kind: str) -> None:
    student, teacher = rewards(3, 4)
    got = preference_loss(kind, student, teacher, beta=3.0, teacher_beta=8.0, reduction="none")
    torch.testing.assert_close(
        got, oracles.preference_loss(student, teacher, kind, 3.0, 8.0), rtol=1e-12, atol=0
    )
    default = preference_loss(kind, student, teacher, beta=3.0, reduction="none")
    torch.testing.assert_close(
        default, oracles.preference_loss(student, teacher, kind, 3.0, 3.0), rtol=1e-12, atol=0
    )


def test_vanilla_of_two_is_simpo_without_margin() -> None:
    student, teacher = rewards(6, 2)
    best, worst = student.gather(1, teacher.argsort(1, descending=True)).unbind(1)
    expected = -torch.nn.functional.logsigmoid(10 * (best - worst))
    torch.testing.assert_close(
        vanilla_preference_loss(student, teacher, reduction="none"), expected
    )


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind: str) -> None:
    student, teacher = rewards(3, 5)
    mask = torch.tensor(
        [[True] * 5, [True, False, True, True, False], [False, False, False, True, False]]
    )
    for options in (
        {},
        {"mask": mask},
        {"group_size": 2, "reduction": "none"},
        {"mask": mask, "group_size": 2, "group_reduction": "sum"},
    ):
        assert gradcheck(lambda s: preference_loss(kind, s, teacher, beta=4.0, **options), student)  # noqa: B023 (called at once)


@pytest.mark.parametrize("kind", KINDS)
def test_any_upstream_gradient_and_no_second_derivative(kind: str) -> None:
    student, teacher = rewards(3, 4)
    loss = preference_loss(kind, student, teacher, reduction="none")
    upstream = torch.tensor([2.0, -0.5, 0.0], dtype=torch.float64)
    once = torch.autograd.grad(loss, student, upstream, create_graph=True)[0]
    each = oracles.value_and_gradient(student, teacher, kind)[1]
    torch.testing.assert_close(once.detach(), upstream[:, None] * each, rtol=1e-12, atol=1e-12)
    with pytest.raises(RuntimeError, match="listwise loss is not differentiable"):
        once.sum().backward()


@pytest.mark.parametrize("method", ["exact", "sampled", "auto"])
@pytest.mark.parametrize("divergence", ["jsd", "kl", "reverse_kl"])
@pytest.mark.parametrize("n", [2, 3, 4, 7, 9])
@pytest.mark.parametrize("options", [{}, {"group_size": 2}], ids=["whole", "groups"])
def test_no_prompts_give_no_losses(divergence: str, method: str, n: int, options: dict) -> None:
    student = torch.zeros(0, n, requires_grad=True)
    for mask in (None, torch.ones(0, n, dtype=torch.bool)):
        for reduction, shape in (("none", (0,)), ("mean", ()), ("sum", ())):
            loss = probabilistic_preference_loss(
                student,
                torch.zeros(0, n),
                mask=mask,
                divergence=divergence,
                method=method,
                reduction=reduction,
                **options,
            )
            assert loss.shape == shape
            assert not loss.any()
            loss.sum().backward()


def test_teacher_is_a_constant() -> None:
    student, teacher = rewards(3, 4)
    teacher.requires_grad_()
    probabilistic_preference_loss(student, teacher).backward()
    assert teacher.grad is None
    assert not probabilistic_preference_loss(student.detach(), teacher).requires_grad


@pytest.mark.parametrize("divergence", reference.DIVERGENCES)
@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_specification_counts_all_rankings(divergence: str, n: int) -> None:
    student, teacher = rewards(4, n)
    options = {"beta": 2.0, "teacher_beta": 3.0, "reduction": "none"}
    found = losses.preference_loss("ppd", student, teacher, divergence=divergence, **options)
    define = reference.DIVERGENCES[divergence]
    pairs = zip(2.0 * student, 3.0 * teacher, strict=True)
    wanted = torch.stack([define(*pair) for pair in pairs])
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)
    upstream = torch.linspace(-1, 2, 4, dtype=torch.float64)
    gradients = [torch.autograd.grad(each, student, upstream)[0] for each in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(kind: str, dtype: torch.dtype) -> None:
    student, teacher = rewards(4, 4)
    student, teacher = student.detach().to(dtype).requires_grad_(), teacher.to(dtype)
    loss = preference_loss(kind, student, teacher)
    loss.backward()
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert student.grad.dtype == dtype
    exact, grad = oracles.value_and_gradient(student.double(), teacher.double(), kind)
    torch.testing.assert_close(loss.double(), exact.mean(), rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(
        student.grad.double(), grad / 4, rtol=torch.finfo(dtype).eps, atol=5e-6
    )


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_changes_nothing(kind: str) -> None:
    student, teacher = rewards(4, 4, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = preference_loss(kind, student, teacher)
    assert torch.equal(loss, preference_loss(kind, student, teacher))


def test_vanilla_orders_by_the_teacher_in_its_own_dtype() -> None:
    student = torch.tensor([[0.0, 1.0]])
    teacher = torch.tensor([[1.0, 1.0 + 1e-12]], dtype=torch.float64)
    torch.testing.assert_close(
        vanilla_preference_loss(student, teacher), torch.tensor(math.log1p(math.exp(-10)))
    )


def test_strided_rewards_and_inference_mode() -> None:
    student, teacher = rewards(4, 12)
    for kind in KINDS:
        got = preference_loss(kind, student[:, ::2], teacher[:, ::2])
        assert torch.equal(
            got, preference_loss(kind, student[:, ::2].contiguous(), teacher[:, ::2].contiguous())
        )
    exact_kl.subset_levels.cache_clear()
    with torch.inference_mode():
        inside = preference_loss("kl", student, teacher)
    outside = preference_loss("kl", student, teacher)  # with tables that were made inside
    outside.backward()
    assert torch.equal(inside, outside)


# Bad input.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.0}, "beta must be a positive finite number, got 0.0"),
        ({"teacher_beta": -1.0}, "teacher_beta must be a positive finite number, got -1.0"),
        ({"divergence": "tv"}, "divergence must be one of jsd, kl, reverse_kl, got 'tv'"),
        ({"method": "quick"}, "method must be one of auto, exact, sampled, got 'quick'"),
        ({"num_samples": 3}, "num_samples must be at least 4, got 3"),
        (
            {"seed": 2**63},
            r"seed must be an integer of 64 bits, from -2\*\*63 to 2\*\*63 - 1, "
            "got 9223372036854775808",
        ),
        ({"group_size": 1}, "group_size must be None or at least 2, got 1"),
        ({"group_reduction": "max"}, "group_reduction must be one of mean, sum, got 'max'"),
        ({"reduction": "batchmean"}, "reduction must be one of mean, sum, none, got 'batchmean'"),
        ({"impl": "cuda"}, "impl must be one of auto, torch, triton, got 'cuda'"),
        ({"mask": torch.ones(2, 11)}, "mask must be bool"),
        (
            {"mask": torch.ones(2, 3, dtype=torch.bool)},
            r"mask must have the shape of student_rewards, \(2, 11\), got \(2, 3\)",
        ),
        ({"method": "exact"}, "at most 10 responses a group for divergence='jsd', got 11"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    student, teacher = rewards(2, 11)
    with pytest.raises(ValueError, match=message):
        probabilistic_preference_loss(student, teacher, **options)


@pytest.mark.parametrize("kind", ["jsd", "vpd"])
def test_bad_rewards(kind: str) -> None:
    student, teacher = rewards(2, 4)
    with pytest.raises(
        ValueError,
        match=r"teacher_rewards must have the shape of student_rewards, \(2, 4\), got \(4, 2\)",
    ):
        preference_loss(kind, student, teacher.T)
    with pytest.raises(ValueError, match=r"at least N = 2 responses a prompt, got \(2, 1\)"):
        preference_loss(kind, student[:, :1], teacher[:, :1])
    with pytest.raises(ValueError, match=r"student_rewards must be \(P, N\)"):
        preference_loss(kind, student[0], teacher[0])
    with pytest.raises(ValueError, match="float16, bfloat16, float32 or float64, got torch"):
        preference_loss(kind, student, teacher.long())
    with pytest.raises(ValueError, match="on the device of student_rewards, cpu, got meta"):
        preference_loss(kind, student, teacher.to("meta"))


@pytest.mark.parametrize("kind", ["jsd", "vpd"])
@pytest.mark.parametrize("bad", [NAN, float("inf"), -float("inf")])
def test_live_rewards_must_be_finite(kind: str, bad: float) -> None:
    student, teacher = rewards(2, 4)
    wrong = teacher.clone()
    wrong[1, 2] = bad
    for masked in (None, torch.arange(4).expand(2, 4) > 0):
        rule = "teacher_rewards must be finite for every live response"
        with pytest.raises(ValueError, match=rf"{rule}, got {bad} at \[1, 2\] and 1"):
            preference_loss(kind, student, wrong, mask=masked)
        with pytest.raises(ValueError, match="student_rewards must be finite"):
            preference_loss(kind, wrong, teacher, mask=masked)
    preference_loss(kind, student, wrong, check_finite=False)
    compiled = torch.compile(preference_loss, fullgraph=True, backend="eager")
    with pytest.raises(ValueError, match="teacher_rewards must be finite"):
        compiled(kind, student, wrong)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", loss_kinds.LOSSES)
def test_a_response_without_tokens_does_not_count(name: str, masked: bool) -> None:
    """``lengths`` leave out what a mask would, alone or beside one, in every form of a loss."""
    student, teacher = rewards(3, 4)
    lengths = torch.tensor([[3, 1, 0, 2], [0, 0, 0, 7], [1, 2, 3, 4]])
    mask = torch.tensor([[True, True, True, False], [True] * 4, [False, True, True, True]])
    given = mask if masked else None
    both = (lengths > 0) & mask if masked else lengths > 0
    columns = {"anchor_rewards": 0.1 * teacher} if loss_kinds.LOSSES[name].needs_anchor else {}
    for options in (
        {},
        {"reduction": "none"},
        {"group_size": 2},
        {"likelihood_weight": 0.3},
        {"preference_weight": 0.0, "likelihood_weight": 1.0},
    ):
        found, wanted = (
            losses.preference_loss(name, student, teacher, **columns, **options, **live)
            for live in ({"mask": given, "lengths": lengths}, {"mask": both})
        )
        assert torch.equal(found, wanted)
        assert torch.equal(gradient(found, student), gradient(wanted, student))
