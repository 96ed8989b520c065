"""What a memory budget allows, compared with what is measured."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.memory import allocated_peak
from pad_fast import linear_token_logprobs
from pad_fast.device import planning_for
from pad_fast.footprint import meter
from pad_fast.linear_logprob import memory_budget
from pad_fast.linear_logprob import op as linear_op

CPU, GPU = torch.device("cpu"), torch.device("cuda")
MIB = 1 << 20


def head(
    rows: int, width: int, vocabulary: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (
        torch.randn(size, width, generator=generator).to(dtype).requires_grad_()
        for size in (rows, vocabulary)
    )
    return hidden, weight, torch.randint(vocabulary, (rows,), generator=generator)


def peak_of(loss, leaves: tuple[torch.Tensor, ...]) -> int:
    """The most bytes held at a time, without arguments, the loss and its gradients."""

    def step() -> tuple[torch.Tensor, ...]:
        found = loss()
        return found.detach(), *torch.autograd.grad(found.sum(), leaves)

    peak, outputs = allocated_peak(step, CPU)
    return peak - sum(output.nbytes for output in outputs)


@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [0, 20 * MIB, 32 * MIB, 64 * MIB])
def test_a_budget_holds(size: int, dtype: torch.dtype, softcap: float | None) -> None:
    """Forward and backward stay within the budget, or within the workspace if that is more."""
    sizes = (1024, 64, 8192, dtype)
    hidden, weight, labels = head(*sizes)
    peak = peak_of(
        lambda: linear_token_logprobs(hidden, weight, labels, softcap=softcap, memory_budget=size),
        (hidden, weight),
    )
    kept = memory_budget.saved_rows(size, *sizes, CPU)
    assert peak <= max(size, memory_budget.workspace(*sizes, CPU, recomputed=True))
    assert (kept > 0) == (peak > 10 * MIB)
    # The budget is used: a chunk of 256 rows that would fit is kept, and the softcap's tiles take
    # 4 MiB more.
    assert peak >= min(size, 1024 * 8192 * dtype.itemsize) - 256 * 8192 * dtype.itemsize - 9 * MIB


@pytest.mark.parametrize("softcap", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kept", [0, 512, 1024])
def test_the_formula_is_what_is_measured(
    kept: int, dtype: torch.dtype, softcap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planner counts with the formula, which must be close."""
    sizes = (1024, 256, 8192, dtype)
    hidden, weight, labels = head(*sizes)
    monkeypatch.setattr(memory_budget, "saved_rows", lambda *_: kept)
    forward, (logps,) = allocated_peak(
        lambda: (linear_token_logprobs(hidden, weight, labels, softcap=30.0 if softcap else None),),
        CPU,
    )
    backward, gradients = allocated_peak(
        lambda: torch.autograd.grad(logps.sum(), (hidden, weight)), CPU
    )
    extra = (
        forward - kept * 8192 * dtype.itemsize,
        backward - sum(gradient.nbytes for gradient in gradients),
    )
    for is_backward, measured in enumerate(extra):
        options = {
            "kept": kept > 0,
            "recomputed": kept < 1024,
            "softcap": softcap,
            "backward": bool(is_backward),
        }
        assert measured == pytest.approx(
            memory_budget.cpu_workspace(*sizes, **options), rel=0.15
        ), options


@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
@pytest.mark.parametrize(("vocabulary", "width"), [(128256, 4096), (256000, 2304), (512, 8)])
def test_saved_rows_are_whole_chunks_within_the_budget(
    device: torch.device, vocabulary: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_budget, "has_wide_products", lambda device: True)
    rows, dtype = 16384, torch.bfloat16
    chunk = memory_budget.chunk_rows(vocabulary, device, dtype)
    row = memory_budget.padded(vocabulary) * 2
    found = []
    for size in (0, 1 << 28, 1 << 30, 1 << 32, 1 << 34, 1 << 40):
        kept = memory_budget.saved_rows(size, rows, width, vocabulary, dtype, device)
        assert kept == rows or kept % chunk == 0
        assert (
            kept == 0
            or kept * row
            + memory_budget.workspace(
                rows, width, vocabulary, dtype, device, recomputed=kept < rows
            )
            <= size
        )
        found.append(kept)
    assert found[0] == 0
    assert found[-1] == rows
    assert all(a <= b for a, b in itertools.pairwise(found))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    ("rows", "width", "vocabulary"),
    [
        (16384, 4096, 128256),  # Llama-3
        (16384, 2304, 256000),  # Gemma-2
        (16384, 8192, 128256),
        (65536, 8192, 128257),
        (65536, 2048, 32000),
        (300, 2304, 256000),
    ],
)
@pytest.mark.parametrize("gibibytes", [0, 2, 5, 9])
def test_a_budget_holds_on_a_gpu(
    gibibytes: int, rows: int, width: int, vocabulary: int, frozen: bool, as_on_a_gpu: None
) -> None:
    """Counted on fake tensors; a budget of 0 takes up to 1 GiB, accumulators included."""
    assert_that_a_budget_holds(gibibytes << 30, rows, width, vocabulary, torch.bfloat16, frozen)


