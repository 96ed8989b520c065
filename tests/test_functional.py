"""The public functions of logits and of hidden states together: shapes, ignored rows, compilation.

They run in PyTorch and are compared with the float64 reference.
"""

import pytest
import torch
from logprobs import CAPPED, close, draw, gradients, linear, linear_reference
from public_operations import operations

from pad_fast import functional

# Gradients.


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


# torch.library, torch.compile.


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


def test_operations_that_wait_stay_out_of_cuda_graphs():
    """Of all operations only the sums over responses wait for nothing, in any implementation."""
    operations("torch")  # which registers them
    names = {
        name.removeprefix("pad_fast::").partition(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("pad_fast::")
    }
    graphed = {
        name
        for name in names
        if torch.Tag.cudagraph_unsafe not in getattr(torch.ops.pad_fast, name).default.tags
    }
    assert len(names) >= 9
    assert graphed == {"response_sums"}
