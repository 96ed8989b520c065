"""The public operations on the PyTorch path against the float64 reference: values, gradients, shapes, rewards, torch.library."""

import numpy as np
import pytest
import torch
from scores import (
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

from pad_fast import functional, reference
from pad_fast.linear_logprob import op as linear_op
from pad_fast.logprob import op as logprob_op
from pad_fast.logprob import response_op
from pad_fast.logprob import torch_impl as logits_torch

# Values and gradients.


@pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)
@pytest.mark.parametrize("options", [{}, CAPPED], ids=["plain", "capped"])
def test_from_logits(small_tiles, dtype, options):
    hidden, weight, _, labels, grad = draw()
    logits = (hidden @ weight.T).to(dtype)
    logps, (dlogits,) = gradients(
        functional.token_logprobs, [logits], labels, grad, impl="torch", **options
    )
    exact, (dexact,) = gradients(
        reference.token_logprobs, [logits.double()], labels, grad, **options
    )
    assert logps.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert dlogits.dtype == dtype
    close(logps, exact, torch.promote_types(dtype, torch.float32))
    close(dlogits, dexact, dtype)


def test_gradcheck(small_tiles):
    hidden, weight, bias, labels, _ = draw(torch.float64, rows=(1, 3), width=4, vocabulary=20)
    leaves = [leaf.requires_grad_() for leaf in (hidden, weight, bias)]
    assert torch.autograd.gradcheck(lambda *x: linear(*x, labels, **CAPPED), leaves)
    logits = (hidden @ weight.T).detach().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: functional.token_logprobs(x, labels, impl="torch", **CAPPED), logits
    )
    assert torch.autograd.gradcheck(
        lambda x: functional.response_rewards(x, labels, impl="torch"), logits
    )


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
    hidden, weight = (
        torch.zeros(*shape, 3, requires_grad=True),
        torch.ones(7, 3, requires_grad=True),
    )
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
    _, want = gradients(
        linear_reference, [x.double() for x in sliced], labels[:, :-1], grad[:, :-1]
    )
    for g, w in zip(got, want, strict=True):
        close(g, w, torch.float32)
    expanded = torch.full((1, 1), 3).expand(2, 5)
    torch.testing.assert_close(
        linear(hidden, weight, bias, expanded, ignore_index=-1),
        linear_reference(hidden, weight, bias, expanded, ignore_index=-1),
    )


def test_slice_along_tokens_is_not_copied(monkeypatch):
    logits = torch.randn(4, 33, 8192)
    labels = torch.zeros(4, 32, dtype=torch.int64)
    largest = Largest(logits)
    watch(monkeypatch, largest, (logits_torch, "logits_forward"))
    functional.token_logprobs(logits[:, :-1], labels, impl="torch")
    assert largest.bytes
    assert largest.bytes <= logits.nbytes / 1.9  # a tile of all 128 rows by 4,096 of 8,192 columns


# What is ignored.


@pytest.mark.parametrize("filling", [torch.nan, torch.inf])
def test_ignored_rows_are_not_read(small_tiles, filling):
    hidden, weight, bias, labels, grad = draw()
    dead = labels == -100
    _, want = gradients(
        linear_reference, [hidden.double(), weight.double(), bias.double()], labels, grad
    )
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
    packed = rewards(
        ours, leaves[0][order], leaves[1], flat_y[order], response_ids=ids[order], num_responses=3
    )
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
    counted = rewards(
        ours, flat_h, weight, flat_y, response_ids=ids
    )  # the number of responses out of the ids
    torch.testing.assert_close(padded, packed)
    torch.testing.assert_close(counted, packed)


def test_lengths():
    labels = torch.tensor([[1, -100, 3], [-100, -100, -100]])
    assert functional.response_lengths(labels).tolist() == [2, 0]
    ids = torch.tensor([0, 0, 2, 2, -1, 2])
    assert functional.response_lengths(
        labels.view(-1), response_ids=ids, num_responses=4
    ).tolist() == [1, 0, 1, 0]
    assert functional.response_lengths(labels.view(-1), response_ids=ids).tolist() == [1, 0, 1]


