"""What a loss by whole prompts holds at a time, compared with its budget, and how it multiplies."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.memory import allocated_peak
from pad_fast import linear_loss, linear_preference_loss
from pad_fast.footprint import meter
from pad_fast.linear_logprob import memory_budget
from pad_fast.linear_logprob.head import Head
from pad_fast.linear_logprob.inputs import LinearInputs
from pad_fast.linear_logprob.prompt_chunks import ChunkedHead, PromptRows
from pad_fast.logprob import torch_impl as logits_torch
from pad_fast.logprob.softmax import accumulator
from pad_fast.loss_inputs import LossSettings, Preferences, PromptColumns

CPU, MIB, GIB = torch.device("cpu"), 1 << 20, 1 << 30
LLAMA, GEMMA, WIDE = (4096, 128256), (2304, 256000), (8192, 128256)  # D, V
BF16, FP32 = torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("dtype", "size", "taken"),
    [
        (FP32, 8, False),
        (FP32, 11, True),
        (FP32, 18, True),
        (BF16, 14, False),
        (BF16, 18, True),
        (torch.float64, 32, True),
    ],
    ids=str,
)
def test_the_budget_of_chunks_holds_on_a_cpu(
    dtype: torch.dtype, size: int, taken: bool, chunks: list
) -> None:
    """Forward and backward, measured; the sum in float32 of a 16-bit head is in the budget too.

    The two steps are taken where it would not hold, and may take their own least.
    """
    held = most_held((16, 64, 256, 4096), dtype, size << 20)
    assert bool(chunks) == taken
    sizes = (2048, 256, 4096, dtype, CPU)
    least = 0 if taken else memory_budget.workspace(*sizes, recomputed=True)
    assert held <= max(size << 20, least)
    assert not taken or held >= 0.6 * (size << 20)


def test_numbers_of_all_rows_are_in_the_budget_of_chunks(chunks: list) -> None:
    """Places, responses and labels of rows that are no part of the chunk are held beside it."""
    held = most_held((256, 64, 4, 256), FP32, 6 * MIB)
    assert 4 <= len(chunks) <= 32
    assert 0.5 * 6 * MIB <= held <= 6 * MIB


def most_held(sizes: tuple[int, int, int, int], dtype: torch.dtype, budget: int) -> int:
    """The most bytes of a loss of P prompts with two responses each, without its gradients."""
    prompts, tokens, width, vocabulary = sizes
    generator = torch.Generator().manual_seed(0)
    hidden, weight, teacher = (
        torch.randn(shape, generator=generator).to(dtype)
        for shape in ((2 * prompts, tokens, width), (vocabulary, width), (prompts, 2))
    )
    leaves = (hidden.requires_grad_(), weight.requires_grad_())
    labels = torch.randint(vocabulary, (2 * prompts, tokens), generator=generator)
    options = {"divergence": "kl", "softcap": 20.0, "memory_budget": budget}

    def step() -> tuple[torch.Tensor, ...]:
        loss, _ = linear_preference_loss(*leaves, labels, teacher, **options)
        return loss.detach(), *torch.autograd.grad(loss, leaves)

    peak, outputs = allocated_peak(step, CPU)
    return peak - sum(output.nbytes for output in outputs)


def test_a_backward_that_keeps_its_graph_can_run_again(chunks: list) -> None:
    """The gradients are multiplied in place where they are needed once."""
    hidden = torch.randn(8, 64, 16, generator=torch.Generator().manual_seed(1), requires_grad=True)
    weight = torch.randn(4096, 16, generator=torch.Generator().manual_seed(2), requires_grad=True)
    labels, teacher = torch.ones(8, 64, dtype=torch.int64), torch.arange(8.0).view(4, 2)

    def peak_of(*keeps: bool) -> tuple[int, tuple[torch.Tensor, ...]]:
        loss, _ = linear_preference_loss(hidden, weight, labels, teacher, memory_budget=10 * MIB)

        def step() -> tuple[torch.Tensor, ...]:
            for keep in keeps:
                scale = torch.tensor(0.5 if keep else 3.0)
                found = torch.autograd.grad(loss, (hidden, weight), scale, retain_graph=keep)
            return found

        return allocated_peak(step, CPU)

    once, wanted = peak_of(False)
    assert len(chunks) > 1
    assert once <= 4096  # nothing of the size of a gradient: hidden states alone take 32 KiB
    twice, found = peak_of(True, False)
    assert twice >= wanted[1].nbytes
    for got, want in zip(found, wanted, strict=True):
        assert torch.equal(got, want)


def test_a_batch_of_outer_gradients_is_that_of_each(chunks: list) -> None:
    hidden = torch.randn(8, 64, 16, generator=torch.Generator().manual_seed(1), requires_grad=True)
    weight = torch.randn(4096, 16, generator=torch.Generator().manual_seed(2), requires_grad=True)
    labels, teacher = torch.ones(8, 64, dtype=torch.int64), torch.arange(8.0).view(4, 2)

    def gradients(scale: torch.Tensor, **batched: bool) -> tuple[torch.Tensor, ...]:
        loss, _ = linear_preference_loss(hidden, weight, labels, teacher, memory_budget=10 * MIB)
        return torch.autograd.grad(loss, (hidden, weight), scale, **batched)

    found = gradients(torch.tensor([1.0, 3.0]), is_grads_batched=True)
    assert len(chunks) > 1
    for got, want in zip(found, gradients(torch.tensor(3.0)), strict=True):
        assert torch.equal(got[1], want)


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each chunk that was solved."""
    seen: list[int] = []
    solve = linear_loss._solve_chunk

    def recorded(problem, chunk, head):
        seen.append(len(chunk.rows))
        return solve(problem, chunk, head)

    monkeypatch.setattr(linear_loss, "_solve_chunk", recorded)
    return seen


