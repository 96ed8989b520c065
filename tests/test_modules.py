"""The modules on hidden states and on logits, and the walk over whole prompts at a time."""

from __future__ import annotations

import oracles
import pytest
import torch

from pad_fast import functional
from pad_fast.linear_logprob import memory_budget
from pad_fast.linear_logprob.prompt_chunks import Groups
from pad_fast.linear_loss import linear_preference_loss
from pad_fast.logprob import torch_impl as logits_torch
from pad_fast.modules import LinearPADLoss, PADLoss

NAN = float("nan")
P, N, T, D, V = 2, 3, 6, 5, 11
LENGTHS = torch.tensor([4, 6, 2, 1, 5, 3])


def states() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """hidden (R, T, D), weight (V, D), bias (V,), labels (R, T) and the teacher's rewards (P, N), all float64."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias, teacher = (
        torch.randn(*s, generator=generator, dtype=torch.float64)
        for s in ((P * N, T, D), (V, D), (V,), (P, N))
    )
    labels = torch.randint(V, (P * N, T), generator=generator).where(
        torch.arange(T) < LENGTHS[:, None], -100
    )
    return hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), labels, teacher


def plain_loss(
    hidden, weight, bias, labels, teacher, temperature=1.0, mask=None, **options
) -> torch.Tensor:
    """The whole computation in plain PyTorch, JSD by enumeration."""
    logps = (
        ((hidden @ weight.T + bias) / temperature)
        .log_softmax(-1)
        .gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    )
    live = labels != -100
    means = (logps * live).sum(1) / live.sum(1).clamp(min=1)
    return oracles.preference_loss(means.view(P, N), teacher, "jsd", **options).mean()


def test_linear_loss_equals_plain_pytorch() -> None:
    hidden, weight, bias, labels, teacher = states()
    loss = LinearPADLoss(beta=3.0, temperature=1.7)(hidden, weight, labels, teacher, bias=bias)
    expected = plain_loss(hidden, weight, bias, labels, teacher, temperature=1.7, beta=3.0)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    leaves = (hidden, weight, bias)
    for got, wanted in zip(
        torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loss": "vpd", "beta": 2.0},
        {"normalize": "sum", "divergence": "kl"},
        {"softcap": 3.0, "logit_scale": 0.5},
    ],
)
def test_modules_and_function_agree(options: dict) -> None:
    hidden, weight, bias, labels, teacher = states()
    loss, seen = linear_preference_loss(hidden, weight, labels, teacher, bias=bias, **options)
    from_logits = PADLoss(**options)(hidden @ weight.T + bias, labels, teacher)
    torch.testing.assert_close(from_logits, loss, rtol=1e-10, atol=1e-12)
    assert torch.equal(LinearPADLoss(**options)(hidden, weight, labels, teacher, bias=bias), loss)
    assert seen.shape == (P, N)
    assert not seen.requires_grad
    token_options = {
        k: v for k, v in options.items() if k in ("normalize", "softcap", "logit_scale")
    }
    expected = functional.linear_response_rewards(
        hidden, weight, labels, bias=bias, **token_options
    )
    assert torch.equal(seen.flatten(), expected.detach())


@pytest.mark.parametrize("shift", [False, True])
def test_packed_equals_padded(shift: bool) -> None:
    hidden, weight, _, labels, teacher = states()
    if shift:
        labels[:, 0] = -100  # the first token of each has nothing before it
        labels[3, 1] = 4  # a response must keep a token
    module = LinearPADLoss(shift=shift)
    padded = module(hidden, weight, labels, teacher)
    shuffled = torch.tensor(
        [4, 0, 5, 2, 1, 3]
    )  # sequences in any order, and rows that belong to none
    ids = shuffled.repeat_interleave(T)
    rows, packed_labels = hidden[shuffled].flatten(0, 1), labels[shuffled].flatten()
    strangers = torch.randn(4, D, dtype=torch.float64)
    packed = module(
        torch.cat([rows, strangers]),
        weight,
        torch.cat([packed_labels, torch.full((4,), 3)]),
        teacher,
        response_ids=torch.cat([ids, ids.new_full((4,), -1)]),
    )
    torch.testing.assert_close(packed, padded, rtol=1e-10, atol=1e-12)


def test_shift_takes_hugging_face_labels() -> None:
    hidden, weight, bias, labels, teacher = states()
    logits = hidden @ weight.T + bias
    labels[3, 1] = 4
    aligned = PADLoss()(logits[:, :-1], labels[:, 1:], teacher)
    torch.testing.assert_close(
        PADLoss(shift=True)(logits, labels, teacher), aligned, rtol=1e-12, atol=0
    )


def test_empty_responses_are_masked() -> None:
    hidden, weight, _, labels, teacher = states()
    live = torch.ones(P, N, dtype=torch.bool)
    live[0, 1] = False
    masked = LinearPADLoss()(hidden, weight, labels, teacher, mask=live)
    labels[1] = -100
    teacher[0, 1] = NAN
    assert torch.equal(LinearPADLoss()(hidden, weight, labels, teacher), masked)
    by_hand = torch.arange(P * N).view(P, N) != N  # beside it, with the empty response live
    both = LinearPADLoss()(hidden, weight, labels, teacher, mask=by_hand)
    assert both != masked
    assert torch.equal(both, LinearPADLoss()(hidden, weight, labels, teacher, mask=by_hand & live))


def test_a_call_can_replace_options() -> None:
    hidden, weight, _, labels, teacher = states()
    module = LinearPADLoss(method="sampled", num_samples=8)
    one, two = (module(hidden, weight, labels, teacher, seed=seed) for seed in (1, 2))
    assert one != two
    assert torch.equal(one, module(hidden, weight, labels, teacher, seed=1))
    assert "num_samples=8" in repr(module)


def test_modules_refuse_what_does_not_fit() -> None:
    hidden, weight, _, labels, teacher = states()
    with pytest.raises(ValueError, match="loss must be one of ppd, vpd, got 'dpo'"):
        PADLoss("dpo")
    with pytest.raises(
        ValueError, match="loss='vpd' has no option 'divergence'; it has beta, group_size"
    ):
        PADLoss("vpd", divergence="kl")
    with pytest.raises(
        ValueError, match=r"labels must have P \* N = 4 rows for teacher_rewards \(2, 2\)"
    ):
        LinearPADLoss()(hidden, weight, labels, teacher[:, :2])
    with pytest.raises(ValueError, match=r"teacher_rewards must be \(P, N\), got \(6,\)"):
        LinearPADLoss()(hidden, weight, labels, teacher.flatten())
    with pytest.raises(
        ValueError, match=r"mask must be bool of shape \(2, 3\), got torch.bool \(3,\)"
    ):
        LinearPADLoss()(hidden, weight, labels, teacher, mask=torch.ones(3, dtype=torch.bool))


def test_module_compiles_whole() -> None:
    hidden, weight, bias, labels, teacher = states()
    module = LinearPADLoss(group_size=2)
    loss = torch.compile(module, fullgraph=True, backend="aot_eager")(
        hidden, weight, labels, teacher, bias=bias
    )
    torch.testing.assert_close(
        loss, module(hidden, weight, labels, teacher, bias=bias), rtol=1e-12, atol=1e-12
    )


# Whole prompts at a time.


def leaves_of(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(tensor.detach().clone().requires_grad_() for tensor in tensors)


@pytest.fixture
def room_for_two(monkeypatch: pytest.MonkeyPatch) -> int:
    """A budget that has room for the scores of the largest prompt and not of both, in products of 2 rows."""
    monkeypatch.setattr(memory_budget, "CPU_ROWS", 2)
    monkeypatch.setattr(logits_torch, "TILE_COLUMNS", 5)
    return room_for(int(LENGTHS[:N].sum()), torch.float64)


def room_for(rows: int, dtype: torch.dtype) -> int:
    """The least budget in which so many rows are walked over at a time."""
    return next(
        size
        for size in range(1 << 20)
        if memory_budget.walked_rows(size, D, V, dtype, torch.device("cpu")) == rows
    )


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[slice, slice]]:
    """The chunks that were walked over."""
    seen: list[tuple[slice, slice]] = []
    chunks = Groups.chunks

    def told(self: Groups, most: int):
        for chunk in chunks(self, most):
            seen.append(chunk)
            yield chunk

    monkeypatch.setattr(Groups, "chunks", told)
    return seen


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loss": "vpd", "beta": 2.0, "reduction": "sum"},
        {"normalize": "sum", "divergence": "kl", "temperature": 0.7},
        {"group_size": 2, "group_reduction": "sum", "softcap": 3.0, "logit_scale": 0.5},
        {"divergence": "reverse_kl", "method": "exact", "teacher_beta": 3.0},
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_walking_over_groups_equals_the_two_steps(
    options: dict, masked: bool, room_for_two: int, walks: list
) -> None:
    hidden, weight, bias, labels, teacher = states()
    mask = torch.tensor([[True, True, False], [True, False, True]]) if masked else None
    labels[5] = -100  # an empty response, the second prompt ragged
    results = []
    for budget_bytes in (0, room_for_two):
        leaves = leaves_of(hidden, weight, bias)
        loss, seen = linear_preference_loss(
            *leaves[:2], labels, teacher, bias=leaves[2], mask=mask, memory_budget=budget_bytes, **options
        )  # fmt: skip
        (loss * 0.37).backward()
        results.append((loss.detach(), seen, *(leaf.grad for leaf in leaves)))
    assert [prompts for prompts, _ in walks] == [slice(0, 1), slice(1, 2)]
    for stepped, walked in zip(*results, strict=True):
        torch.testing.assert_close(walked, stepped, rtol=1e-9, atol=1e-11)


def test_walking_over_rows_in_any_order(room_for_two: int, walks: list) -> None:
    hidden, weight, _, labels, teacher = states()
    order = torch.randperm(P * N * T, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(P * N).repeat_interleave(T)[order]
    ids[3] = -1
    own = labels.flatten()[order]
    module = LinearPADLoss(divergence="kl", memory_budget=room_for_two)
    results = []
    for options in ({"memory_budget": 0}, {}):
        leaves = leaves_of(hidden.flatten(0, 1)[order], weight)
        loss = module(*leaves, own, teacher, response_ids=ids, **options)
        results.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
    assert len(walks) == P
    for stepped, walked in zip(*results, strict=True):
        torch.testing.assert_close(walked, stepped, rtol=1e-9, atol=1e-11)


def test_walking_in_bfloat16_under_autocast(room_for_two: int, walks: list) -> None:
    hidden, weight, bias, labels, teacher = (
        x.float() if x.is_floating_point() else x for x in states()
    )
    results = []
    for budget_bytes in (0, room_for(int(LENGTHS[:N].sum()), torch.bfloat16)):
        leaves = leaves_of(hidden, weight, bias)
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = linear_preference_loss(
                *leaves[:2], labels, teacher, bias=leaves[2], memory_budget=budget_bytes
            )
        results.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
    assert len(walks) == P
    for stepped, walked in zip(*results, strict=True):
        torch.testing.assert_close(
            walked, stepped, rtol=0.03, atol=0.01 * stepped.abs().max().item()
        )


def test_walking_backward_twice(room_for_two: int, walks: list) -> None:
    hidden, weight, _, labels, teacher = states()
    leaves = leaves_of(hidden, weight)
    loss = LinearPADLoss(memory_budget=room_for_two)(*leaves, labels, teacher)
    first = torch.autograd.grad(
        loss, leaves, torch.tensor(2.0, dtype=torch.float64), retain_graph=True
    )
    second = torch.autograd.grad(loss, leaves)
    assert walks
    for twice, once in zip(first, second, strict=True):
        torch.testing.assert_close(twice, 2 * once, rtol=1e-12, atol=0)


def test_prompts_are_walked_over_together_where_they_have_room(
    room_for_two: int, walks: list
) -> None:
    hidden, weight, _, labels, teacher = states()
    labels[:] = -100
    labels[:, :2] = 1
    teacher = teacher.view(3, 2)  # prompts of 4 rows
    for rows, wanted in (
        (4, [slice(0, 1), slice(1, 2), slice(2, 3)]),
        (8, [slice(0, 2), slice(2, 3)]),
        (3, []),
    ):
        LinearPADLoss(memory_budget=room_for(rows, torch.float64))(hidden, weight, labels, teacher)
        assert [prompts for prompts, _ in walks] == wanted, (
            rows
        )  # 3: a prompt has no room, so rows are computed again
        walks.clear()


@pytest.mark.parametrize(
    "options",
    [
        {"reduction": "none"},
        {"method": "sampled", "num_samples": 8},
        {"memory_budget": 0},
        {"memory_budget": "auto"},
    ],
)
def test_what_is_not_walked(options: dict, room_for_two: int, walks: list) -> None:
    hidden, weight, _, labels, teacher = states()
    leaves = leaves_of(hidden, weight)
    LinearPADLoss(**{"memory_budget": room_for_two, **options})(
        *leaves, labels, teacher
    ).sum().backward()
    LinearPADLoss(memory_budget=room_for_two)(
        leaves[0], weight.detach(), labels, teacher
    ).backward()  # frozen: 2 products as it is
    with torch.no_grad():
        LinearPADLoss(memory_budget=room_for_two)(*leaves, labels, teacher)
    assert not walks
