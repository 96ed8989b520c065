"""Values and gradients of hidden states times the head, against float64 and eager float32."""

import pytest
import torch
from pad_fast.kernels.linear_logprob import launch, tuning

from pad_fast import reference
from pad_fast.linear_logprob import memory_budget, torch_impl
from pad_fast.linear_logprob import op as linear_op
from pad_fast.linear_logprob.head import Head
from pad_fast.logprob.softmax import RowNumbers, TokenOptions
from tests.kernels.linear_logprob.cases import (
    BUDGETS,
    CAPPED,
    DEVICE,
    DTYPES,
    OPTIONS,
    ROUNDING,
    SOME,
    WIDE,
    check,
    close,
    draw,
    ours,
    run,
)

pytestmark = pytest.mark.usefixtures("small_tiles")


@DTYPES
@BUDGETS
@OPTIONS
def test_values_and_gradients(dtype, budget, options):
    check(*draw(dtype=dtype), memory_budget=budget, **options)


@DTYPES
def test_some_rows_keep_their_scores_and_others_do_not(dtype):
    """The tests with a budget of ``SOME`` are about both in one backward."""
    hidden, weight, _, labels, _ = draw(dtype=dtype)
    live = int((labels != -100).sum())
    kept = memory_budget.saved_rows(SOME, live, *weight.T.shape, dtype, hidden.device)
    assert kept == (4 if dtype == torch.float32 else 8) < live == 9


@BUDGETS
def test_a_softcap_whose_rows_need_their_maximum(budget):
    check(*draw(), memory_budget=budget, **WIDE)


@pytest.mark.parametrize("vocabulary", [1, 63, 64, 65, 128, 129])
@OPTIONS
def test_every_boundary_of_a_tile(vocabulary, options):
    hidden, weight, bias, labels, grad = draw(rows=4, vocabulary=vocabulary)
    labels[0], labels[1] = 0, vocabulary - 1
    for budget in ("auto", 0):
        check(hidden, weight, bias, labels, grad, memory_budget=budget, **options)


@DTYPES
@OPTIONS
def test_a_frozen_head(dtype, options):
    hidden, weight, bias, labels, grad = draw(dtype=dtype)
    leaf, exact_leaf = hidden.clone().requires_grad_(), hidden.double().requires_grad_()
    logps = ours(leaf, weight, labels, bias=bias, **options)
    exact = reference.linear_token_logprobs(
        exact_leaf, weight.double(), labels, bias=bias.double(), **options
    )
    (got,), (want,) = (
        torch.autograd.grad(logps, leaf, grad),
        torch.autograd.grad(exact, exact_leaf, grad.double()),
    )
    close(got, want, ROUNDING[dtype])


@pytest.mark.parametrize("level", [-500.0, 500.0])
@BUDGETS
def test_all_logits_far_from_zero(level, budget):
    hidden, weight, bias, labels, grad = draw()
    check(hidden, weight, bias + level, labels, grad, memory_budget=budget)


@pytest.mark.parametrize("filling", [torch.nan, torch.inf])
@BUDGETS
def test_ignored_and_silenced_rows_do_not_leak(filling, budget):
    hidden, weight, bias, labels, grad = draw()
    grad[1] = grad[8] = 0
    _, want = run(
        reference.linear_token_logprobs, [x.double() for x in (hidden, weight, bias)], labels, grad
    )
    hidden[labels == -100] = grad[labels == -100] = filling
    hidden[1] = hidden[8] = filling
    logps, got = run(ours, (hidden, weight, bias), labels, grad, memory_budget=budget)
    assert (logps[labels == -100] == 0).all()
    for g, w in zip(got, want, strict=True):
        close(g, w, 1e-5)
    _, (_, dweight, _) = run(
        ours,
        (hidden, weight, bias),
        labels,
        torch.ones_like(grad).where(labels != -100, 0),
        memory_budget=budget,
    )
    assert dweight.isnan().any()  # a broken row shows where its gradient is not 0


@OPTIONS
def test_gradcheck_drives_the_kernels(options):
    hidden, weight, bias, labels, _ = draw(rows=5, width=3, vocabulary=70, dtype=torch.float64)
    leaves = [x.requires_grad_() for x in (hidden, weight, bias)]
    for budget in ("auto", 0):

        def function(h, w, b, budget=budget):
            return ours(h, w, labels, bias=b, memory_budget=budget, **options)

        assert torch.autograd.gradcheck(function, leaves, fast_mode=True)
    frozen = weight.detach()
    assert torch.autograd.gradcheck(
        lambda h: ours(h, frozen, labels, bias=bias.detach(), **options), leaves[0], fast_mode=True
    )


