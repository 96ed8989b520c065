"""The public operations on the PyTorch path against the float64 reference: values, gradients, memory, bad input."""

import itertools
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch._dynamo.exc import Unsupported
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pad_fast
from pad_fast import budget, chunked, chunked_linear, functional, linear_ops, ops, reference

CAPPED = {"temperature": 0.7, "softcap": 30.0, "logit_scale": 1.3}
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1.5e-3}


@pytest.fixture
def small_tiles(monkeypatch):
    """Every loop over rows and columns turns several times, and ends in a rest."""
    monkeypatch.setattr(budget, "CPU_ROWS", 2)
    monkeypatch.setattr(chunked, "LOGITS_ROWS", 2)
    monkeypatch.setattr(chunked, "TILE_COLUMNS", 16)


def draw(dtype=torch.float32, rows=(2, 4), width=12, vocabulary=45, scale=3.0):
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(*rows, width, generator=g).to(dtype)
    weight = (torch.randn(vocabulary, width, generator=g) * scale).to(dtype)
    bias = torch.randn(vocabulary, generator=g).to(dtype)
    labels = torch.randint(vocabulary, rows, generator=g)
    labels.view(-1)[2::5] = -100
    return hidden, weight, bias, labels, torch.randn(rows, generator=g)


def gradients(function, leaves, labels, grad, **options):
    """Values and gradients of ``function(*leaves, labels)``, each leaf in its own dtype."""
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    values = function(*leaves, labels, **options)
    return values.detach(), torch.autograd.grad(values, leaves, grad.to(values.dtype))


def close(got, want, dtype):
    size = want.abs().max().item() + 1e-30
    torch.testing.assert_close(got.double() / size, want.double() / size, rtol=ROUNDING[dtype], atol=ROUNDING[dtype])


# Values and gradients.


@pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)
@pytest.mark.parametrize("options", [{}, CAPPED], ids=["plain", "capped"])
def test_from_logits(small_tiles, dtype, options):
    hidden, weight, _, labels, grad = draw()
    logits = (hidden @ weight.T).to(dtype)
    logps, (dlogits,) = gradients(functional.token_logprobs, [logits], labels, grad, impl="torch", **options)
    exact, (dexact,) = gradients(reference.token_logprobs, [logits.double()], labels, grad, **options)
    assert logps.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert dlogits.dtype == dtype
    close(logps, exact, torch.promote_types(dtype, torch.float32))
    close(dlogits, dexact, dtype)


def linear(hidden, weight, bias, labels, **options):
    return functional.linear_token_logprobs(hidden, weight, labels, bias=bias, impl="torch", **options)


def linear_reference(hidden, weight, bias, labels, **options):
    return reference.linear_token_logprobs(hidden, weight, labels, bias=bias, **options)


SOME = 2500  # bytes: with the tiles of these tests, two chunks of 2 rows, and 2 or 6 rows of scores in 8 or 4 bytes, or all in 2


@pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)
@pytest.mark.parametrize("budget", ["auto", SOME, 0])
@pytest.mark.parametrize("options", [{}, CAPPED], ids=["plain", "capped"])
def test_from_hidden_states(small_tiles, dtype, budget, options):
    hidden, weight, bias, labels, grad = draw(dtype, rows=(3, 4))
    logps, got = gradients(linear, [hidden, weight, bias], labels, grad, memory_budget=budget, **options)
    exact, want = gradients(linear_reference, [hidden.double(), weight.double(), bias.double()], labels, grad, **options)
    close(logps, exact, torch.promote_types(dtype, torch.float32))  # the product is not rounded to the inputs' dtype
    for g, w in zip(got, want, strict=True):
        assert g.dtype == dtype
        close(g, w, dtype)


