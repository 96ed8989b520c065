"""Log-probabilities of hidden states in PyTorch: values, gradients, work and memory.

They are compared with the float64 reference.
"""

import itertools

import pytest
import torch
from logprobs import (
    CAPPED,
    ROUNDING,
    Largest,
    close,
    draw,
    gradients,
    linear,
    linear_reference,
    watch,
)
from torch.utils._python_dispatch import TorchDispatchMode

from pad_fast.linear_logprob import backward as linear_backward
from pad_fast.linear_logprob import head as head_module
from pad_fast.linear_logprob import memory_budget as budgets
from pad_fast.linear_logprob import op as linear_op
from pad_fast.linear_logprob import torch_impl as linear_torch
from pad_fast.linear_logprob.scores import Scores
from pad_fast.linear_logprob.upstream import Upstream
from pad_fast.logprob import torch_impl as logits_torch
from pad_fast.logprob.softmax import TokenOptions

CPU = torch.device("cpu")


def room_for(kept: str, labels, dtype) -> budgets.MemoryBudget:
    """A budget in which "all", "some" (a chunk of 2) or "none" of the rows keep their scores."""
    if kept != "some":
        return "auto" if kept == "all" else 0
    sizes = (int((labels != -100).sum()), 12, 45, dtype, CPU)
    size = budgets.workspace(*sizes, recomputed=True) + 2 * budgets.padded(45) * dtype.itemsize
    assert budgets.saved_rows(size, *sizes) == 2
    return size


@pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)
@pytest.mark.parametrize("kept", ["all", "some", "none"])
@pytest.mark.parametrize("options", [{}, CAPPED], ids=["plain", "capped"])
def test_from_hidden_states(small_tiles, dtype, kept, options):
    hidden, weight, bias, labels, grad = draw(dtype, rows=(3, 4))
    logps, got = gradients(
        linear,
        [hidden, weight, bias],
        labels,
        grad,
        memory_budget=room_for(kept, labels, dtype),
        **options,
    )
    exact, want = gradients(
        linear_reference, [hidden.double(), weight.double(), bias.double()], labels, grad, **options
    )
    # The product is not rounded to the inputs' dtype.
    close(logps, exact, torch.promote_types(dtype, torch.float32))
    for g, w in zip(got, want, strict=True):
        assert g.dtype == dtype
        close(g, w, dtype)


@pytest.mark.parametrize("needed", list(itertools.product([False, True], repeat=3))[1:])
@pytest.mark.parametrize("kept", ["all", "some", "none"])
def test_only_the_gradients_that_are_needed(small_tiles, needed, kept):
    hidden, weight, bias, labels, grad = draw()
    leaves = [
        leaf.clone().requires_grad_(need)
        for leaf, need in zip((hidden, weight, bias), needed, strict=True)
    ]
    linear(*leaves, labels, memory_budget=room_for(kept, labels, torch.float32)).backward(grad)
    _, want = gradients(
        linear_reference, [hidden.double(), weight.double(), bias.double()], labels, grad
    )
    for leaf, w, need in zip(leaves, want, needed, strict=True):
        assert (leaf.grad is not None) == need
        if need:
            close(leaf.grad, w, torch.float32)


@pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)
@pytest.mark.parametrize("options", [{}, CAPPED], ids=["plain", "capped"])
def test_a_frozen_head_is_done_in_the_forward(small_tiles, dtype, options):
    hidden, weight, bias, labels, grad = draw(dtype)
    leaf = hidden.clone().requires_grad_()
    logps = linear(leaf, weight, bias, labels, **options)
    weight_before = weight.clone()
    weight.zero_()  # as a wrapper may that gathers it for the forward alone
    (dhidden,) = torch.autograd.grad(logps, leaf, grad.to(logps.dtype))
    _, (want,) = gradients(
        lambda h, y: linear_reference(h, weight_before.double(), bias.double(), y, **options),
        [hidden.double()],
        labels,
        grad,
    )
    assert dhidden.dtype == dtype
    close(dhidden, want, dtype)