def test_a_confident_label_keeps_its_gradient():
    """As p approaches 1, the gradient 1 - p is as exact as float32 can have it.

    Both kernels are tested: the one that writes logp_grad with the values, and the one that
    computes it again.
    """
    logits = torch.zeros(1, 4, 200, device=DEVICE)
    logits[0, :, 3] = torch.tensor([12.0, 15.0, 18.0, 20.0], device=DEVICE)
    labels, grad = torch.full((4,), 3, device=DEVICE), torch.ones(4, device=DEVICE)
    exact_logits = logits[0].double().requires_grad_()
    reference.token_logprobs(exact_logits, labels).sum().backward()
    row_scale, *numbers = (torch.empty(4, device=DEVICE) for _ in range(4))
    kept, again = torch.empty(2, 4, 200, device=DEVICE)[0], logits[0] * 1
    launch.rows(logits[0], None, labels, (kept, row_scale), tuple(numbers), TokenOptions())
    assert (row_scale == 1).all()
    launch.tile(logits[0], labels, *numbers[1:], grad, 0, again, TokenOptions())
    for logp_grad in (kept, again):
        torch.testing.assert_close(logp_grad.double(), exact_logits.grad, rtol=1e-5, atol=2.4e-7)


def test_logits_that_are_computed_again_may_exceed_their_peak():
    """Products of other numbers of rows are rounded differently: no probability exceeds 1."""
    logits = torch.tensor([[3.0 + 1e-6, -60.0]], device=DEVICE)
    labels, one = torch.zeros(1, dtype=torch.int64, device=DEVICE), torch.ones(1, device=DEVICE)
    found = torch.empty_like(logits)
    launch.tile(logits, labels, 3.0 * one, one, one, 0, found, TokenOptions())
    assert found[0, 0] == 0
    capped, sums = TokenOptions(softcap=30.0), [torch.empty(1, device=DEVICE) for _ in range(3)]
    launch.rows(logits - 1e-5, None, labels, None, tuple(sums), capped)
    launch.tile(logits, labels, *sums[1:], one, 0, found, capped)
    assert found[0, 0] == 0
    numbers = RowNumbers(labels, 3.0 * one, one, one)
    head = Head(logits.T, None, TokenOptions())
    assert torch_impl.tile_logp_grad(logits, numbers, slice(0, 2), head, None)[0, 0] == 0


def test_a_row_has_the_same_bits_in_any_company():
    hidden, weight, bias, labels, _ = draw(rows=12)
    labels = labels.clamp(min=0)
    weight.requires_grad_()
    logps = ours(hidden, weight, labels, bias=bias)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    assert torch.equal(ours(hidden[order], weight, labels[order], bias=bias), logps[order])
    assert torch.equal(ours(hidden[5:6], weight, labels[5:6], bias=bias), logps[5:6])


def test_traffic_of_a_row_that_keeps_nothing(traffic):
    """The logits are read once."""
    logits, labels = torch.randn(3, 20000, device=DEVICE), torch.tensor([1, 2, 3], device=DEVICE)
    numbers = tuple(torch.empty(3, device=DEVICE) for _ in range(3))
    tiling = tuning.RowTiling(4096, 4)
    launch.rows(logits, None, labels, None, numbers, TokenOptions(), tiling=tiling)
    size = 3 * 20000
    assert 4 * size <= traffic.loaded <= 1.01 * 4 * size
    assert traffic.stored <= 100


@pytest.mark.parametrize("wrong", [-1, 300, 2**31, -(2**40)])
def test_label_that_is_no_column_is_nan(wrong):
    labels = torch.tensor([0, wrong], device=DEVICE)
    logits, weight = torch.randn(2, 300, device=DEVICE), torch.randn(300, 24, device=DEVICE)
    numbers = tuple(torch.empty(2, device=DEVICE) for _ in range(3))
    launch.rows(logits, None, labels, None, numbers, TokenOptions())
    assert numbers[0].isnan().tolist() == [False, True]
    hidden = torch.randn(2, 24, device=DEVICE)
    logp, _, _ = launch.score(hidden, weight, None, labels, TokenOptions())
    assert logp.isnan().tolist() == [False, True]


def test_opcheck():
    hidden, weight, bias, labels, grad = draw(rows=6, width=4, vocabulary=30)
    options = (0.7, 30.0, 1.3, -100, "triton")
    rows, count = linear_op.live_rows(labels, -100)
    leaves = [x.requires_grad_() for x in (hidden, weight, bias)]
    torch.library.opcheck(
        linear_op.linear_token_logprobs.library,
        (*leaves, labels, rows, count, 4, False, False, 4, *options),
    )
    detached = [x.detach() for x in leaves]
    torch.library.opcheck(
        linear_op.linear_token_logprobs.library,
        (*detached, labels, rows, count, 0, False, True, 4, *options),
    )
    _, *kept, _ = linear_op.linear_token_logprobs(
        *detached, labels, rows, count, 4, False, False, 4, *options
    )
    arguments = (grad, *detached, labels, rows, count, *kept, True, True, True, 4, *options)
    torch.library.opcheck(linear_op.linear_token_logprobs_backward.library, arguments)


def test_compiles_whole():
    hidden, weight, bias, labels, _ = draw()

    def loss(h, w):
        return ours(h * 2, w, labels, bias=bias, memory_budget=SOME, **CAPPED).sum()

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaves = [x.clone().requires_grad_() for x in (hidden, weight)]
        value = function(*leaves)
        value.backward()
        results.append((value.detach(), *(leaf.grad for leaf in leaves)))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-5)
