"""Equal responses read once in the losses, in their sums and in scoring."""

from __future__ import annotations

import pytest
import torch
from groups import make_model
from prompt_batch import N, P, T, states

from pad_fast.linear_loss import linear_preference_loss
from pad_fast.models import scoring
from pad_fast.models.layout import first_equal
from pad_fast.models.packing import PackedRows
from pad_fast.modules import LinearPADLoss, PADLoss

# The third response of the first prompt is its first, and those of the second are all equal.
READ_AS = torch.tensor([[0, 1, 0], [2, 2, 2]])
NUMBERS = torch.tensor([0, 1, 0, 3, 3, 3])  # the same in the numbers of all P * N


def each() -> tuple[torch.Tensor, ...]:
    """The batch of the tests of losses with its repeats written out."""
    hidden, weight, bias, labels, teacher = states()
    hidden = hidden.detach()[NUMBERS].requires_grad_()
    return hidden, weight, bias, labels[NUMBERS], teacher


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalize": "sum", "divergence": "kl", "memory_budget": 0},
        {"loss": "vpd", "beta": 2.0, "reduction": "none"},
        {"likelihood_weight": 0.5, "shift": True},
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_the_linear_loss_equals_that_of_reading_each(options: dict, packed: bool) -> None:
    hidden, weight, bias, labels, teacher = each()
    mask = torch.tensor([[True, True, True], [True, False, True]])
    given = {"bias": bias, "mask": mask, **options}
    if options.get("shift"):
        labels[:, 0] = -100
    wanted = LinearPADLoss(**options)(hidden, weight, labels, teacher, bias=bias, mask=mask)
    expected = torch.autograd.grad(wanted.sum(), (hidden, weight, bias))
    first = torch.tensor([0, 1, 3])  # the rows that are read
    read, places = hidden.detach()[first].requires_grad_(), READ_AS
    inputs = {"hidden": read, "labels": labels[first]}
    if packed:
        ids = torch.arange(P * N)[first].repeat_interleave(T)
        inputs = {"hidden": read.flatten(0, 1), "labels": labels[first].flatten()}
        given["response_ids"], places = ids, NUMBERS.view(P, N)
    found, rewards = linear_preference_loss(
        weight=weight, teacher_rewards=teacher, read_as=places, **inputs, **given
    )
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)
    assert torch.equal(rewards[0, 0], rewards[0, 2])
    gradient, *others = torch.autograd.grad(found.sum(), (read, weight, bias))
    for one, all_of_it in zip(others, expected[1:], strict=True):
        torch.testing.assert_close(one, all_of_it, rtol=1e-10, atol=1e-12)
    sums = torch.zeros_like(gradient).index_add_(0, READ_AS.flatten(), expected[0])
    torch.testing.assert_close(gradient, sums, rtol=1e-10, atol=1e-12)


def test_the_loss_of_logits_takes_the_same_places() -> None:
    hidden, weight, bias, labels, teacher = each()
    first = torch.tensor([0, 1, 3])
    logits = hidden @ weight.T + bias
    wanted = PADLoss(loss="vpd")(logits, labels, teacher)
    found = PADLoss(loss="vpd")(logits[first], labels[first], teacher, read_as=READ_AS)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("read_as", "message"),
    [
        (READ_AS[0], r"read_as must be integers of shape \(2, 3\), got torch.int64 \(3,\)"),
        (READ_AS.float(), r"read_as must be integers of shape \(2, 3\), got torch.float32 \(2, 3"),
        (READ_AS + 1, "read_as must number the 3 responses of the labels from 0, got 3"),
        (None, r"must have P \* N = 6 rows .* or read_as for responses that are read once; got"),
    ],
)
def test_places_are_checked(read_as: torch.Tensor | None, message: str) -> None:
    hidden, weight, _, labels, teacher = each()
    with pytest.raises(ValueError, match=message):
        LinearPADLoss()(hidden[:3], weight, labels[:3], teacher, read_as=read_as)


@pytest.mark.parametrize("share", [True, False])
def test_scoring_reads_equal_responses_once(share: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    read: list[int] = []
    original = scoring.packed_rewards

    def counted(model, packed: PackedRows, *args):
        read.append(len(packed.labels))
        return original(model, packed, *args)

    monkeypatch.setattr(scoring, "packed_rewards", counted)
    prompts = [[1, 2, 3], [1, 2, 3]]
    responses = [[[4, 5], [6], [4, 5], [], [4, 5]], [[6], torch.tensor([6])]]
    seen: list[int] = []
    options = {"share_prefix": share, "max_tokens_per_batch": 6}
    found = scoring.score_responses(model, prompts, responses, progress=seen.append, **options)
    assert sum(read) == 2 + 1 + 1
    assert sum(seen) == 7  # progress counts every response
    alone = [
        [scoring.score_responses(model, [x], [[y]])[0][0] for y in ys]
        for x, ys in zip(prompts, responses, strict=True)
    ]
    assert found == [pytest.approx(values, rel=1e-12) for values in alone]


def test_first_places_of_equal_responses() -> None:
    assert first_equal([]) == []
    assert first_equal([[1], [1, 2], (1,), [2, 1], torch.tensor([1, 2])]) == [0, 1, 0, 3, 1]
