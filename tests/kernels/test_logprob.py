"""The log-probability kernels against float64, and never worse than PyTorch's own float32. Runs on a GPU where there is one.

Complaints about public kernels that have no test here: M * V past 2^31 and grids past 65,535 rows need a GPU (test_gpu.py; the
64-bit offsets of rows and columns are also tested below), host synchronisation too; N * D and V * D past 2^31, drift of the
weight's gradient, sharded weights and empty weights are the output head's and tested with it; compilations are counted in
test_compile.py.
"""

import os

import pytest
import torch
from pad_fast.kernels.logprob import launch

from pad_fast import functional, reference
from pad_fast.logprob import op as logprob_op
from pad_fast.logprob import softmax
from pad_fast.logprob import torch_impl as logits_torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OPTIONS = {"temperature": 1.0, "softcap": None, "logit_scale": 1.0}
CAPPED = {"temperature": 0.7, "softcap": 30.0, "logit_scale": 1.3}
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ROUNDING = {
    torch.float32: 6e-8,
    torch.bfloat16: 8e-3 if INTERPRETED else 4e-3,
    torch.float16: 5e-4,
}  # the interpreter cuts bits off

pytestmark = [
    # NumPy tells of lanes that are computed and dropped: beyond the vocabulary, in the branch not taken, or NaN on purpose.
    pytest.mark.filterwarnings(
        "ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning"
    ),
    pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning"),
    # On a GPU, of the eager reference under the fixture that poisons memory.
    pytest.mark.filterwarnings("ignore:.*deterministic:UserWarning"),
]


def draw(*shape, dtype=torch.float32, scale=8.0, seed=0):
    """Logits in their own dtype, labels with every fifth row ignored, and a random upstream gradient per token."""
    g = torch.Generator().manual_seed(seed)
    logits = (torch.randn(*shape, generator=g) * scale).to(dtype).to(DEVICE)
    labels = torch.randint(shape[-1], shape[:-1], generator=g).to(DEVICE)
    labels.view(-1)[4::5] = -100
    return logits, labels, torch.randn(shape[:-1], generator=g).to(DEVICE)


def reference_of(logits, labels, grad, dtype, **options):
    leaf = logits.detach().to(dtype).requires_grad_()
    logps = reference.token_logprobs(leaf, labels, **options)
    return logps.detach(), torch.autograd.grad(logps, leaf, grad.to(logps.dtype))[0]


def kernel_of(logits, labels, grad, **options):
    leaf = logits.detach().requires_grad_()
    logps = functional.token_logprobs(leaf, labels, impl="triton", **options)
    return logps.detach(), torch.autograd.grad(logps, leaf, grad.to(logps.dtype))[0]


def check(logits, labels, grad, **options):
    """The kernel's error against float64 is at most eager float32's and a few roundings, row by row."""
    exact, dexact = reference_of(logits, labels, grad, torch.float64, **options)
    eager, deager = reference_of(logits, labels, grad, torch.float32, **options)
    logps, dlogits = kernel_of(logits, labels, grad, **options)
    assert logps.dtype == torch.float32
    assert dlogits.dtype == logits.dtype
    size = exact.abs().clamp(min=1)
    assert ((logps - exact).abs() <= 2 * (eager - exact).abs().amax() + 1e-6 * size).all()
    scale = abs(options["logit_scale"] / options["temperature"])
    slack = 2 * (deager - dexact).abs().amax(-1) + 2.4e-7 * scale * grad.abs()
    rounding = ROUNDING[logits.dtype] * dexact.abs() + (
        6e-8 if logits.dtype == torch.float16 else 0.0
    )
    assert ((dlogits - dexact).abs() <= slack.unsqueeze(-1) + rounding).all()
    return logps, dlogits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "options",
    [OPTIONS, CAPPED, {**OPTIONS, "logit_scale": -0.5}],
    ids=["plain", "capped", "negative"],
)
def test_values_and_gradients(small_tiles, dtype, options):
    check(*draw(2, 5, 1000, dtype=dtype), **options)


# Offsets past 2^31 elements, without the memory: two rows of a storage of which nothing else is ever touched.