class Products(TorchDispatchMode):
    """Multiplications of matrix products, in units of one over all logits."""

    def __init__(self, unit: int):
        super().__init__()
        self.unit, self.work = unit, 0.0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in (
            torch.ops.aten.matmul,
            torch.ops.aten.mm,
            torch.ops.aten.addmm,
            torch.ops.aten.addmm_,
        ):
            a, b = args[-2:]
            self.work += a.shape[0] * a.shape[1] * b.shape[1] / self.unit
        return function(*args, **(kwargs or {}))


LINEAR = ((linear_torch, "forward"), (linear_backward, "backward"))


@pytest.mark.parametrize(
    ("budget", "frozen", "products"),
    [("auto", False, 3), (0, False, 4), ("half", False, 3.5), ("auto", True, 2)],
)
@pytest.mark.parametrize("live", ["all", "found", "given"])
def test_number_of_products(monkeypatch, budget, frozen, products, live):
    """3 if all rows keep their scores, 4 if none does, 2 for a frozen head; live rows only."""
    hidden, weight, _, labels, grad = draw(rows=(1024,), width=8, vocabulary=200)
    labels = labels.clamp(min=0)
    if live != "all":
        labels[::2] = -100
    options = {"live_rows": torch.arange(1, 1024, 2)} if live == "given" else {}
    count = 1024 if live == "all" else 512
    if budget == "half":
        budget = (
            budgets.workspace(count, 8, 200, torch.float32, CPU, recomputed=True)
            + count // 2 * 256 * 4
        )
    leaves = [hidden.requires_grad_(), *([] if frozen else [weight.requires_grad_()])]
    counter = Products(count * 8 * 200)
    watch(monkeypatch, counter, *LINEAR)
    torch.autograd.grad(
        linear(hidden, weight, None, labels, memory_budget=budget, **options), leaves, grad
    )
    assert counter.work == pytest.approx(products)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("budget", ["auto", 0])
def test_the_forward_has_the_same_bits_in_any_company(dtype, budget):
    hidden, weight, bias, labels, _ = draw(dtype, rows=(300,), width=64, vocabulary=5000)
    weight.requires_grad_()
    labels = labels.clamp(min=0)
    logps = linear(hidden, weight, bias, labels, memory_budget=budget)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    assert torch.equal(
        linear(hidden[order], weight, bias, labels[order], memory_budget=budget), logps[order]
    )
    for few in (slice(0, 1), slice(17, 20), slice(100, 229)):
        assert torch.equal(
            linear(hidden[few], weight, bias, labels[few], memory_budget=budget), logps[few]
        )
    sparse = labels.where(torch.arange(300) % 3 == 0, -100)
    assert torch.equal(linear(hidden, weight, bias, sparse, memory_budget=budget)[::3], logps[::3])


@pytest.mark.parametrize("kept", ["all", "some", "none"])
def test_rows_without_an_upstream_gradient_pass_nothing_on(small_tiles, kept):
    """NaN in a row that a loss masks stays there."""
    hidden, weight, bias, labels, grad = draw(rows=(3, 4))
    grad[0, 1] = grad[2, 0] = 0.0
    _, want = gradients(
        linear_reference, [hidden.double(), weight.double(), bias.double()], labels, grad
    )
    hidden[0, 1] = torch.nan
    hidden[2, 0] = torch.inf
    leaves = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    got = torch.autograd.grad(
        linear(*leaves, labels, memory_budget=room_for(kept, labels, torch.float32)),
        leaves,
        grad,
        retain_graph=True,
    )
    for g, w in zip(got, want, strict=True):
        close(g, w, torch.float32)
    dweight = torch.autograd.grad(
        linear(*leaves, labels, memory_budget=room_for(kept, labels, torch.float32)),
        leaves[1],
        torch.ones_like(grad),
    )[0]
    assert dweight.isnan().any()  # and one that is not masked is not hidden