@pytest.mark.parametrize("needed", list(itertools.product([False, True], repeat=3))[1:])
@pytest.mark.parametrize("budget", ["auto", SOME, 0])
def test_only_the_gradients_that_are_needed(small_tiles, needed, budget):
    hidden, weight, bias, labels, grad = draw()
    leaves = [leaf.clone().requires_grad_(need) for leaf, need in zip((hidden, weight, bias), needed, strict=True)]
    linear(*leaves, labels, memory_budget=budget).backward(grad)
    _, want = gradients(linear_reference, [hidden.double(), weight.double(), bias.double()], labels, grad)
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
    weight.zero_()  # as a wrapper may, who has gathered it for the forward alone
    (dhidden,) = torch.autograd.grad(logps, leaf, grad.to(logps.dtype))
    _, (want,) = gradients(
        lambda h, y: linear_reference(h, weight_before.double(), bias.double(), y, **options), [hidden.double()], labels, grad
    )
    assert dhidden.dtype == dtype
    close(dhidden, want, dtype)


class Products(TorchDispatchMode):
    """Multiplications of matrix products, in units of one over all logits."""

    def __init__(self, unit: int):
        super().__init__()
        self.unit, self.work = unit, 0.0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in (torch.ops.aten.matmul, torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
            a, b = args[-2:]
            self.work += a.shape[0] * a.shape[1] * b.shape[1] / self.unit
        return function(*args, **(kwargs or {}))


def watch(monkeypatch, mode, *functions):
    """A mode sees our operations from outside only: let it see what these functions do inside of them."""

    def watched(inner):
        def run(*args, **kwargs):
            with mode:
                return inner(*args, **kwargs)

        return run

    for module, name in functions:
        monkeypatch.setattr(module, name, watched(getattr(module, name)))


LINEAR = ((chunked_linear, "forward"), (chunked_linear, "backward"))


@pytest.mark.parametrize(("budget", "frozen", "products"), [("auto", False, 3), (0, False, 4), ("half", False, 3.5), ("auto", True, 2)])
@pytest.mark.parametrize("live", ["all", "found", "given"])
def test_number_of_products(monkeypatch, budget, frozen, products, live):
    """3 with scores kept, 4 without, 2 of a frozen head; and of the live rows only."""
    hidden, weight, _, labels, grad = draw(rows=(1024,), width=8, vocabulary=200)
    labels = labels.clamp(min=0)
    if live != "all":
        labels[::2] = -100
    options = {"live_rows": torch.arange(1, 1024, 2)} if live == "given" else {}
    count = 1024 if live == "all" else 512
    if budget == "half":
        budget = pad_fast.budget.workspace(count, 8, 200, torch.float32, torch.device("cpu"), recomputed=True) + count // 2 * 256 * 4
    leaves = [hidden.requires_grad_(), *([] if frozen else [weight.requires_grad_()])]
    counter = Products(count * 8 * 200)
    watch(monkeypatch, counter, *LINEAR)
    torch.autograd.grad(linear(hidden, weight, None, labels, memory_budget=budget, **options), leaves, grad)
    assert counter.work == pytest.approx(products)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("budget", ["auto", 0])
def test_the_forward_has_the_same_bits_in_any_company(dtype, budget):
    hidden, weight, bias, labels, _ = draw(dtype, rows=(300,), width=64, vocabulary=5000)
    weight.requires_grad_()
    labels = labels.clamp(min=0)
    logps = linear(hidden, weight, bias, labels, memory_budget=budget)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    assert torch.equal(linear(hidden[order], weight, bias, labels[order], memory_budget=budget), logps[order])
    for few in (slice(0, 1), slice(17, 20), slice(100, 229)):
        assert torch.equal(linear(hidden[few], weight, bias, labels[few], memory_budget=budget), logps[few])
    sparse = labels.where(torch.arange(300) % 3 == 0, -100)
    assert torch.equal(linear(hidden, weight, bias, sparse, memory_budget=budget)[::3], logps[::3])


@pytest.mark.parametrize("budget", ["auto", SOME, 0])
def test_rows_without_an_upstream_gradient_pass_nothing_on(small_tiles, budget):
    """NaN in a row that a loss masks stays there."""
    hidden, weight, bias, labels, grad = draw(rows=(3, 4))
    grad[0, 1] = grad[2, 0] = 0.0
    _, want = gradients(linear_reference, [hidden.double(), weight.double(), bias.double()], labels, grad)
    hidden[0, 1] = torch.nan
    hidden[2, 0] = torch.inf
    leaves = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    got = torch.autograd.grad(linear(*leaves, labels, memory_budget=budget), leaves, grad, retain_graph=True)
    for g, w in zip(got, want, strict=True):
        close(g, w, torch.float32)
    dweight = torch.autograd.grad(linear(*leaves, labels, memory_budget=budget), leaves[1], torch.ones_like(grad))[0]
    assert dweight.isnan().any()  # and one that is not masked is not hidden


@pytest.mark.parametrize("budget", ["auto", SOME, 0])
@pytest.mark.parametrize("size", [1e-9, 1e9])
def test_float16_gradients_of_any_size(small_tiles, budget, size):
    """Loss scaling makes upstream gradients large, averaging makes them small: neither leaves the range of float16 on the way."""
    hidden, weight, bias, labels, grad = draw(torch.float16)
    leaves = [x.clone().requires_grad_() for x in (hidden, weight.float() / 64, bias)]
    leaves[1] = leaves[1].detach().half().requires_grad_()
    rows = chunked.live_rows(labels.view(-1), -100)
    with torch.no_grad():
        options = (1.0, 0.0, 1.0, -100, "torch")
        plain = (leaves[0].detach().view(8, -1), leaves[1].detach(), leaves[2].detach(), labels.view(-1), rows, None)
        saved = {"auto": 8, SOME: 4, 0: 0}[budget]
        _, peak, total, scores, _ = linear_ops.linear_token_logprobs(*plain, saved, False, False, *options)
        head = chunked_linear.Head(*plain[1:3], chunked.TokenOptions(1.0, 0.0, 1.0, -100))
        upstream = chunked_linear.Upstream.of(grad.view(-1)[rows] * size, total, torch.float16)
        into = chunked_linear.Gradients(None, torch.zeros(45, 12), None)  # float32, to see what would be rounded
        live, numbers = chunked_linear.pack(plain[0], rows, 1), (labels.view(-1)[rows], peak, total)
        chunked_linear.backward(upstream, live, rows, numbers, head, scores, into, chunked_linear.tile_scores(head), False)
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


def test_gradcheck(small_tiles):
    hidden, weight, bias, labels, _ = draw(torch.float64, rows=(1, 3), width=4, vocabulary=20)
    leaves = [leaf.requires_grad_() for leaf in (hidden, weight, bias)]
    assert torch.autograd.gradcheck(lambda *x: linear(*x, labels, **CAPPED), leaves)
    logits = (hidden @ weight.T).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: functional.token_logprobs(x, labels, impl="torch", **CAPPED), logits)
    assert torch.autograd.gradcheck(lambda x: functional.response_rewards(x, labels, impl="torch"), logits)