@pytest.mark.skipif(DEVICE == "cuda", reason="test_gpu.py has the real thing")
def test_row_offsets_are_64_bit(small_tiles):
    far, vocabulary = 2**31 + 8, 100
    torch.use_deterministic_algorithms(False)  # no filling of 4 GB; the fixture sets it back
    logits = torch.empty(far + vocabulary, dtype=torch.float16).as_strided(
        (2, 1, vocabulary), (far, vocabulary, 1)
    )
    logits.copy_(draw(2, 1, vocabulary, dtype=torch.float16)[0])
    labels, grad = torch.tensor([[3], [5]]), torch.ones(2, 1)
    expected = kernel_of(logits.contiguous(), labels, grad)
    for got, want in zip(kernel_of(logits, labels, grad), expected, strict=True):
        assert torch.equal(got, want)


@pytest.mark.skipif(
    DEVICE == "cuda", reason="takes 10 GB of addresses, of which a device has no sparse ones"
)
def test_column_offsets_are_64_bit(small_tiles):
    """Columns so far apart that already a tile of them is 2^31 elements wide; one row of three is zeroed and not read."""
    vocabulary, apart = 290, 2**31 // small_tiles.block(2) + 16
    torch.use_deterministic_algorithms(False)  # as above
    logits = torch.empty(vocabulary * apart, dtype=torch.float16).as_strided(
        (1, 3, vocabulary), (24, 8, apart)
    )
    near, labels, grad = draw(1, 3, vocabulary, dtype=torch.float16)
    logits.copy_(near)
    labels[0, 0], labels[0, 1] = 200, -100
    options = softmax.TokenOptions()
    expected, got = (launch.forward(x, labels, options) for x in (near, logits))
    for ours, theirs in zip(got, expected, strict=True):
        assert torch.equal(ours, theirs)
    for x in (near, logits):
        launch.backward(grad, x, labels, *expected[1:], options, x)
    assert torch.equal(logits, near)


# Sizes and values.


TILE = 64  # columns of a 256-byte tile of float32


@pytest.mark.parametrize(
    "vocabulary", [1, TILE - 1, TILE, TILE + 1, 2 * TILE, 2 * TILE + 1, 4 * TILE, 4 * TILE + 1]
)
@pytest.mark.parametrize("options", [OPTIONS, CAPPED], ids=["plain", "capped"])
def test_every_boundary_of_tile_and_chunk(small_tiles, vocabulary, options):
    logits, labels, grad = draw(1, 3, vocabulary)
    labels[0, 0], labels[0, 1] = 0, vocabulary - 1  # the first and the last column
    check(logits, labels, grad, **options)


# Llama 2, 3 and Qwen, Gemma; one not a multiple of anything, one past 2^18.
@pytest.mark.parametrize("vocabulary", [127, 1000, 32001, 128256, 151936, 256000, 262145])
def test_vocabularies_in_the_launched_tiles(vocabulary):
    logits, labels, grad = draw(1, 2, vocabulary, dtype=torch.bfloat16, scale=3.0)
    labels[0, 0] = vocabulary - 1
    check(logits, labels, grad, **(CAPPED if vocabulary == 256000 else OPTIONS))


@pytest.mark.parametrize("level", [-500.0, 500.0])
def test_all_logits_far_from_zero(small_tiles, level):
    logits, labels, grad = draw(1, 3, 300, scale=2.0)
    logps, _ = check(logits + level, labels, grad, **OPTIONS)
    assert logps.isfinite().all()


@pytest.mark.parametrize(
    ("dtype", "lowest"), [(torch.float16, -65504.0), (torch.float32, -1e38)], ids=str
)
def test_rows_at_the_end_of_the_range(small_tiles, dtype, lowest):
    """The running maximum starts below anything that a row can hold."""
    _, labels, grad = draw(1, 2, 300)
    logps, _ = check(
        torch.full((1, 2, 300), lowest, dtype=dtype, device=DEVICE), labels, grad, **OPTIONS
    )
    torch.testing.assert_close(logps, -torch.full_like(logps, 300.0).log())