@pytest.mark.parametrize("kept", ["all", "some", "none"])
@pytest.mark.parametrize("size", [1e-9, 1e9])
@pytest.mark.parametrize("product_rows", [3, 8])
def test_float16_gradients_of_any_size(small_tiles, kept, size, product_rows):
    """Upstream gradients, large by loss scaling or small by averaging, keep within float16."""
    hidden, weight, bias, labels, grad = draw(torch.float16)
    leaves = [x.clone().requires_grad_() for x in (hidden, weight.float() / 64, bias)]
    leaves[1] = leaves[1].detach().half().requires_grad_()
    rows = logits_torch.live_rows(labels.view(-1), -100)
    with torch.no_grad():
        options = TokenOptions()
        hidden, weight, bias = (x.detach() for x in leaves)
        hidden, labels_ = hidden.view(8, -1), labels.view(-1)
        saved = {"all": 8, "some": 4, "none": 0}[kept]
        split = (saved, False, False, 8)
        _, peak, total, *scores, _ = linear_op.linear_token_logprobs(
            hidden, weight, bias, labels_, rows, None, *split, *options.numbers, "torch"
        )
        live = linear_backward.LiveRows(
            hidden,
            rows,
            labels_[rows],
            peak,
            total,
            Upstream.of(grad.view(-1)[rows] * size, total, torch.float16),
        )
        # A float32 target shows what would be rounded.
        into = linear_backward.Gradients(None, torch.zeros(45, 12), None)
        head = head_module.Head(weight, bias, options)
        how = linear_backward.HowToBackward(linear_torch.tile_logp_grad, False, product_rows)
        linear_backward.backward(live, head, Scores(*scores), into, how)
    _, want = gradients(linear_reference, [x.detach().double() for x in leaves], labels, grad)
    close(into.weight / size, want[1], torch.float16)


def test_given_live_rows_are_the_same():
    hidden, weight, bias, labels, grad = draw()
    live = (labels.view(-1) != -100).nonzero()[:, 0]
    expected = gradients(linear, [hidden, weight, bias], labels, grad)
    found = gradients(linear, [hidden, weight, bias], labels, grad, live_rows=live)
    assert torch.equal(found[0], expected[0])
    for got, want in zip(found[1], expected[1], strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("tiles", [(1, 7), (3, 16), (8, 45)])
def test_number_of_tiles_does_not_matter(monkeypatch, tiles):
    """The error of the weight's gradient does not grow with the number of tiles."""
    hidden, weight, bias, labels, grad = draw(torch.bfloat16, rows=(4, 64))
    exact, want = gradients(
        linear_reference, [hidden.double(), weight.double(), bias.double()], labels, grad
    )
    monkeypatch.setattr(budgets, "CPU_ROWS", tiles[0])
    monkeypatch.setattr(logits_torch, "TILE_COLUMNS", tiles[1])
    logps, got = gradients(linear, [hidden, weight, bias], labels, grad)
    close(logps, exact, torch.float32)
    for g, w in zip(got, want, strict=True):
        error = (g.double() - w).norm() / w.norm()
        assert error < 2.5e-3  # one rounding to bfloat16 costs 1.7e-3 in this norm


def test_linear_path_holds_tiles_only(monkeypatch):
    """No tensor has the size of the logits; the largest are a tile and the weight's gradient."""
    monkeypatch.setattr(budgets, "CPU_ROWS", 64)
    monkeypatch.setattr(logits_torch, "TILE_COLUMNS", 256)
    rows, width, vocabulary = 512, 16, 4096
    hidden, weight, _, labels, grad = draw(rows=(rows,), width=width, vocabulary=vocabulary)
    labels = labels.clamp(min=0)
    hidden.requires_grad_()
    weight.requires_grad_()
    largest = Largest(hidden, weight)
    watch(monkeypatch, largest, *LINEAR)
    linear(hidden, weight, None, labels, memory_budget=0).backward(grad)
    assert largest.bytes
    tile = 64 * 256 * 4
    assert largest.bytes <= max(tile, weight.nbytes, hidden.nbytes)
    assert largest.bytes < rows * vocabulary * 4 / 25


def test_autocast_casts_like_a_linear_layer(small_tiles):
    hidden, weight, bias, labels, grad = draw()
    leaves = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    with torch.autocast("cpu", torch.bfloat16):
        logps = linear(*leaves, labels)
    logps.backward(grad)
    assert logps.dtype == torch.float32
    lows = [x.bfloat16() for x in (hidden, weight, bias)]
    assert torch.equal(logps.detach(), linear(*lows, labels))
    assert [leaf.grad.dtype for leaf in leaves] == [torch.float32] * 3
    _, want = gradients(linear_reference, [x.double() for x in lows], labels, grad)
    for leaf, w in zip(leaves, want, strict=True):
        close(leaf.grad, w, torch.bfloat16)