@pytest.mark.parametrize("tiles", [(1, 7), (3, 16), (8, 45)])
def test_number_of_tiles_does_not_matter(monkeypatch, tiles):
    """The weight's gradient is not accumulated in 16 bits over tiles: its error does not grow with their number."""
    hidden, weight, bias, labels, grad = draw(torch.bfloat16, rows=(4, 64))
    exact, want = gradients(linear_reference, [hidden.double(), weight.double(), bias.double()], labels, grad)
    monkeypatch.setattr(budget, "CPU_ROWS", tiles[0])
    monkeypatch.setattr(chunked, "TILE_COLUMNS", tiles[1])
    logps, got = gradients(linear, [hidden, weight, bias], labels, grad)
    close(logps, exact, torch.float32)
    for g, w in zip(got, want, strict=True):
        error = (g.double() - w).norm() / w.norm()
        assert error < 2.5e-3  # one rounding to bfloat16 costs 1.7e-3 in this norm


@pytest.mark.parametrize("level", [-500.0, 500.0])
def test_levels_and_infinities(small_tiles, level):
    _, _, _, labels, grad = draw()
    logits = torch.randn(2, 4, 45, generator=torch.Generator().manual_seed(1)) + level
    logits[0, 0, :20] = -torch.inf  # more than a tile
    labels[0, 0] = 30
    logps, (dlogits,) = gradients(functional.token_logprobs, [logits], labels, grad, impl="torch")
    exact, (dexact,) = gradients(reference.token_logprobs, [logits.double()], labels, grad)
    close(logps, exact, torch.float32)
    close(dlogits, dexact, torch.float32)


