"""The linear loss by chunks of whole prompts, compared with the loss by steps."""

from __future__ import annotations

import pytest
import torch
from prompt_batch import LENGTHS, D, N, P, T, V, states

from pad_fast import argument_checks
from pad_fast.linear_logprob import inputs as linear_inputs
from pad_fast.linear_logprob import memory_budget
from pad_fast.linear_logprob.prompt_chunks import PromptRows
from pad_fast.linear_loss import linear_preference_loss
from pad_fast.logprob import torch_impl as logits_torch
from pad_fast.logprob.responses import Responses
from pad_fast.modules import LinearPADLoss


def leaves_of(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(tensor.detach().clone().requires_grad_() for tensor in tensors)


@pytest.fixture
def room_for_two(monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes with room for the larger prompt and not for both, in products of 2 rows."""
    monkeypatch.setattr(memory_budget, "CPU_ROWS", 2)
    monkeypatch.setattr(memory_budget, "PASS_ROWS", 0)  # so few rows are quickly done again
    monkeypatch.setattr(logits_torch, "TILE_COLUMNS", 5)
    return room_for(int(LENGTHS[:N].sum()), torch.float64)


def room_for(rows: int, dtype: torch.dtype, of: int = P * N * T) -> int:
    """The fewest bytes in which a chunk of so many rows has room."""
    return next(
        size
        for size in range(1 << 20)
        if memory_budget.rows_at_a_time(size, of, D, V, dtype, torch.device("cpu")) == rows
    )


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> list[slice]:
    """The prompts of each chunk that was solved."""
    seen: list[slice] = []
    original = PromptRows.chunks

    def recorded(self: PromptRows, most: int):
        for chunk in original(self, most):
            seen.append(chunk.prompts)
            yield chunk

    monkeypatch.setattr(PromptRows, "chunks", recorded)
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
def test_chunks_equal_steps(options: dict, masked: bool, room_for_two: int, chunks: list) -> None:
    hidden, weight, bias, labels, teacher = states()
    mask = torch.tensor([[True, True, False], [True, False, True]]) if masked else None
    labels[5] = -100  # an empty response, the second prompt ragged
    results = []
    for budget_bytes in (0, room_for_two):
        leaves = leaves_of(hidden, weight, bias)
        extra = {"bias": leaves[2], "mask": mask, "memory_budget": budget_bytes, **options}
        loss, seen = linear_preference_loss(*leaves[:2], labels, teacher, **extra)
        (loss * 0.37).backward()
        results.append((loss.detach(), seen, *(leaf.grad for leaf in leaves)))
    assert chunks == [slice(0, 1), slice(1, 2)]
    for stepped, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, stepped, rtol=1e-9, atol=1e-11)


def test_chunks_of_rows_in_any_order(room_for_two: int, chunks: list) -> None:
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
    assert len(chunks) == P
    for stepped, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, stepped, rtol=1e-9, atol=1e-11)


def test_chunks_in_bfloat16_under_autocast(
    room_for_two: int, chunks: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, weight, bias, labels, teacher = (
        x.float() if x.is_floating_point() else x for x in states()
    )
    results = []
    # So few rows have no budget that holds the sums in float32 and not all of their scores.
    for room in (0, int(LENGTHS[:N].sum())):
        monkeypatch.setattr(memory_budget, "rows_at_a_time", lambda *_, room=room: room)
        leaves = leaves_of(hidden, weight, bias)
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = linear_preference_loss(
                *leaves[:2], labels, teacher, bias=leaves[2], memory_budget=0
            )
        results.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
    assert len(chunks) == P
    for stepped, chunked in zip(*results, strict=True):
        torch.testing.assert_close(
            chunked, stepped, rtol=0.03, atol=0.01 * stepped.abs().max().item()
        )


def test_chunks_backward_twice(room_for_two: int, chunks: list) -> None:
    hidden, weight, _, labels, teacher = states()
    leaves = leaves_of(hidden, weight)
    loss = LinearPADLoss(memory_budget=room_for_two)(*leaves, labels, teacher)
    first = torch.autograd.grad(
        loss, leaves, torch.tensor(2.0, dtype=torch.float64), retain_graph=True
    )
    second = torch.autograd.grad(loss, leaves)
    assert chunks
    for twice, once in zip(first, second, strict=True):
        torch.testing.assert_close(twice, 2 * once, rtol=1e-12, atol=0)


def test_prompts_share_a_chunk_where_they_have_room(room_for_two: int, chunks: list) -> None:
    hidden, weight, _, labels, teacher = states()
    hidden, labels = hidden[:, :2], torch.ones_like(labels[:, :2])
    teacher = teacher.view(3, 2)  # prompts of 4 rows
    for rows, wanted in (
        (4, [slice(0, 1), slice(1, 2), slice(2, 3)]),
        (8, [slice(0, 2), slice(2, 3)]),
        (3, []),  # no room for a prompt, so rows are computed again
    ):
        size = room_for(rows, torch.float64, labels.numel())
        LinearPADLoss(memory_budget=size)(hidden, weight, labels, teacher)
        assert chunks == wanted, rows
        chunks.clear()


@pytest.mark.parametrize(
    "options",
    [
        {"reduction": "none"},
        {"method": "sampled", "num_samples": 8},
        {"memory_budget": 0},
        {"memory_budget": "auto"},
    ],
)
def test_when_steps_are_taken(options: dict, room_for_two: int, chunks: list) -> None:
    hidden, weight, _, labels, teacher = states()
    leaves = leaves_of(hidden, weight)
    LinearPADLoss(**{"memory_budget": room_for_two, **options})(
        *leaves, labels, teacher
    ).sum().backward()
    LinearPADLoss(memory_budget=room_for_two)(
        leaves[0], weight.detach(), labels, teacher
    ).backward()  # a frozen head takes 2 products as it is
    with torch.no_grad():
        LinearPADLoss(memory_budget=room_for_two)(*leaves, labels, teacher)
    assert not chunks


@pytest.mark.parametrize("by_chunks", [False, True])
def test_each_check_runs_once(
    by_chunks: bool, room_for_two: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arguments are checked, and the implementation is chosen, once a call."""
    calls: list[str] = []

    def count(module, name: str) -> None:
        original = getattr(module, name)

        def counted(*args, **kwargs):
            calls.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, counted)

    names = ("linear", "token_options", "responses", "live_rows", "budget", "label_values")
    for name in names:
        count(argument_checks, f"check_{name}")
    count(linear_inputs, "resolve_impl")
    hidden, weight, _, labels, teacher = states()
    budget = room_for_two if by_chunks else 0
    linear_preference_loss(hidden, weight, labels, teacher, memory_budget=budget)
    assert sorted(calls) == sorted([*(f"check_{name}" for name in names), "resolve_impl"])


def test_the_sizes_of_prompts_wait_for_the_device_once():
    """Live rows wait once too; ``bincount`` would wait for the least and the largest prompt."""
    labels = torch.randint(9, (6, 5))
    labels[:, 3:] = -100
    responses = Responses.checked(labels, None, None, -100, "mean")
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, acc_events=True) as profiler:
        found = PromptRows.of(responses, 2)
    assert found.sizes == [6, 6, 6]
    called = [event.name for event in profiler.events()]
    assert called.count("aten::nonzero") == 1
    assert not {"aten::bincount", "aten::item"} & set(called)
