"""Agreement of rankings against SciPy, brute force and rankings known by hand."""

import math

import pytest
import torch
from scipy.stats import kendalltau

from pad_fast.evaluation import ranking_agreement


def ties(generator: torch.Generator, prompts: int, responses: int) -> torch.Tensor:
    """Rewards of few values, so that there are many ties."""
    return torch.randint(0, 4, (prompts, responses), generator=generator).double()


@pytest.mark.parametrize("responses", [2, 3, 5, 9])
def test_tau_is_scipys_tau_b_with_ties_and_masks(responses: int) -> None:
    generator = torch.Generator().manual_seed(responses)
    student, teacher = ties(generator, 200, responses), ties(generator, 200, responses)
    teacher[0], student[1] = 1.0, 2.0  # both tie all, whatever was drawn
    mask = torch.rand(200, responses, generator=generator) < 0.8
    mask[:2] = True
    dead = student.masked_fill(~mask, torch.nan), teacher.masked_fill(~mask, torch.inf)
    found = ranking_agreement(*dead, mask, reduction="none")["kendall_tau"]
    counted = 0
    for p in range(200):
        live_student, live_teacher = student[p][mask[p]], teacher[p][mask[p]]
        if live_teacher.unique().numel() < 2:
            assert math.isnan(found[p])
            continue
        counted += 1
        if live_student.unique().numel() < 2:
            assert found[p] == 0.0  # SciPy gives NaN, but a student that ties all is measured
            continue
        assert found[p].item() == pytest.approx(
            kendalltau(live_student, live_teacher, variant="b").statistic, abs=1e-6
        )
    assert 40 < counted < 200  # some prompts counted and some did not
    mean = ranking_agreement(*dead, mask)["kendall_tau"]
    torch.testing.assert_close(mean, found[~found.isnan()].mean())


def test_top1_and_pairs_by_brute_force() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = ties(generator, 100, 5), ties(generator, 100, 5)
    mask = torch.rand(100, 5, generator=generator) < 0.8
    found = ranking_agreement(student, teacher, mask, reduction="none")
    for p in range(100):
        live = [i for i in range(5) if mask[p, i]]
        s, t = student[p].tolist(), teacher[p].tolist()
        if len({t[i] for i in live}) < 2:
            assert math.isnan(found["top1"][p])
            assert math.isnan(found["pair_accuracy"][p])
            continue
        best = [i for i in live if s[i] == max(s[j] for j in live)]
        expected = sum(t[i] == max(t[j] for j in live) for i in best) / len(best)
        assert found["top1"][p].item() == pytest.approx(expected)
        better = [(i, j) for i in live for j in live if t[i] > t[j]]
        assert found["pair_accuracy"][p].item() == pytest.approx(
            sum(s[i] > s[j] for i, j in better) / len(better)
        )


def test_known_rankings() -> None:
    teacher = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    assert {k: v.item() for k, v in ranking_agreement(teacher * 0.1, teacher).items()} == {
        "kendall_tau": 1.0,
        "top1": 1.0,
        "pair_accuracy": 1.0,
    }
    assert {k: v.item() for k, v in ranking_agreement(-teacher, teacher).items()} == {
        "kendall_tau": -1.0,
        "top1": 0.0,
        "pair_accuracy": 0.0,
    }
    one_swap = ranking_agreement(torch.tensor([[3.0, 2.0, 0.0, 1.0]]), teacher)
    assert one_swap["kendall_tau"].item() == pytest.approx(4 / 6)
    assert one_swap["pair_accuracy"].item() == pytest.approx(5 / 6)


def test_prompts_without_an_order_count_for_nothing() -> None:
    teacher = torch.tensor([[1.0, 2.0], [5.0, 5.0], [1.0, 2.0]])
    student = torch.tensor([[1.0, 2.0], [2.0, 1.0], [2.0, 1.0]])
    mask = torch.tensor([[True, True], [True, True], [True, False]])
    assert ranking_agreement(student, teacher, mask)["kendall_tau"].item() == 1.0
    nothing = ranking_agreement(student[1:2], teacher[1:2])
    assert all(value.shape == () and value.isnan() for value in nothing.values())
    assert all(
        value.isnan() for value in ranking_agreement(torch.empty(0, 4), torch.empty(0, 4)).values()
    )


def test_copies_of_a_response_are_not_ranked_by_rounding() -> None:
    # The first two responses are one text that was scored in two batches.
    teacher = torch.tensor([[-0.3700001, -0.3700003, -1.2]])
    found = ranking_agreement(torch.tensor([[-0.124, -0.124, -0.325]]), teacher)
    assert {name: value.item() for name, value in found.items()} == {
        "kendall_tau": 1.0,
        "top1": 1.0,
        "pair_accuracy": 1.0,
    }
    assert ranking_agreement(teacher[:, :2], teacher[:, :2])["top1"].isnan()  # nothing to rank


def test_dtypes_and_infinite_rewards() -> None:
    # The teacher gives two responses the probability 0.
    teacher = torch.tensor([[-torch.inf, -torch.inf, 0.0]], dtype=torch.float64)
    found = ranking_agreement(torch.tensor([[-3.0, -2.0, -1.0]], dtype=torch.bfloat16), teacher)
    assert found["kendall_tau"].item() == pytest.approx(2 / math.sqrt(3 * 2))
    assert found["top1"].item() == found["pair_accuracy"].item() == 1.0
    assert all(value.dtype == torch.float32 for value in found.values())
    # A student that gives all the probability 0: both live responses are its best, and the masked
    # one is not.
    mask = torch.tensor([[False, True, True]])
    assert ranking_agreement(torch.full((1, 3), -torch.inf), teacher, mask)["top1"].item() == 0.5


@pytest.mark.parametrize(
    ("student", "teacher", "options", "message"),
    [
        (
            torch.zeros(2, 3),
            torch.zeros(2, 4),
            {},
            r"student_rewards and teacher_rewards.*\(2, 3\) and \(2, 4\)",
        ),
        (torch.zeros(3), torch.zeros(3), {}, r"\(P, N\)"),
        (torch.zeros(2, 0), torch.zeros(2, 0), {}, "N >= 1"),
        (torch.zeros(2, 3), torch.zeros(2, 3), {"mask": torch.ones(2, 3)}, "mask must be bool"),
        (
            torch.zeros(2, 3),
            torch.zeros(2, 3),
            {"mask": torch.ones(3, 2, dtype=torch.bool)},
            r"mask.*\(3, 2\)",
        ),
        (
            torch.zeros(2, 3),
            torch.zeros(2, 3),
            {"reduction": "sum"},
            "reduction must be 'mean' or 'none', given 'sum'",
        ),
        (
            torch.full((1, 2), torch.nan),
            torch.zeros(1, 2),
            {},
            "student_rewards must not be NaN.*2 responses",
        ),
        (torch.zeros(1, 2), torch.full((1, 2), torch.nan), {}, "teacher_rewards must not be NaN"),
    ],
)
def test_bad_input(
    student: torch.Tensor, teacher: torch.Tensor, options: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ranking_agreement(student, teacher, **options)
