"""The kernels behind hidden states times the output head, against float64 and never worse than eager float32.

The library's product runs as it is; what is tested is what stands around it. Runs on a GPU where there is one.
"""

import os

import pytest
import torch
from pad_fast.kernels.linear_logprob import launch, tuning

from pad_fast import functional, reference
from pad_fast.linear_logprob import memory_budget as budgets
from pad_fast.linear_logprob import op as linear_op
from pad_fast.linear_logprob import torch_impl as linear_torch
from pad_fast.logprob.softmax import TokenOptions

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
PLAIN: dict = {}
CAPPED = {"temperature": 0.7, "softcap": 30.0, "logit_scale": 1.3}
OPTIONS = pytest.mark.parametrize("options", [PLAIN, CAPPED], ids=["plain", "capped"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
ROUNDING = {
    torch.float32: 1e-5,
    torch.bfloat16: 1.6e-2,
    torch.float16: 2e-3,
}  # the interpreter cuts bits off
SOME = 15000  # bytes: a chunk of 4 rows of 300 logits and some rows of scores
BUDGETS = pytest.mark.parametrize("budget", ["auto", SOME, 0])

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning"
    ),
    pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:.*deterministic:UserWarning"),
]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Chunks of 4 rows, tiles of 64 columns of logits and of 16 x 16 x 16 of the product: every loop turns several times."""
    from pad_fast.kernels.logprob import launch as logprob
    from pad_fast.kernels.logprob import tuning as logprob_tuning

    monkeypatch.setattr(budgets, "chunk_rows", lambda vocabulary, device: 4)
    for module in (linear_torch, linear_op):
        monkeypatch.setattr(module, "chunk_rows", budgets.chunk_rows)
    from pad_fast.linear_logprob import triton_impl as linear_triton

    monkeypatch.setattr(linear_triton, "chunk_rows", budgets.chunk_rows)
    monkeypatch.setattr(launch, "rows_of", lambda device: tuning.RowTiling(64, 4))
    monkeypatch.setattr(launch, "scoring_of", lambda device: tuning.ScoringTiling(16, 32, 64, 4, 2))
    monkeypatch.setattr(
        logprob,
        "tiling_of",
        lambda device: logprob_tuning.Tiling(tile_bytes=1024, num_warps=4, chunk=2),
    )


def draw(rows=11, width=24, vocabulary=300, dtype=torch.float32, scale=1.5, seed=0):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, width, generator=g).to(dtype).to(DEVICE)
    weight = (torch.randn(vocabulary, width, generator=g) * scale).to(dtype).to(DEVICE)
    bias = torch.randn(vocabulary, generator=g).to(dtype).to(DEVICE)
    labels = torch.randint(vocabulary, (rows,), generator=g).to(DEVICE)
    labels[4::5] = -100
    return hidden, weight, bias, labels, torch.randn(rows, generator=g).to(DEVICE)


def run(function, leaves, labels, grad, **options):
    hidden, weight, bias = (leaf.detach().clone().requires_grad_() for leaf in leaves)
    logps = function(hidden, weight, labels, bias=bias, **options)
    return logps.detach(), torch.autograd.grad(logps, (hidden, weight, bias), grad.to(logps.dtype))


def ours(hidden, weight, labels, **options):
    return functional.linear_token_logprobs(hidden, weight, labels, impl="triton", **options)


def close(got, want, tolerance):
    size = want.abs().max().item() + 1e-30
    torch.testing.assert_close(
        got.double() / size, want.double() / size, rtol=tolerance, atol=tolerance
    )


def check(hidden, weight, bias, labels, grad, **options):
    token_options = {key: value for key, value in options.items() if key != "memory_budget"}
    logps, got = run(ours, (hidden, weight, bias), labels, grad, **options)
    exact, want = run(
        reference.linear_token_logprobs,
        [x.double() for x in (hidden, weight, bias)],
        labels,
        grad,
        **token_options,
    )
    eager, _ = run(
        reference.linear_token_logprobs,
        [x.float() for x in (hidden, weight, bias)],
        labels,
        grad,
        **token_options,
    )
    assert logps.dtype == torch.float32
    assert (
        (logps - exact).abs() <= 2 * (eager - exact).abs().amax() + 2e-6 * exact.abs().clamp(min=1)
    ).all()
    for g, w in zip(got, want, strict=True):
        assert g.dtype == hidden.dtype
        close(g, w, ROUNDING[hidden.dtype])


@DTYPES
@BUDGETS
@OPTIONS
def test_values_and_gradients(dtype, budget, options):
    check(*draw(dtype=dtype), memory_budget=budget, **options)


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
    assert dweight.isnan().any()  # a broken row that matters shows


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
    """p -> 1: the scores 1 - p are as exact as float32 has them, in the kernel that keeps them and in the one that does not."""
    logits = torch.zeros(1, 4, 200, device=DEVICE)
    logits[0, :, 3] = torch.tensor([12.0, 15.0, 18.0, 20.0], device=DEVICE)
    labels, grad = torch.full((4,), 3, device=DEVICE), torch.ones(4, device=DEVICE)
    exact_logits = logits[0].double().requires_grad_()
    reference.token_logprobs(exact_logits, labels).sum().backward()
    numbers, kept, again = (
        tuple(torch.empty(4, device=DEVICE) for _ in range(3)),
        torch.empty(2, 4, 200, device=DEVICE)[0],
        logits[0] * 1,
    )
    launch.rows(logits[0], None, labels, kept, numbers, TokenOptions())
    launch.tile(logits[0], labels, *numbers[1:], grad, 0, again, TokenOptions())
    for scores in (kept, again):
        torch.testing.assert_close(scores.double(), exact_logits.grad, rtol=1e-5, atol=2.4e-7)


def test_a_row_has_the_same_bits_in_any_company():
    hidden, weight, bias, labels, _ = draw(rows=12)
    labels = labels.clamp(min=0)
    weight.requires_grad_()
    logps = ours(hidden, weight, labels, bias=bias)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    assert torch.equal(ours(hidden[order], weight, labels[order], bias=bias), logps[order])
    assert torch.equal(ours(hidden[5:6], weight, labels[5:6], bias=bias), logps[5:6])


@pytest.mark.parametrize("keep", [False, True])
def test_traffic_of_a_row(traffic, keep):
    """One read of the logits, with scores one more and one write of those."""
    logits, labels = torch.randn(3, 20000, device=DEVICE), torch.tensor([1, 2, 3], device=DEVICE)
    scores = torch.empty(3, 20032, dtype=torch.bfloat16, device=DEVICE)[:, :20000] if keep else None
    numbers = tuple(torch.empty(3, device=DEVICE) for _ in range(3))
    tiling = tuning.RowTiling(4096, 4)
    launch.rows(logits, None, labels, scores, numbers, TokenOptions(), tiling=tiling)
    size = 3 * 20000
    assert (1 + keep) * 4 * size <= traffic.loaded <= 1.01 * (1 + keep) * 4 * size
    assert keep * 2 * size <= traffic.stored <= 1.01 * keep * 2 * size + 100


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


# Scoring without logits.


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, *([] if INTERPRETED else [torch.bfloat16])], ids=str
)  # it multiplies bits
@OPTIONS
@pytest.mark.parametrize(
    ("vocabulary", "width"), [(300, 24), (1, 16), (31, 40), (256, 64), (257, 33)]
)
@pytest.mark.parametrize("described", [False, True])
def test_fused_scores(monkeypatch, dtype, options, vocabulary, width, described):
    tiling = tuning.ScoringTiling(16, 32, 64, 4, 2, described=described)
    monkeypatch.setattr(launch, "scoring_of", lambda device: tiling)
    hidden, weight, bias, labels, _ = draw(rows=18, width=width, vocabulary=vocabulary, dtype=dtype)
    with torch.no_grad():
        logps = ours(hidden, weight, labels, bias=bias, memory_budget=0, **options)
        eager = reference.linear_token_logprobs(
            hidden.float(), weight.float(), labels, bias=bias.float(), **options
        )
        exact = reference.linear_token_logprobs(
            hidden.double(), weight.double(), labels, bias=bias.double(), **options
        )
    assert (
        (logps - exact).abs() <= 2 * (eager - exact).abs().amax() + 3e-6 * exact.abs().clamp(min=1)
    ).all()


@pytest.mark.parametrize("level", [-500.0, 500.0])
def test_fused_scores_far_from_zero(level):
    hidden, weight, bias, labels, _ = draw()
    bias += level
    with torch.no_grad():
        logps = ours(hidden, weight, labels, bias=bias, memory_budget=0)
        exact = reference.linear_token_logprobs(
            hidden.double(), weight.double(), labels, bias=bias.double()
        )
    torch.testing.assert_close(logps.double(), exact, rtol=2e-6, atol=1e-4)


def test_fused_scores_have_the_same_bits_in_any_company():
    hidden, weight, bias, labels, _ = draw(rows=20)
    labels = labels.clamp(min=0)
    with torch.no_grad():
        logps = ours(hidden, weight, labels, bias=bias, memory_budget=0)
        assert torch.equal(
            ours(hidden[7:9], weight, labels[7:9], bias=bias, memory_budget=0), logps[7:9]
        )


def test_fused_scoring_writes_no_logits(traffic):
    """Per block of rows the whole weight is read, and nothing but three numbers a row and part is written."""
    hidden, weight, bias, labels, _ = draw(rows=20)
    launch.score(hidden, weight, bias, labels, TokenOptions())
    assert traffic.stored == 4 * 20 * 3 * (tuning.SPLITS + 1)


def test_scoring_takes_the_fused_kernel_where_memory_is_short(monkeypatch):
    hidden, weight, bias, labels, _ = draw()
    monkeypatch.setattr(launch, "rows", None)  # the hybrid's kernel
    with torch.no_grad():
        ours(hidden, weight, labels, bias=bias, memory_budget=4 * 4 * 300 - 1)
        with pytest.raises(TypeError):
            ours(hidden, weight, labels, bias=bias, memory_budget=4 * 4 * 300)
        with pytest.raises(TypeError):
            ours(hidden, weight, labels, bias=bias)


def test_opcheck():
    hidden, weight, bias, labels, grad = draw(rows=6, width=4, vocabulary=30)
    options = (0.7, 30.0, 1.3, -100, "triton")
    rows, count = linear_op.live_rows(labels, -100)
    leaves = [x.requires_grad_() for x in (hidden, weight, bias)]
    torch.library.opcheck(
        linear_op.linear_token_logprobs, (*leaves, labels, rows, count, 4, False, False, *options)
    )
    detached = [x.detach() for x in leaves]
    torch.library.opcheck(
        linear_op.linear_token_logprobs, (*detached, labels, rows, count, 0, False, True, *options)
    )
    _, *kept, _ = linear_op.linear_token_logprobs(
        *detached, labels, rows, count, 4, False, False, *options
    )
    arguments = (grad, *detached, labels, rows, count, *kept, True, True, True, *options)
    torch.library.opcheck(linear_op.linear_token_logprobs_backward, arguments)


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
