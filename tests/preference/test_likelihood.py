"""The likelihood of responses beside a loss of rewards."""

from __future__ import annotations

import pytest
import torch
from listwise import rewards
from torch import Tensor
from torch.autograd import gradcheck

from pad_fast import LinearPADLoss, PADLoss, linear_preference_loss, reference
from pad_fast.losses import preference_loss
from pad_fast.preference.likelihood import LIKELIHOODS

NAN = float("nan")
MASK = torch.tensor([[True] * 4, [True, False, True, True], [False, True, False, False]])
OWN = torch.tensor([[False, True, False, False], [True, True, False, True], [False] * 4])


def term(on: str, student: Tensor, teacher: Tensor, **options) -> Tensor:
    """The likelihood alone, of each prompt."""
    beta = {"likelihood_beta": 4.0} if on == "weighted" else {}
    options = {"reduction": "none", "likelihood_weight": 1.0, **options}
    columns = {"from_teacher": OWN, "preference_weight": 0.0}
    return preference_loss(
        "ppd", student, teacher, likelihood_on=on, **{**columns, **beta, **options}
    )


@pytest.mark.parametrize("on", LIKELIHOODS)
def test_the_term_is_that_of_the_definition(on: str) -> None:
    student, teacher = rewards(3, 4)
    got = term(on, student, teacher.masked_fill(~MASK, NAN), mask=MASK)
    wanted = torch.stack(
        [
            reference.likelihood(student[p, live], teacher[p, live], on, 4.0, OWN[p, live])
            for p, live in enumerate(MASK)
        ]
    )
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    upstream = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    gradients = [torch.autograd.grad(value, student, upstream)[0] for value in (got, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
    assert gradcheck(lambda s: term(on, s, teacher, mask=MASK), student)


@pytest.mark.parametrize("on", LIKELIHOODS)
@pytest.mark.parametrize("loss", ["ppd", "vpd", "dpo"])
def test_the_parts_add_up_and_only_the_ranking_has_an_anchor(loss: str, on: str) -> None:
    student, teacher = rewards(3, 4)
    anchor, _ = rewards(3, 4, seed=5)
    columns = {"mask": MASK, "reduction": "none", "anchor_rewards": anchor}
    both = preference_loss(
        loss,
        student,
        teacher,
        from_teacher=OWN,
        preference_weight=0.5,
        likelihood_weight=3.0,
        likelihood_on=on,
        **columns,
    )
    ranking = preference_loss(loss, student, teacher, **columns)
    likelihood = term(on, student, teacher, mask=MASK) if on != "weighted" else preference_loss(
        "vpd", student, teacher, mask=MASK, reduction="none", preference_weight=0.0,
        likelihood_weight=1.0, likelihood_on=on,
    )  # fmt: skip
    torch.testing.assert_close(both, 0.5 * ranking + 3.0 * likelihood)


def test_a_constant_added_to_all_rewards_moves_the_likelihood_alone() -> None:
    student, teacher = rewards(3, 4)
    options = {"likelihood_weight": 2.0, "likelihood_on": "weighted", "reduction": "none"}
    before, after = (
        preference_loss("ppd", rewards, teacher, **options) for rewards in (student, student + 1)
    )
    torch.testing.assert_close(after, before - 2.0)
    plain = [preference_loss("ppd", each, teacher) for each in (student, student + 1)]
    torch.testing.assert_close(*plain)


def test_prompts_of_one_live_response_count_with_a_likelihood() -> None:
    student, teacher = rewards(3, 4)
    mean = {"mask": MASK, "likelihood_weight": 1.0}
    each = preference_loss("vpd", student, teacher, reduction="none", **mean)
    assert each[2] == -student[2, 1]
    torch.testing.assert_close(preference_loss("vpd", student, teacher, **mean), each.mean())
    without = preference_loss("vpd", student, teacher, mask=MASK, reduction="none")
    assert without[2] == 0
    torch.testing.assert_close(
        preference_loss("vpd", student, teacher, mask=MASK), without.sum() / 2
    )
    best_of = preference_loss("rft", student, teacher, mask=MASK)
    torch.testing.assert_close(best_of, term("best", student, teacher, mask=MASK).mean())


def test_the_published_weight_is_the_default() -> None:
    student, teacher = rewards(3, 4)
    best = term("best", student, teacher, mask=MASK)
    for name, weight in (("rrhf", torch.ones(3)), ("pro", 0.05 * (MASK.sum(1) - 1) ** 2)):
        options = {"mask": MASK, "reduction": "none"}
        default = preference_loss(name, student, teacher, **options)
        ranking = preference_loss(name, student, teacher, likelihood_weight=0.0, **options)
        torch.testing.assert_close(default, ranking + weight * best)
        assert (default != ranking).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"likelihood_on": "teacher", "likelihood_weight": 1.0}, "needs from_teacher"),
        ({"preference_weight": 0.0}, "must not both be 0"),
        ({"likelihood_weight": float("inf")}, "likelihood_weight must be a finite number"),
        ({"likelihood_on": "worst"}, "likelihood_on must be one of best, teacher, weighted"),
        ({"anchor_rewards": torch.zeros(3, 3)}, r"anchor_rewards must be \(3, 4\) on cpu"),
        ({"anchor_rewards": torch.full((3, 4), NAN)}, "anchor_rewards must be finite for every"),
        ({"from_teacher": torch.zeros(3, 4)}, "from_teacher must be bool, got torch.float32"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preference_loss("ppd", *rewards(3, 4), **options)


def test_rewards_that_are_not_finite_are_refused_in_the_likelihood_too() -> None:
    student, teacher = rewards(3, 4)
    with pytest.raises(ValueError, match="teacher_rewards must be finite"):
        term("best", student, teacher.masked_fill(~MASK, NAN))


@pytest.mark.parametrize("normalize", ["mean", "sum"])
@pytest.mark.parametrize("on", LIKELIHOODS)
def test_the_modules_and_the_linear_loss_take_the_columns(on: str, normalize: str) -> None:
    """Also in chunks of prompts, whose gradients are made in the forward."""
    generator = torch.Generator().manual_seed(0)
    prompts, n, length, vocabulary = 24, 4, 24, 1024  # rows enough that a budget has no room
    hidden = torch.randn(prompts * n, length, 8, generator=generator)
    weight = torch.randn(vocabulary, 8, generator=generator)
    labels = torch.randint(vocabulary, (prompts * n, length), generator=generator)
    teacher, anchor = torch.randn(2, prompts, n, generator=generator)
    own = torch.arange(n).expand(prompts, n) == 2
    columns = {"anchor_rewards": anchor, "from_teacher": own}
    options = {"normalize": normalize, "beta": 0.5, "likelihood_weight": 2.0, "likelihood_on": on}
    results = []
    for budget in ("auto", 4 * vocabulary * 1100):
        leaf = weight.clone().requires_grad_()
        loss, seen = linear_preference_loss(
            hidden, leaf, labels, teacher, memory_budget=budget, **columns, **options
        )
        results.append((loss.detach(), torch.autograd.grad(loss, leaf)[0]))
    del options["normalize"]
    wanted = preference_loss("ppd", seen, teacher, **columns, **options)
    options["normalize"] = normalize
    torch.testing.assert_close(results[0][0], wanted)
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
    from_logits = PADLoss(**options)(hidden @ weight.T, labels, teacher, **columns)
    torch.testing.assert_close(from_logits, wanted, rtol=1e-4, atol=1e-5)
    module = LinearPADLoss(**options)(hidden, weight, labels, teacher, **columns)
    torch.testing.assert_close(module, wanted)


def test_one_response_a_prompt_has_a_likelihood() -> None:
    student = torch.tensor([[-1.0], [-3.0]], requires_grad=True)
    teacher = torch.tensor([[-0.5], [-0.25]])
    for loss, options in (("rft", {}), ("vpd", {"likelihood_weight": 1.0})):
        found = preference_loss(loss, student, teacher, **options)
        torch.testing.assert_close(found, torch.tensor(2.0))
        (gradient,) = torch.autograd.grad(found, student)
        torch.testing.assert_close(gradient, torch.full((2, 1), -0.5))
    with pytest.raises(ValueError, match=r"at least N = 1 response a prompt, got \(2, 0\)"):
        preference_loss("rft", student[:, :0], teacher[:, :0])