def test_confident_label_keeps_its_gradient(small_tiles):
    logits = torch.full((1, 1, 45), 400.0)
    logits[..., 3] = 415.0
    labels, grad = torch.tensor([[3]]), torch.ones(1, 1)
    logps, (dlogits,) = gradients(functional.token_logprobs, [logits], labels, grad, impl="torch")
    exact, (dexact,) = gradients(reference.token_logprobs, [logits.double()], labels, grad)
    torch.testing.assert_close(logps.double(), exact, rtol=0.02, atol=0)
    torch.testing.assert_close(dlogits.double(), dexact, rtol=0.02, atol=0)


# Shapes and strides.


def test_any_leading_shape(small_tiles):
    hidden, weight, bias, labels, _ = draw(rows=(2, 3, 4))
    logps = functional.token_logprobs(hidden @ weight.T, labels)
    assert logps.shape == (2, 3, 4)
    flat = functional.token_logprobs((hidden @ weight.T).view(24, -1), labels.view(24))
    assert torch.equal(logps.view(24), flat)
    one = functional.token_logprobs((hidden @ weight.T)[0, 0, 0], labels[0, 0, 0])
    assert one.shape == ()
    assert linear(hidden, weight, bias, labels).shape == (2, 3, 4)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0)])
def test_no_rows(shape):
    labels = torch.zeros(shape, dtype=torch.int64)
    logits = torch.zeros(*shape, 7, requires_grad=True)
    functional.token_logprobs(logits, labels).sum().backward()
    assert logits.grad.shape == (*shape, 7)
    hidden, weight = torch.zeros(*shape, 3, requires_grad=True), torch.ones(7, 3, requires_grad=True)
    functional.linear_token_logprobs(hidden, weight, labels).sum().backward()
    assert not weight.grad.any()
    if len(shape) == 2:
        assert functional.response_rewards(logits, labels).tolist() == [0.0] * shape[0]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_strided_arguments(small_tiles, dtype):
    hidden, weight, bias, labels, grad = draw(rows=(2, 5))
    labels = labels.to(dtype)
    sliced = (hidden[:, :-1], weight.T.contiguous().T, bias.repeat_interleave(2)[::2])
    _, got = gradients(linear, sliced, labels[:, :-1], grad[:, :-1])
    _, want = gradients(linear_reference, [x.double() for x in sliced], labels[:, :-1], grad[:, :-1])
    for g, w in zip(got, want, strict=True):
        close(g, w, torch.float32)
    expanded = torch.full((1, 1), 3).expand(2, 5)
    torch.testing.assert_close(
        linear(hidden, weight, bias, expanded, ignore_index=-1), linear_reference(hidden, weight, bias, expanded, ignore_index=-1)
    )


class Largest(TorchDispatchMode):
    """The size in bytes of the largest tensor that an operation of PyTorch made, not counting views of what was there."""

    def __init__(self, *known: torch.Tensor):
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.numel() and leaf.untyped_storage().data_ptr() not in self.known:
                self.bytes = max(self.bytes, leaf.untyped_storage().nbytes())
        return result


def test_slice_along_tokens_is_not_copied(monkeypatch):
    logits = torch.randn(4, 33, 8192)
    labels = torch.zeros(4, 32, dtype=torch.int64)
    largest = Largest(logits)
    watch(monkeypatch, largest, (chunked, "logits_forward"))
    functional.token_logprobs(logits[:, :-1], labels, impl="torch")
    assert largest.bytes
    assert largest.bytes <= logits.nbytes / 1.9  # a tile of all 128 rows by 4,096 of 8,192 columns


def test_linear_path_holds_tiles_only(monkeypatch):
    """No tensor of the size of the logits exists, forward or backward; the largest are a tile and the weight's gradient."""
    monkeypatch.setattr(budget, "CPU_ROWS", 64)
    monkeypatch.setattr(chunked, "TILE_COLUMNS", 256)
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


# What is ignored.