@pytest.mark.parametrize(
    ("wide_products", "dtype", "rows", "width", "gibibytes", "frozen"),
    [
        (False, torch.bfloat16, 16384, 4096, 0, False),
        (False, torch.bfloat16, 4096, 4096, 0, True),
        (False, torch.float16, 4096, 4096, 0, False),
        (False, torch.bfloat16, 65536, 8192, 9, False),
        (False, torch.bfloat16, 4096, 16384, 0, False),
        (False, torch.bfloat16, 4096, 16384, 0, True),
        (True, torch.bfloat16, 4096, 16384, 0, False),
        (True, torch.float32, 4096, 4096, 0, False),
        (True, torch.float32, 4096, 16384, 0, True),
        (True, torch.float64, 4096, 4096, 0, False),
        (True, torch.float64, 4096, 4096, 0, True),
    ],
    ids=str,
)
def test_a_budget_holds_in_every_dtype_and_where_products_are_widened(
    dtype: torch.dtype, rows: int, width: int, gibibytes: int, frozen: bool, as_on_a_gpu: None
) -> None:
    assert_that_a_budget_holds(gibibytes << 30, rows, width, 128256, dtype, frozen)


def assert_that_a_budget_holds(
    size: int, rows: int, width: int, vocabulary: int, dtype: torch.dtype, frozen: bool
) -> None:
    sizes = (width, vocabulary, dtype, GPU)
    kept = 0 if frozen else memory_budget.saved_rows(size, rows, *sizes)
    together = memory_budget.product_rows(size, rows, None if frozen else kept, *sizes)
    options = (together, 1.0, 30.0, 1.0, -100, "triton")
    with FakeTensorMode(), meter.Meter() as counted:
        hidden, weight = (torch.empty(length, width, dtype=dtype) for length in (rows, vocabulary))
        labels, places = torch.empty(2, rows, dtype=torch.int64)
        counted.restart()
        head = (hidden, weight, None, labels, places, None)
        _, peak, total, *scores, unscaled = linear_op.linear_token_logprobs.body(
            *head, kept, frozen, False, *options
        )
        # What a frozen head keeps for the backward is the gradient of hidden states, unscaled.
        forward = counted.peak - counted.start - unscaled.untyped_storage().nbytes()
        counted.peak = counted.held
        grad = torch.empty(rows)
        if frozen:
            gradients = (linear_op.scale_live_rows.body(grad, places, None, total, unscaled),)
        else:
            needed = (True, True, False)
            gradients = linear_op.linear_token_logprobs_backward.body(
                grad, *head, peak, total, *scores, *needed, *options
            )
        results = (*gradients, unscaled)
        backward = (
            counted.peak
            - counted.start
            - sum(result.untyped_storage().nbytes() for result in results)
        )
    assert scores[0].shape[0] == kept
    assert max(forward, backward) <= max(size, 1 << 30)
    # What there is is used: a product takes all rows, or as many as two thirds hold.
    assert together >= rows or max(forward, backward) >= 0.66 * max(size, 1 << 30)


def test_a_planned_gpu_decides_what_auto_is() -> None:
    assert memory_budget.auto_bytes(CPU) == memory_budget.CPU_AUTO
    with planning_for(160 << 30):
        assert memory_budget.auto_bytes(CPU) == 10 << 30
    with planning_for(None):
        assert memory_budget.auto_bytes(CPU) == memory_budget.CPU_AUTO


def test_live_rows_of_fake_tensors_are_not_counted() -> None:
    """Values of fake tensors cannot be read, so that all rows are planned for."""
    with FakeTensorMode(), meter.Meter() as counted:
        hidden, weight = (torch.empty(n, 8, requires_grad=True) for n in (512, 1024))
        labels = torch.empty(512, dtype=torch.int64)
        counted.restart()
        loss = linear_token_logprobs(hidden, weight, labels, memory_budget=1 << 30).sum()
        assert counted.held - counted.start >= 512 * 1024 * 4  # all rows keep their scores
        loss.backward()
    assert weight.grad.shape == weight.shape