@pytest.mark.parametrize("options", [OPTIONS, CAPPED], ids=["plain", "capped"])
def test_infinite_logits(small_tiles, options):
    logits, labels, grad = draw(1, 4, 300)
    logits[0, 0, 7] = -torch.inf
    logits[0, 1, :TILE] = -torch.inf  # a whole tile
    labels[0, 1] = 100
    logits[0, 2, 0] = -torch.inf
    labels[0, 2] = 0  # the label itself: log 0, and a gradient all the same
    exact, dexact = reference_of(logits, labels, grad, torch.float64, **options)
    logps, dlogits = kernel_of(logits, labels, grad, **options)
    torch.testing.assert_close(logps.double(), exact, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(dlogits.double(), dexact, rtol=1e-5, atol=1e-6)


def test_softcap_on_both_sides_of_the_polynomial(small_tiles):
    """Tiles within the cap take the polynomial, tiles beyond take the exponential, and both agree with float64 like eager does."""
    logits, labels, grad = draw(1, 4, 256)
    logits[0, 0] = torch.linspace(-30, 30, 256)  # all within
    logits[0, 1] = torch.linspace(-300, 300, 256)
    logits[0, 2] = torch.linspace(-1e-3, 1e-3, 256)
    logits[0, 3] = torch.linspace(29.9, 30.1, 256)  # astride
    for temperature in (
        0.01,
        1.0,
    ):  # a low temperature makes log-probabilities of capped logits large: any error shows
        for scale in (1.0, -1.3):
            check(logits, labels, grad, softcap=30.0, temperature=temperature, logit_scale=scale)


@pytest.mark.parametrize("temperature", [0.5, 0.7, 0.9, 1.0, 1.1, 1.5])
def test_saturated_logits_have_no_slope(small_tiles, temperature):
    """tanh is 1 there: the gradient is 0 and not what rounding leaves of 1 - 1, whose sign would be anything."""
    logits, labels, grad = draw(1, 4, 200)
    logits[..., ::2] = torch.where(logits[..., ::2] < 0, -3000.0, 3000.0)
    _, dlogits = kernel_of(logits, labels, grad.abs(), softcap=30.0, temperature=temperature)
    assert (dlogits[..., ::2] == 0).all()
    others = torch.ones_like(logits, dtype=torch.bool).scatter_(
        -1, labels.clamp(min=0).unsqueeze(-1), False
    )
    assert (dlogits[others] <= 0).all()


@pytest.mark.parametrize("softcap", [1e-25, 1e25])
def test_softcaps_at_the_end_of_the_range(small_tiles, softcap):
    logits, labels, grad = draw(1, 3, 200)
    options = {"softcap": softcap, "temperature": min(softcap, 1.0)}
    exact = reference_of(logits, labels, grad, torch.float64, **options)
    for got, want in zip(kernel_of(logits, labels, grad, **options), exact, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("label", [3, 199], ids=["tile", "tail"])
@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.9])
def test_confident_label_keeps_its_gradient(small_tiles, label, temperature):
    """p -> 1: the gradient 1 - p and log p stay as exact as float32 has them, also beside a large peak, whose product with the
    temperature's inverse is rounded: on a GPU a fused multiply-add would round it in one place and not in another."""
    for level in (0.0, 30.3, 500.3):
        logits = torch.full((1, 4, 200), level, device=DEVICE)
        logits[0, :, label] += torch.tensor([12.0, 15.0, 18.0, 20.0], device=DEVICE)
        labels, grad = torch.full((1, 4), label, device=DEVICE), torch.ones(1, 4, device=DEVICE)
        exact, dexact = reference_of(logits, labels, grad, torch.float64, temperature=temperature)
        logps, dlogits = kernel_of(logits, labels, grad, temperature=temperature)
        torch.testing.assert_close(logps.double(), exact, rtol=0.01, atol=2.4e-7)
        torch.testing.assert_close(dlogits.double(), dexact, rtol=1e-5, atol=2.4e-7 / temperature)
        assert (logps <= 0).all()


def test_long_sums_do_not_drift():
    """262,145 equal logits: a sum in 16 bits would stop growing at 256."""
    logits = torch.full((1, 1, 262145), 1.5, dtype=torch.bfloat16, device=DEVICE)
    labels, grad = (
        torch.zeros(1, 1, dtype=torch.int64, device=DEVICE),
        torch.ones(1, 1, device=DEVICE),
    )
    logps, dlogits = kernel_of(logits, labels, grad)
    assert logps.item() == pytest.approx(-torch.tensor(262145.0).log().item(), rel=1e-6)
    assert dlogits[0, 0, 1:].double().sum().item() == pytest.approx(
        -1.0, rel=ROUNDING[torch.bfloat16]
    )


def views(logits):
    """The same values, held in other ways."""
    r, t, v = logits.shape
    longer = torch.full((r, t + 1, v), torch.nan, device=DEVICE)
    longer[:, :-1] = logits
    shifted = torch.full((r * t * v + 1,), torch.nan, device=DEVICE)
    shifted[1:] = logits.flatten()
    yield "slice along T", longer[:, :-1]
    yield "transposed", logits.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    yield "rows transposed", logits.transpose(0, 1).contiguous().transpose(0, 1)
    yield "one element off", shifted[1:].view(r, t, v)
    yield "part of the columns", torch.cat([logits, logits], -1)[..., :v]