@pytest.mark.parametrize("filling", [torch.nan, torch.inf])
def test_ignored_rows_are_not_read(small_tiles, filling):
    hidden, weight, bias, labels, grad = draw()
    dead = labels == -100
    _, want = gradients(linear_reference, [hidden.double(), weight.double(), bias.double()], labels, grad)
    hidden[dead], grad[dead] = filling, filling
    logps, got = gradients(linear, [hidden, weight, bias], labels, grad)
    assert (logps[dead] == 0).all()
    assert (got[0][dead] == 0).all()
    for g, w in zip(got, want, strict=True):
        close(g, w, torch.float32)
    logits = torch.randn(2, 4, 45)
    logits[dead] = filling
    logps, (dlogits,) = gradients(functional.token_logprobs, [logits], labels, grad, impl="torch")
    assert logps.isfinite().all()
    assert (dlogits[dead] == 0).all()
    assert dlogits.isfinite().all()


def test_everything_ignored():
    hidden, weight, bias, labels, grad = draw()
    labels[:] = -100
    logps, got = gradients(linear, [hidden, weight, bias], labels, grad)
    assert not logps.any()
    assert not any(g.any() for g in got)
    assert functional.response_rewards(hidden @ weight.T, labels).tolist() == [0.0, 0.0]


# Rewards.


@pytest.mark.parametrize("normalize", ["mean", "sum"])
@pytest.mark.parametrize("head", [False, True])
def test_rewards_padded_and_packed(small_tiles, normalize, head):
    hidden, weight, _, labels, _ = draw(rows=(3, 5))
    labels[1] = -100  # a response without tokens
    ids = torch.arange(3).repeat_interleave(5)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(0))
    ids[order[0]], labels.view(-1)[order[0]] = -1, 7  # a row of no response
    weights = torch.tensor([1.0, 2.0, -0.5])

    def rewards(function, h, w, y, **packing):
        logits = (h, w) if head else (h @ w.T,)
        return function(*logits, y, normalize=normalize, **packing, **CAPPED)

    ours = functional.linear_response_rewards if head else functional.response_rewards
    flat_h, flat_y = hidden.view(15, -1), labels.view(-1)
    leaves = [x.clone().requires_grad_() for x in (flat_h, weight)]
    packed = rewards(ours, leaves[0][order], leaves[1], flat_y[order], response_ids=ids[order], num_responses=3)
    (packed * weights).sum().backward()

    exact_leaves = [x.detach().double().requires_grad_() for x in (flat_h, weight)]
    own = flat_y.where(ids >= 0, -100)
    logps = reference.linear_token_logprobs(*exact_leaves, own, **CAPPED)
    exact = reference.response_rewards(logps.view(3, 5), own.view(3, 5), normalize=normalize)
    (exact * weights).sum().backward()
    torch.testing.assert_close(packed.double(), exact, rtol=1e-6, atol=1e-6)
    assert packed[1] == 0
    for leaf, exact_leaf in zip(leaves, exact_leaves, strict=True):
        close(leaf.grad, exact_leaf.grad, torch.float32)

    padded = rewards(ours, hidden, weight, own.view(3, 5))
    counted = rewards(ours, flat_h, weight, flat_y, response_ids=ids)  # the number of responses out of the ids
    torch.testing.assert_close(padded, packed)
    torch.testing.assert_close(counted, packed)


def test_lengths():
    labels = torch.tensor([[1, -100, 3], [-100, -100, -100]])
    assert functional.response_lengths(labels).tolist() == [2, 0]
    ids = torch.tensor([0, 0, 2, 2, -1, 2])
    assert functional.response_lengths(labels.view(-1), response_ids=ids, num_responses=4).tolist() == [1, 0, 1, 0]
    assert functional.response_lengths(labels.view(-1), response_ids=ids).tolist() == [1, 0, 1]


def test_sums_are_exact_in_any_order():
    """float32 sums of these values depend on the order in their last bits; ours do not, and are the rounded true sum."""
    values = -torch.rand(4096, generator=torch.Generator().manual_seed(0)) * 20
    ids = torch.zeros(4096, dtype=torch.int64)
    exact = values.double().sum().float()
    assert len({np.add.accumulate(values[torch.randperm(4096)].numpy())[-1] for _ in range(20)}) > 1
    for _ in range(20):
        order = torch.randperm(4096)
        assert ops.response_sums(values[order], ids, ids, 1, -100, False, "torch")[0] == exact
        assert ops.response_sums(values[order].view(1, -1), ids.view(1, -1), None, 1, -100, False, "torch")[0] == exact