def fake_problem(
    sizes: tuple[int, int], dtype: torch.dtype, tokens: int, budget: int, prompts: int = 0
) -> tuple[linear_loss.Problem, PromptRows]:
    """A loss of fake tensors, all rows live, 4 responses to each of some prompts.

    They are at least so many that not all rows can keep their scores.
    """
    width, vocabulary = sizes
    shape = (width, vocabulary, dtype, CPU)
    while memory_budget.saved_rows(budget, prompts * 4 * tokens, *shape) == prompts * 4 * tokens:
        prompts += 1
    count = prompts * 4 * tokens
    hidden = torch.empty(count, width, dtype=dtype, requires_grad=True)
    weight = torch.empty(vocabulary, width, dtype=dtype, requires_grad=True)
    labels = torch.empty(prompts * 4, tokens, dtype=torch.int64)
    settings = LossSettings.checked(loss="vpd")
    columns = PromptColumns(torch.empty(prompts, 4))
    preferences = Preferences.checked(settings, labels, columns, None)
    inputs = LinearInputs(
        hidden, Head(weight, None, settings.tokens), labels.view(-1), None, budget, "triton"
    )
    places, responses = torch.empty(2, count, dtype=torch.int64)
    rows = PromptRows(places, responses, [4 * tokens] * prompts, 4)
    return linear_loss.Problem(inputs, preferences), rows