@pytest.mark.parametrize("options", [OPTIONS, CAPPED], ids=["plain", "capped"])
def test_strides_change_no_bit(small_tiles, options):
    logits, labels, grad = draw(2, 3, 200)
    expected = kernel_of(logits, labels, grad, **options)
    for name, view in views(logits):
        for got, want in zip(kernel_of(view, labels, grad, **options), expected, strict=True):
            assert torch.equal(got, want), name


def test_expanded_arguments(small_tiles):
    logits, labels, grad = draw(1, 1, 200)
    expected, dexpected = kernel_of(logits, labels, grad)
    logps, dlogits = kernel_of(logits.expand(2, 3, 200), labels.expand(2, 3), grad.expand(2, 3))
    assert torch.equal(logps, expected.expand(2, 3))
    assert torch.equal(dlogits, dexpected.expand(2, 3, 200))


def test_a_row_has_the_same_bits_in_any_company(small_tiles):
    logits, labels, grad = draw(2, 4, 300)
    logps, dlogits = kernel_of(logits, labels, grad, **CAPPED)
    for r in range(2):
        for t in range(4):
            alone = kernel_of(
                logits[r : r + 1, t : t + 1],
                labels[r : r + 1, t : t + 1],
                grad[r : r + 1, t : t + 1],
                **CAPPED,
            )
            assert torch.equal(alone[0][0, 0], logps[r, t])
            assert torch.equal(alone[1][0, 0], dlogits[r, t])