def test_sums_keep_what_is_not_finite():
    values = torch.tensor([[0.0, -torch.inf], [torch.nan, -1.0], [-1e30, -1e30]])
    sums, _ = ops.response_sums(values, values, None, 3, -100, False, "torch")
    assert sums[0] == -torch.inf
    assert sums[1].isnan()
    assert sums[2] == pytest.approx(-2e30)


# Autocast, torch.library, torch.compile.


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


def test_opcheck(small_tiles):
    hidden, weight, bias, labels, grad = draw(rows=(6,), width=4, vocabulary=20)
    options = (0.7, 30.0, 1.3, -100, "torch")
    leaves = [x.requires_grad_() for x in (hidden, weight, bias)]
    rows, count = linear_ops.live_rows(labels, -100)
    torch.library.opcheck(linear_ops.live_rows, (labels, -100))
    given = rows[:5]
    for saved in (0, 2, 6):
        torch.library.opcheck(linear_ops.linear_token_logprobs, (*leaves, labels, rows, count, saved, False, False, *options))
    torch.library.opcheck(linear_ops.linear_token_logprobs, (hidden, weight, None, labels, given, None, 4, False, False, *options))
    frozen = (hidden, weight.detach(), None)
    torch.library.opcheck(linear_ops.linear_token_logprobs, (*frozen, labels, rows, count, 0, True, False, *options))
    detached = [x.detach() for x in leaves]
    _, *kept, _ = linear_ops.linear_token_logprobs(*detached, labels, rows, count, 4, False, False, *options)
    for needed in ((True, True, True), (True, False, False)):
        arguments = (grad, *detached, labels, rows, count, *kept, *needed, *options)
        torch.library.opcheck(linear_ops.linear_token_logprobs_backward, arguments)
    _, _, total, _, unscaled = linear_ops.linear_token_logprobs(*detached, labels, rows, count, 0, True, False, *options)
    torch.library.opcheck(linear_ops.scale_live_rows, (grad, rows, count, total, unscaled))
    logits, rows = torch.randn(1, 6, 20, requires_grad=True), labels.view(1, 6)
    torch.library.opcheck(ops.token_logprobs, (logits, rows, *options, False))
    ids = torch.tensor([0, 2, -1, 2, 0, 1])
    for mean in (False, True):
        torch.library.opcheck(ops.response_sums, (torch.randn(6, requires_grad=True), labels, ids, 4, -100, mean, "torch"))
        padded = labels.view(2, 3)
        torch.library.opcheck(ops.response_sums, (torch.randn(2, 3, requires_grad=True), padded, None, 2, -100, mean, "torch"))


def test_compiles_whole(small_tiles):
    hidden, weight, bias, labels, _ = draw()
    ids = torch.arange(8) // 4

    def loss(h, w):
        padded = functional.response_rewards(h @ w.T, labels, softcap=30.0)
        packed = functional.linear_response_rewards(
            h.view(8, -1), w, labels.view(-1), bias=bias, response_ids=ids, num_responses=2, temperature=0.7
        )
        return (padded * packed).sum()

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaves = [x.clone().requires_grad_() for x in (hidden, weight)]
        value = function(*leaves)
        value.backward()
        results.append((value.detach(), *(leaf.grad for leaf in leaves)))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)


# Bad input.


def good():
    hidden, weight, bias, labels, _ = draw()
    return {"logits": hidden @ weight.T, "hidden": hidden, "weight": weight, "bias": bias, "labels": labels}