def test_sums_are_exact_in_any_order():
    """float32 sums of these values depend on the order in their last bits; ours do not, and are the rounded true sum."""
    values = -torch.rand(4096, generator=torch.Generator().manual_seed(0)) * 20
    ids = torch.zeros(4096, dtype=torch.int64)
    exact = values.double().sum().float()
    assert len({np.add.accumulate(values[torch.randperm(4096)].numpy())[-1] for _ in range(20)}) > 1
    for _ in range(20):
        order = torch.randperm(4096)
        assert (
            response_op.response_sums(values[order], ids, ids, 1, -100, False, "torch")[0] == exact
        )
        assert (
            response_op.response_sums(
                values[order].view(1, -1), ids.view(1, -1), None, 1, -100, False, "torch"
            )[0]
            == exact
        )


def test_sums_keep_what_is_not_finite():
    values = torch.tensor([[0.0, -torch.inf], [torch.nan, -1.0], [-1e30, -1e30]])
    sums, _ = response_op.response_sums(values, values, None, 3, -100, False, "torch")
    assert sums[0] == -torch.inf
    assert sums[1].isnan()
    assert sums[2] == pytest.approx(-2e30)


# torch.library, torch.compile.


def test_opcheck(small_tiles):
    hidden, weight, bias, labels, grad = draw(rows=(6,), width=4, vocabulary=20)
    options = (0.7, 30.0, 1.3, -100, "torch")
    leaves = [x.requires_grad_() for x in (hidden, weight, bias)]
    rows, count = linear_op.live_rows(labels, -100)
    torch.library.opcheck(linear_op.live_rows, (labels, -100))
    given = rows[:5]
    for saved in (0, 2, 6):
        torch.library.opcheck(
            linear_op.linear_token_logprobs,
            (*leaves, labels, rows, count, saved, False, False, *options),
        )
    torch.library.opcheck(
        linear_op.linear_token_logprobs,
        (hidden, weight, None, labels, given, None, 4, False, False, *options),
    )
    frozen = (hidden, weight.detach(), None)
    torch.library.opcheck(
        linear_op.linear_token_logprobs, (*frozen, labels, rows, count, 0, True, False, *options)
    )
    detached = [x.detach() for x in leaves]
    _, *kept, _ = linear_op.linear_token_logprobs(
        *detached, labels, rows, count, 4, False, False, *options
    )
    for needed in ((True, True, True), (True, False, False)):
        arguments = (grad, *detached, labels, rows, count, *kept, *needed, *options)
        torch.library.opcheck(linear_op.linear_token_logprobs_backward, arguments)
    _, _, total, _, unscaled = linear_op.linear_token_logprobs(
        *detached, labels, rows, count, 0, True, False, *options
    )
    torch.library.opcheck(linear_op.scale_live_rows, (grad, rows, count, total, unscaled))
    logits, rows = torch.randn(1, 6, 20, requires_grad=True), labels.view(1, 6)
    torch.library.opcheck(logprob_op.token_logprobs, (logits, rows, *options, False))
    ids = torch.tensor([0, 2, -1, 2, 0, 1])
    for mean in (False, True):
        torch.library.opcheck(
            response_op.response_sums,
            (torch.randn(6, requires_grad=True), labels, ids, 4, -100, mean, "torch"),
        )
        padded = labels.view(2, 3)
        torch.library.opcheck(
            response_op.response_sums,
            (torch.randn(2, 3, requires_grad=True), padded, None, 2, -100, mean, "torch"),
        )


def test_compiles_whole(small_tiles):
    hidden, weight, bias, labels, _ = draw()
    ids = torch.arange(8) // 4

    def loss(h, w):
        padded = functional.response_rewards(h @ w.T, labels, softcap=30.0)
        packed = functional.linear_response_rewards(
            h.view(8, -1),
            w,
            labels.view(-1),
            bias=bias,
            response_ids=ids,
            num_responses=2,
            temperature=0.7,
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