@pytest.mark.parametrize("filling", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("options", [OPTIONS, CAPPED], ids=["plain", "capped"])
def test_ignored_rows_do_not_leak(small_tiles, filling, options):
    logits, labels, grad = draw(2, 5, 200)
    logits[labels == -100] = filling
    grad[labels == -100] = filling
    logps, dlogits = kernel_of(logits, labels, grad, **options)
    assert (logps[labels == -100] == 0).all()
    assert (dlogits[labels == -100] == 0).all()
    assert logps.isfinite().all()
    assert dlogits.isfinite().all()


def test_rows_without_an_upstream_gradient_are_zero(small_tiles):
    logits, labels, grad = draw(1, 3, 200)
    logits[0, 1], grad[0, 1] = torch.nan, 0.0
    _, dlogits = kernel_of(logits, labels, grad)
    assert (dlogits[0, 1] == 0).all()
    assert dlogits.isfinite().all()


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("options", [OPTIONS, CAPPED], ids=["plain", "capped"])
def test_traffic(traffic, inplace, options):
    """Forward: one read of the live rows. Backward: one more, and one write of all rows, of which the ignored are not read."""
    logits, labels, grad = draw(1, 5, 20000, dtype=torch.bfloat16)
    labels[0, 1] = -100  # two of five rows
    values = softmax.TokenOptions.checked(**options, ignore_index=-100)
    live, every = 3 * 20000 * 2, 5 * 20000 * 2
    _, peak, total = launch.forward(logits, labels, values)
    assert live <= traffic.loaded <= 1.02 * live
    assert traffic.stored <= 0.02 * live
    traffic.loaded = traffic.stored = 0
    launch.backward(
        grad, logits, labels, peak, total, values, logits if inplace else torch.empty_like(logits)
    )
    assert live <= traffic.loaded <= 1.02 * live
    assert every <= traffic.stored <= 1.02 * every


@pytest.mark.parametrize("wrong", [-1, 200, 2**31, 2**32 + 5, -(2**40)])
@pytest.mark.parametrize("softcap", [0.0, 30.0])
def test_label_that_is_no_column_is_nan_and_not_read(small_tiles, wrong, softcap):
    """Without the check of a CPU tensor's values: this is what a GPU does, in the gradient too."""
    logits, labels, grad = draw(1, 3, 200)
    labels[0, 1] = wrong
    options = softmax.TokenOptions(softcap=softcap)
    logps, *rows = launch.forward(logits, labels, options)
    dlogits = torch.zeros_like(logits)
    launch.backward(grad, logits, labels, *rows, options, dlogits)
    plain, *plain_rows = logits_torch.logits_forward(logits, labels, options)
    dplain = torch.zeros_like(logits)
    logits_torch.logits_backward(grad, logits, labels, *plain_rows, options, dplain)
    for values, gradients in ((logps, dlogits), (plain, dplain)):
        assert values.isnan().tolist() == [[False, True, False]]
        assert gradients[0, 1].isnan().all()
        assert gradients[0, ::2].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_label_dtypes_and_ignore_index(small_tiles, dtype):
    logits, labels, grad = draw(1, 5, 200)
    labels = torch.where(labels == -100, 17, labels)
    exact, _ = reference_of(logits, labels, grad, torch.float64, ignore_index=17)
    logps, dlogits = kernel_of(logits, labels.to(dtype), grad, ignore_index=17)
    torch.testing.assert_close(logps.double(), exact, rtol=1e-6, atol=1e-5)
    assert (dlogits[labels == 17] == 0).all()


@pytest.mark.parametrize("shape", [(0, 3, 10), (2, 0, 10)])
def test_no_rows(shape):
    logits, labels = (
        torch.zeros(shape, device=DEVICE),
        torch.zeros(shape[:2], dtype=torch.int64, device=DEVICE),
    )
    logps, dlogits = kernel_of(logits, labels, torch.zeros(shape[:2], device=DEVICE))
    assert logps.shape == shape[:2]
    assert dlogits.shape == shape


@pytest.mark.parametrize("options", [OPTIONS, CAPPED], ids=["plain", "capped"])
def test_gradcheck_drives_the_kernels(small_tiles, options):
    """Accumulation in float64: the kernels' own arithmetic, not a tolerance, is what finite differences test."""
    logits, labels, _ = draw(1, 3, 70, dtype=torch.float64, scale=20.0)
    labels[0, 2] = -100
    torch.autograd.gradcheck(
        lambda x: functional.token_logprobs(x, labels, impl="triton", **options),
        logits.requires_grad_(),
        fast_mode=True,
    )


def test_float64_values(small_tiles):
    logits, labels, grad = draw(2, 5, 200, dtype=torch.float64, scale=20.0)
    for options in (OPTIONS, CAPPED):
        exact = reference_of(logits, labels, grad, torch.float64, **options)
        for got, want in zip(kernel_of(logits, labels, grad, **options), exact, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("normalize", ["mean", "sum"])
def test_response_rewards(small_tiles, normalize):
    """Rewards and their gradients; a response without a token has reward 0 and gradient 0."""
    logits, labels, _ = draw(3, 5, 200)
    labels[1] = -100
    weights = torch.tensor([1.0, -2.0, 0.5], device=DEVICE)
    leaf, exact_leaf = logits.clone().requires_grad_(), logits.double().requires_grad_()
    rewards = functional.response_rewards(
        leaf, labels, normalize=normalize, impl="triton", **CAPPED
    )
    exact = reference.response_rewards(
        reference.token_logprobs(exact_leaf, labels, **CAPPED), labels, normalize=normalize
    )
    torch.testing.assert_close(rewards.double(), exact, rtol=1e-6, atol=1e-6)
    assert rewards[1] == 0
    (rewards * weights).sum().backward()
    (exact * weights.double()).sum().backward()
    torch.testing.assert_close(leaf.grad.double(), exact_leaf.grad, rtol=1e-5, atol=1e-6)


def test_rewards_have_the_same_bits_in_any_packing(small_tiles):
    logits, labels, _ = draw(3, 5, 200)
    padded = functional.response_rewards(logits, labels, impl="triton")
    order = torch.randperm(15, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    ids = torch.arange(3, device=DEVICE).repeat_interleave(5)[order]
    packed = functional.response_rewards(
        logits.view(15, -1)[order],
        labels.view(15)[order],
        response_ids=ids,
        num_responses=3,
        impl="triton",
    )
    left = functional.response_rewards(
        torch.cat([torch.full_like(logits, torch.nan), logits], 1),
        torch.cat([torch.full_like(labels, -100), labels], 1),
        impl="triton",
    )
    assert torch.equal(padded, packed)
    assert torch.equal(padded, left)


# Writing the gradient over the logits.


@pytest.mark.parametrize("impl", ["triton", "torch"])
def test_inplace_backward_gives_the_same_gradient(small_tiles, impl):
    logits, labels, grad = draw(2, 5, 300)
    leaf = logits.clone().requires_grad_()
    functional.token_logprobs(leaf, labels, impl=impl, **CAPPED).backward(grad)
    other = logits.clone().requires_grad_()
    functional.token_logprobs(other, labels, impl=impl, inplace_backward=True, **CAPPED).backward(
        grad
    )
    assert torch.equal(leaf.grad, other.grad)
    assert torch.equal(other.detach(), leaf.grad)  # overwritten
    assert torch.equal(leaf.detach(), logits)  # and only then
    assert leaf._version == 0


@pytest.mark.parametrize("impl", ["triton", "torch"])
def test_inplace_backward_is_seen_by_autograd(small_tiles, impl):
    """Whoever saved the logits too gets an error, not a gradient of a gradient."""
    logits, labels, grad = draw(1, 3, 200)
    hidden = logits.clone().requires_grad_()
    produced = hidden * 1.0
    squares = produced.square().sum()
    logps = functional.token_logprobs(produced, labels, impl=impl, inplace_backward=True)
    logps.backward(grad, retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squares.backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logps.backward(grad)


def test_inplace_backward_refuses_overlapping_logits():
    logits, labels, _ = draw(1, 1, 200)
    with pytest.raises(ValueError, match="logits must not overlap in memory"):
        functional.token_logprobs(
            logits.expand(2, 3, 200), labels.expand(2, 3), inplace_backward=True
        )


def test_inplace_backward_refuses_logits_that_it_would_copy(small_tiles):
    logits, labels, grad = draw(6, 2, 100)
    four, labels, grad = logits.view(2, 3, 2, 100), labels.view(2, 3, 2), grad.view(2, 3, 2)
    with pytest.raises(ValueError, match="logits must have a view in three dimensions"):
        functional.token_logprobs(
            four.transpose(0, 1), labels.transpose(0, 1), inplace_backward=True
        )
    for leaf in (
        four.clone(),
        four.clone().transpose(1, 2).contiguous().transpose(1, 2)[:1],
    ):  # has one, also where a size is 1
        leaf = leaf.requires_grad_()
        rows = slice(len(leaf))
        functional.token_logprobs(
            leaf, labels[rows], impl="triton", inplace_backward=True
        ).backward(grad[rows])
        assert torch.equal(leaf.detach(), leaf.grad)


# torch.library and torch.compile.


@pytest.mark.parametrize("inplace", [False, True])
def test_opcheck(small_tiles, inplace):
    logits, labels, grad = draw(1, 3, 100)
    options = (0.7, 30.0, 1.0, -100, "triton")
    torch.library.opcheck(
        logprob_op.token_logprobs, (logits.clone().requires_grad_(), labels, *options, False)
    )
    _, peak, total = logprob_op.token_logprobs(logits, labels, *options, inplace)
    backward = (
        logprob_op.token_logprobs_backward_ if inplace else logprob_op.token_logprobs_backward
    )
    torch.library.opcheck(backward, (grad, logits, labels, peak, total, *options))


@pytest.mark.parametrize("inplace", [False, True])
def test_compiles_whole(small_tiles, inplace):
    logits, labels, _ = draw(2, 3, 100)

    def loss(x):
        return functional.response_rewards(
            x * 2, labels, impl="triton", inplace_backward=inplace, **CAPPED
        ).sum()

    leaf, compiled_leaf = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    expected, got = (
        loss(leaf),
        torch.compile(loss, fullgraph=True, backend="aot_eager")(compiled_leaf),
    )
    expected.backward()
    got.backward()
    assert torch.equal(got, expected)
    assert torch.equal(compiled_leaf.grad, leaf.grad)


def test_compiles_whole_in_place_for_any_shape(small_tiles):
    torch.compiler.reset()

    def loss(x, labels):
        return functional.token_logprobs(x * 1, labels, impl="triton", inplace_backward=True).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for shape in ((2, 3, 50), (3, 5, 60), (4, 7, 129)):
        logits, labels, _ = draw(*shape)
        leaf, compiled_leaf = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        loss(leaf, labels).backward()
        compiled(compiled_leaf, labels).backward()
        assert torch.equal(compiled_leaf.grad, leaf.grad)


@pytest.mark.parametrize(("before", "after"), [("triton", "torch"), ("torch", "triton")])
def test_forward_and_backward_are_of_one_implementation(small_tiles, monkeypatch, before, after):
    """Whatever the environment says by the time of the backward: the rows' numbers are in the forward's unit."""
    logits, labels, grad = draw(1, 3, 200)
    logits.requires_grad_()
    monkeypatch.setenv("PAD_FAST_IMPL", before)
    logps = functional.token_logprobs(logits, labels, **CAPPED)
    (expected,) = torch.autograd.grad(logps, logits, grad, retain_graph=True)
    monkeypatch.setenv("PAD_FAST_IMPL", after)
    (got,) = torch.autograd.grad(logps, logits, grad)
    assert torch.equal(got, expected)