LOGITS_ERRORS = {
    "labels must have the shape of logits": {"labels": torch.zeros(2, 5, dtype=torch.int64)},
    "labels must be int32 or int64, got torch.float32": {"labels": torch.zeros(2, 4)},
    "float32 or float64, got torch.float8_e4m3fn": {"logits": torch.zeros(2, 4, 45, dtype=torch.float8_e4m3fn)},
    "logits must be float16, bfloat16, float32 or float64, got torch.int64": {"logits": torch.zeros(2, 4, 45, dtype=torch.int64)},
    "logits must have a last dimension": {"logits": torch.zeros(2, 4, 0)},
    "labels must be on the device of logits, cpu, got meta": {"labels": torch.zeros(2, 4, dtype=torch.int64, device="meta")},
    "labels must be in 0..44 or ignore_index (-100), got 45": {"labels": torch.full((2, 4), 45)},
    "labels must be in 0..44 or ignore_index (-100), got -1": {"labels": torch.full((2, 4), -1)},
    "temperature must be a positive finite number, got 0": {"temperature": 0},
    "softcap must be None or a positive finite number, got -3.0": {"softcap": -3.0},
    "logit_scale must be a finite number, got inf": {"logit_scale": float("inf")},
    "impl must be one of auto, torch, triton, got 'cuda'": {"impl": "cuda"},
    "temperature must be a positive finite number, got '1'": {"temperature": "1"},
    "softcap must be None or a positive finite number, got [30]": {"softcap": [30]},
    "logit_scale must be a finite number, got None": {"logit_scale": None},
    "ignore_index must be an int, got 1.5": {"ignore_index": 1.5},
    "labels must be a torch.Tensor, got list": {"labels": [[1, 2, 3, 4]] * 2},
    "logits must be a torch.Tensor, got NoneType": {"logits": None},
    "logit_scale / temperature must lie within 1e-30 and 1e+30, which float32 can hold, got 1e-300": {"temperature": 1e300},
    "softcap / temperature must lie within 1e-30 and 1e+30, which float32 can hold, got 3e+38": {"softcap": 3e38},
    "logit_scale / softcap must lie within 1e-30 and 1e+30": {"softcap": 1e31, "temperature": 1e5, "logit_scale": -1.0},
}


@pytest.mark.parametrize("message", LOGITS_ERRORS)
def test_unfit_logits(message):
    arguments = {key: value for key, value in good().items() if key in ("logits", "labels")} | LOGITS_ERRORS[message]
    with pytest.raises(ValueError, match=re.escape(message)):
        functional.token_logprobs(**arguments)


LINEAR_ERRORS = {
    "weight must be (V, D) with D of hidden, 12, got (45, 11)": {"weight": torch.zeros(45, 11)},
    "an empty weight is what ZeRO-3 leaves outside of its gather context: call this inside of the forward": {"weight": torch.zeros(0)},
    "weight must have the dtype and device of hidden": {"weight": torch.zeros(45, 12, dtype=torch.float16)},
    "on cpu, got torch.float32 on meta; move or cast": {"weight": torch.zeros(45, 12, device="meta")},
    "got torch.float8_e4m3fn; dequantise it first": {"weight": torch.zeros(45, 12, dtype=torch.float8_e4m3fn)},
    'memory_budget must be "auto" or a number of bytes, an int of at least 0, got -1': {"memory_budget": -1},
    "an int of at least 0, got 'much'": {"memory_budget": "much"},
    "an int of at least 0, got 1.5": {"memory_budget": 1.5},
    "live_rows must be None or int64 of shape (L,) on cpu, got torch.int32 (8,)": {"live_rows": torch.arange(8, dtype=torch.int32)},
    "live_rows must be in 0..7, got 0..8": {"live_rows": torch.tensor([0, 8])},
    "got row 1 with label": {"live_rows": torch.tensor([0, 3, 4, 5, 6])},
    "got row 2 with label -100 1 times": {"live_rows": torch.arange(8)},
    "bias must be (V,) = (45,), got (44,)": {"bias": torch.zeros(44)},
    "labels must have the shape of hidden": {"labels": torch.zeros(8, dtype=torch.int64)},
    "labels must be in 0..44": {"labels": torch.full((2, 4), 99)},
}


@pytest.mark.parametrize("message", LINEAR_ERRORS)
def test_unfit_hidden_states(message):
    arguments = {key: value for key, value in good().items() if key != "logits"} | LINEAR_ERRORS[message]
    with pytest.raises(ValueError, match=re.escape(message)):
        functional.linear_token_logprobs(**arguments)


def test_a_sharded_weight_is_refused(tmp_path):
    """A DTensor reaches us where FSDP2 has not gathered it, or where a tensor-parallel plan split it."""
    arguments = {key: value for key, value in good().items() if key != "logits"}
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        arguments["weight"] = distribute_tensor(arguments["weight"], mesh, [Shard(0)])
        with pytest.raises(ValueError, match=r"weight must be whole, got a DTensor.*inside of the forward.*full_tensor"):
            functional.linear_token_logprobs(**arguments)
    finally:
        torch.distributed.destroy_process_group()