@pytest.mark.parametrize(
    ("sizes", "dtype", "wide_products", "tokens", "gibibytes", "taken"),
    [
        (GEMMA, BF16, True, 512, 4.94, True),  # "auto" of an H100
        (GEMMA, BF16, True, 512, 2.44, False),  # the sum in float32 takes 2.2 of it
        (GEMMA, BF16, True, 512, 3.5, False),  # no room for 2,048 rows beside that
        (GEMMA, BF16, True, 256, 3.5, True),
        ((2304, 32000), BF16, False, 512, 1.5, True),
        (LLAMA, BF16, True, 512, 2, False),
        (LLAMA, BF16, True, 512, 3.5, True),
        (LLAMA, FP32, True, 512, 2, True),
        (LLAMA, torch.float64, True, 256, 2, True),
        (LLAMA, torch.float16, True, 512, 5, False),
        (WIDE, BF16, True, 512, 2, False),
        (WIDE, BF16, True, 512, 5, False),
        (WIDE, BF16, True, 512, 6, True),
        ((16384, 128257), BF16, True, 256, 10, True),
        ((16384, 32000), BF16, False, 256, 4, True),
    ],
    ids=str,
)
def test_the_budget_of_chunks_holds_on_a_gpu(
    sizes: tuple[int, int],
    dtype: torch.dtype,
    tokens: int,
    gibibytes: float,
    taken: bool,
    as_on_a_gpu: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Counted on fake tensors; where it could not hold, the two steps are taken."""
    monkeypatch.setattr(linear_loss, "can_read_values", lambda tensor: True)
    monkeypatch.setattr(memory_budget, "pass_rows", lambda *_: 0)
    before_casts, cast = [], ChunkedHead.gradients

    def watched(self: ChunkedHead) -> list[torch.Tensor]:
        before_casts.append(counted.peak)
        return cast(self)

    monkeypatch.setattr(ChunkedHead, "gradients", watched)
    budget = int(gibibytes * GIB)
    with FakeTensorMode(), meter.Meter() as counted:
        problem, rows = fake_problem(sizes, dtype, tokens, budget)
        fits = linear_loss.may_take_chunks(problem) and linear_loss.fits_in_chunks(problem, rows)
        assert fits == taken
        if not taken:
            return
        leaves = (problem.inputs.hidden, problem.inputs.head.weight)
        counted.restart()
        loss, _ = linear_loss.by_chunks(problem, rows)
        loss.backward()
    gradients = sum(leaf.grad.nbytes for leaf in leaves)
    assert counted.peak - counted.start - gradients <= budget
    # Until the sum in float32 of a 16-bit head is cast, it is no gradient, and counts as a whole.
    sums = 0 if dtype == accumulator(dtype) else leaves[1].nbytes
    chunks = before_casts[0] - counted.start - gradients + sums
    assert 0.6 * budget <= chunks <= budget  # as many prompts as there is room for


@pytest.mark.parametrize(
    ("sizes", "dtype", "prompts", "gibibytes", "taken"),
    [
        (GEMMA, BF16, 8, 4.94, True),  # 7,680 rows done again, or 4 passes
        (GEMMA, BF16, 5, 4.94, False),  # 1,536 rows, or 3 passes: 2,022 rows' time
        (WIDE, BF16, 11, 6, False),  # 2,048 rows, or 6 passes
        (WIDE, BF16, 40, 6, True),  # 61,440 rows, or 20 passes
        (LLAMA, FP32, 8, 2, True),  # a pass takes as long as 64 rows
    ],
    ids=str,
)
def test_chunks_are_taken_where_they_take_less_time(
    sizes: tuple[int, int],
    dtype: torch.dtype,
    prompts: int,
    gibibytes: float,
    taken: bool,
    as_on_a_gpu: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each chunk adds to the whole gradient of the weight; steps do some rows again."""
    monkeypatch.setattr(linear_loss, "can_read_values", lambda tensor: True)
    with FakeTensorMode():
        problem, rows = fake_problem(sizes, dtype, 512, int(gibibytes * GIB), prompts)
        assert linear_loss.may_take_chunks(problem)
        assert linear_loss.fits_in_chunks(problem, rows) == taken


class Operations(TorchDispatchMode):
    """Counts operations by name and by the shape of their result."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[tuple[str, tuple[int, ...]]] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.seen[func.overloadpacket.__name__, tuple(made.shape)] += 1
        return made


def test_a_chunk_is_one_product_for_hidden_states_and_one_a_slice_for_the_head(
    as_on_a_gpu: None,
) -> None:
    """Of bfloat16 rows in number more than a tile; sums are written first and never zeroed."""
    width, vocabulary, count = 256, 20000, 5000
    with FakeTensorMode():
        hidden = torch.empty(2 * count, width, dtype=BF16)
        head = Head(torch.empty(vocabulary, width, dtype=BF16), None, LossSettings.checked().tokens)
        labels = torch.empty(2 * count, dtype=torch.int64)
        inputs = LinearInputs(hidden, head, labels, None, 0, "triton")
        with Operations() as made:
            chunked = ChunkedHead(inputs, (True, True, False))
        assert ("new_zeros", (vocabulary, width)) not in made.seen
        places = torch.empty(count, dtype=torch.int64)
        seen = []
        for _ in range(2):
            rows = chunked.forward(places)
            with Operations() as operations:
                chunked.backward(rows, torch.empty(count))
            seen.append(operations.seen)
    slices = [tile.stop - tile.start for tile in logits_torch.tiles(vocabulary, head.tile_columns)]
    for number, operations in enumerate(seen):
        products = {key: n for key, n in operations.items() if key[0] in ("mm", "addmm")}
        wanted = Counter({("mm", (count, width)): 1})
        if number == 0:  # the fixture's addition in place of the other one leaves no trace
            wanted.update(("mm", (columns, width)) for columns in slices)
        assert products == wanted
        of_slices = {name for name, shape in operations if shape in [(n, width) for n in slices]}
        assert of_slices <= {"mm", "slice"}