IDS = torch.zeros(8, dtype=torch.int64)
REWARD_ERRORS = {
    "normalize must be one of mean, sum, got 'max'": {"normalize": "max"},
    "labels must be (M,), packed, when response_ids are given": {"response_ids": IDS},
    "num_responses must be R of the padded labels, 2": {"num_responses": 3},
}
PACKED_ERRORS = {
    "response_ids must be integers of shape (8,)": {"response_ids": IDS.float()},
    "num_responses must not be negative, got -1": {"response_ids": IDS, "num_responses": -1},
    "response_ids must be below num_responses (2), -1 for a row of none; got 5": {"response_ids": IDS + 5, "num_responses": 2},
    "labels must be (R, T), one response a row, unless response_ids are given": {},
}


@pytest.mark.parametrize("message", [*REWARD_ERRORS, *PACKED_ERRORS])
def test_unfit_responses(message):
    logits, labels = good()["logits"], good()["labels"]
    packed = message in PACKED_ERRORS
    arguments = PACKED_ERRORS[message] if packed else REWARD_ERRORS[message]
    with pytest.raises(ValueError, match=re.escape(message)):
        functional.response_rewards(*((logits.view(8, -1), labels.view(8)) if packed else (logits, labels)), **arguments)


@pytest.mark.parametrize("message", ["labels must have the shape of logits", "labels must be in 0..44 or ignore_index (-100), got 45"])
@pytest.mark.parametrize("fullgraph", [False, True])
def test_the_same_errors_under_compile(message, fullgraph):
    """Under fullgraph=True the compiler wraps what is raised while it traces in an error of its own, which quotes ours."""
    torch.compiler.reset()
    arguments = {key: value for key, value in good().items() if key in ("logits", "labels")} | LOGITS_ERRORS[message]
    function = torch.compile(lambda logits, labels: functional.token_logprobs(logits, labels), backend="aot_eager", fullgraph=fullgraph)
    with pytest.raises((ValueError, Unsupported) if fullgraph else ValueError, match=re.escape(message)):
        function(**arguments)


def test_environment_chooses_and_does_not_fall_back(monkeypatch):
    arguments = {key: value for key, value in good().items() if key in ("logits", "labels")}
    monkeypatch.setenv("PAD_FAST_IMPL", "fast")
    with pytest.raises(ValueError, match="PAD_FAST_IMPL must be one of auto, torch, triton, got 'fast'"):
        functional.token_logprobs(**arguments)
    monkeypatch.setenv("PAD_FAST_IMPL", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="needs a CUDA tensor"):
        functional.token_logprobs(**arguments)
    functional.token_logprobs(**arguments, impl="torch")  # by hand comes first
    monkeypatch.setenv("PAD_FAST_IMPL", "")  # as good as unset
    functional.token_logprobs(**arguments)


def test_numbers_of_numpy_are_numbers():
    arguments = {key: value for key, value in good().items() if key in ("logits", "labels")}
    options = {"temperature": np.float32(0.5), "softcap": np.int64(30), "ignore_index": np.int64(-100)}
    got = functional.token_logprobs(**arguments, **options)
    assert torch.equal(got, functional.token_logprobs(**arguments, temperature=0.5, softcap=30.0))
    functional.token_logprobs(**arguments, logit_scale=0)  # is in range


def test_import_loads_torch_alone():
    code = "import sys, pad_fast; print([m for m in ('triton', 'transformers', 'datasets', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert pad_fast.token_logprobs is functional.token_logprobs


def test_meta_tensors_tell_shapes() -> None:
    """A device that has no autocast, which asking whether it is on refuses."""
    hidden, weight = torch.empty(2, 3, 4, device="meta"), torch.empty(7, 4, device="meta")
    labels = torch.empty(2, 3, dtype=torch.long, device="meta")
    assert functional.linear_token_logprobs(hidden, weight, labels).shape == (2, 3)
    assert functional.linear_response_rewards(hidden, weight, labels).shape == (2,)
